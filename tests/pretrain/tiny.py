"""A stage that trains in seconds, and its engine, batches and runs; ``tiny_preset`` makes its preset known."""

from dataclasses import replace

import pytest

from atoken import presets
from atoken.pretrain.batches import batches
from atoken.pretrain.curriculum import NANO_TASKS, UNUSED
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Stage
from atoken.train.engine import PlainEngine
from atoken.train.loop import run
from tests.model.sizes import small_model

TASKS = NANO_TASKS | {
    "image": replace(NANO_TASKS["image"], tokens=64, patches=(4, 16)),
    "video": replace(NANO_TASKS["video"], tokens=64, patches=(4, 9), length=(1, 2)),
}
TINY = Stage("tiny", "tiny", TASKS, {"image": 3, "video": 1}, frozen=UNUSED, steps=6, warmup=2)
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
    return next(batches(stage, load_datasets("procedural", stage), step, workers=0))


def batch(stage, step):
    (made,) = micro_batches(stage, step)
    return made


def tiny_run(stage, folder, start=None, **options):
    datasets = load_datasets("procedural", stage)
    return run(stage, folder, **({"start": start, "datasets": datasets, "device": "cpu", "workers": 0} | options))
