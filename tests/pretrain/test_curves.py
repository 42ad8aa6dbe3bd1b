"""Thirty steps of every kind of stage: the same twice, and the same as recorded.

``python -m tests.pretrain.test_curves`` records them anew.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from atoken.presets import FSQ_LEVELS
from atoken.pretrain.curriculum import ALIGNMENT, CURRICULA, NANO_TASKS, PATCHES
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Stage, Task
from atoken.train.engine import PlainEngine
from atoken.train.recipe import Recipe
from tests.model.sizes import small_config, small_model
from tests.pretrain.tiny import all_batches
from tests.tokenizer.texts import text_sizes, words
from tests.tolerances import CURVE

pytest.importorskip("embreex", reason="the extra 3d is not installed")
pytest.importorskip("scipy", reason="the extra train is not installed")

RECORDED = Path(__file__).with_name("curves.json")
STEPS = 30
TASKS = {
    "image": Task("image", PATCHES, tokens=64, patches=(4, 16)),
    "image-text": Task("image", ALIGNMENT, tokens=64, patches=(4, 16)),
    "video-text": Task("video", ALIGNMENT, tokens=64, patches=(4, 9), length=(1, 2), stream="clip-text"),
    "video": Task("video", PATCHES, tokens=64, patches=(4, 9), length=(1, 2), stream="clip"),
    "asset-text": Task("asset", ALIGNMENT, tokens=64, patches=(32, 32)),
    "asset": Task("asset", PATCHES, tokens=64, patches=(64, 64)),
    "surface": replace(NANO_TASKS["surface"], tokens=64),
}
PAPER = CURRICULA["so400m-c"]
GAUSSIANS = {"width": 48, "layers": 1, "heads": 4, "mlp": 64, "neighborhood": 3}


def stage(name):
    """A stage with the paper's mixture, without teachers, or that of a Gaussian decoder; all of it very small."""
    mixture = {"surface": 1} if name == "surface" else PAPER[name].mixture
    return Stage(
        name, "tiny", TASKS, mixture, auxiliary=() if name == "surface" else ("image-text",),
        recipe=Recipe(steps=STEPS, warmup=5, lr=1e-3, mixed_precision=False),
    )  # fmt: skip


@cache
def made(name):
    return list(all_batches(stage(name)))


def curve(name):
    model = small_model(
        gaussian_decoder=GAUSSIANS, text=text_sizes(small_config().encoder_width), logit_scale_init=1.0,
        logit_bias_init=-2.0, fsq_levels=FSQ_LEVELS if name == "4" else None,
    )  # fmt: skip
    engine = PlainEngine(Objective(model, stage(name), texts=words()), stage(name).recipe, "cpu")
    return [engine.train(micro_batches)["loss"] for micro_batches in made(name)]


@pytest.fixture(autouse=True)
def one_thread():
    """As recorded: sums over several threads come out otherwise in the last digit, and 30 steps enlarge that."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [*PAPER, "surface"])
def test_thirty_steps_are_the_same_twice_and_as_recorded(name):
    first = curve(name)
    assert curve(name) == first
    assert first == pytest.approx(json.loads(RECORDED.read_text())[name], rel=CURVE, abs=CURVE)
    assert sum(first[-9:]) < sum(first[:9])


if __name__ == "__main__":
    torch.set_num_threads(1)
    RECORDED.write_text(json.dumps({name: curve(name) for name in [*PAPER, "surface"]}, indent=1) + "\n")
