"""A stage that trains in seconds, and its engine, batches and runs; ``tiny_preset`` makes its preset known."""

from dataclasses import replace

import pytest

from atoken import presets
from atoken.train.batches import batches
from atoken.train.curriculum import NANO_TASKS, UNUSED
from atoken.train.engine import PlainEngine
from atoken.train.feeds import load_feeds
from atoken.train.loop import run
from atoken.train.objective import Objective
from atoken.train.stages import Stage
from tests.model.sizes import small_model

TASKS = NANO_TASKS | {
    "image": replace(NANO_TASKS["image"], tokens=64, patches=(4, 16)),
    "clip": replace(NANO_TASKS["clip"], tokens=64, patches=(4, 9), length=(1, 2)),
}
TINY = Stage("tiny", "tiny", TASKS, {"image": 3, "clip": 1}, frozen=UNUSED, steps=6, warmup=2)
SIZES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"width": 64, "layers": 1, "heads": 2, "mlp": 800}.items()
}
ONE_LAYER_MORE = {"encoder_layers": 2, "decoder_layers": 2}


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", SIZES)


def tiny_engine(**changes):
    return PlainEngine(Objective(small_model(), TINY.used), replace(TINY, **changes), "cpu")


def micro_batches(stage, step):
    stage = replace(stage, steps=step + 1)
    return next(batches(stage, load_feeds("procedural", stage), step, workers=0))


def batch(stage, step):
    (made,) = micro_batches(stage, step)
    return made


def tiny_run(stage, folder, start=None, **options):
    feeds = load_feeds("procedural", stage)
    return run(stage, folder, **({"start": start, "feeds": feeds, "device": "cpu", "workers": 0} | options))
