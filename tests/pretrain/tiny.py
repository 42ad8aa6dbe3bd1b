"""A stage that trains in seconds, and its engine, batches and runs; ``tiny_preset`` makes its preset known."""

from dataclasses import replace

import pytest

from atoken import presets
from atoken.pretrain.batches import MicroBatches
from atoken.pretrain.curriculum import NANO_TASKS, UNUSED
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.objective import Objective
from atoken.pretrain.run import run
from atoken.pretrain.stages import Stage
from atoken.train.engine import PlainEngine
from atoken.train.loader import batches
from atoken.train.recipe import Recipe
from tests.model.sizes import small_model

TASKS = NANO_TASKS | {
    "image": replace(NANO_TASKS["image"], tokens=64, patches=(4, 16)),
    "video": replace(NANO_TASKS["video"], tokens=64, patches=(4, 9), length=(1, 2)),
}
TINY = Stage("tiny", "tiny", TASKS, {"image": 3, "video": 1}, frozen=UNUSED, recipe=Recipe(steps=6, warmup=2))
SIZES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"width": 64, "layers": 1, "heads": 2, "mlp": 800}.items()
}
ONE_LAYER_MORE = {"encoder_layers": 2, "decoder_layers": 2}


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", SIZES)


def stage_of(tasks, **changes):
    """A stage that has these tasks, each as often."""
    return changed(Stage("any", "nano", tasks, dict.fromkeys(tasks, 1)), **changes)


def changed(stage, **changes):
    """A stage with other fields, be they its own or its recipe's."""
    own = {name: value for name, value in changes.items() if name in Stage.__dataclass_fields__}
    recipe = {name: value for name, value in changes.items() if name not in own}
    return replace(stage, **own, recipe=replace(stage.recipe, **recipe))


def engine_of(stage, model):
    return PlainEngine(Objective(model, stage), stage.recipe, "cpu")


def tiny_engine(**changes):
    return engine_of(changed(TINY, **changes), small_model())


def all_batches(stage, first=0, workers=0, rank=0, world=1, datasets=None):
    """As the loop gets them."""
    source = MicroBatches(stage, load_datasets("procedural", stage) if datasets is None else datasets)
    return batches(source, first, stage.recipe.steps, workers, rank, world)


def micro_batches(stage, step):
    return next(all_batches(changed(stage, steps=step + 1), step))


def batch(stage, step):
    (made,) = micro_batches(stage, step)
    return made


def tiny_run(stage, folder, start=None, **options):
    datasets = load_datasets("procedural", stage)
    return run(stage, folder, **({"start": start, "datasets": datasets, "device": "cpu", "workers": 0} | options))
