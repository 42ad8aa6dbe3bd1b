"""A small row that every part of is real: made images, a model that blurs them a little, metrics of pixels."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np

from atoken.errors import AtokenError, MediaError
from atoken.io import Image
from eval.contract import Output
from eval.job import Job, Task
from eval.metrics.pixels import Psnr
from eval.prepare import Preparation
from eval.sources import folders
from eval.sources.entry import Entry, Prepared


class MeanDifference:
    """The mean difference, summed plainly in float64: the order of every addition shows in its last bits."""

    name = "error"

    def __init__(self):
        self.record = {"area": "all pixels"}

    def start(self):
        return {"sum": np.zeros(1), "items": np.zeros(1)}

    def add(self, state, samples):
        values = [float(np.abs(s.prediction.astype(float) - s.target).mean() / 3) for s in samples]
        for value in values:
            state["sum"] += value
            state["items"] += 1
        return [{"error alone": value} for value in values]

    def merge(self, first, second):
        return {name: first[name] + second[name] for name in first}

    def finish(self, state):
        return {"mean error": float(state["sum"][0] / state["items"][0])}


class Copy:
    """Gives images back with noise that belongs to their key."""

    name = "copy"

    def __init__(self, noise=6, before=lambda key: None):
        self.record = {"noise": str(noise)}
        self._noise, self._before = noise, before

    def reconstruct(self, items):
        return [self._one(item) for item in items]

    def _one(self, item):
        self._before(item.key)
        if item.key.startswith("refused"):
            raise AtokenError(f"This model does not take {item.key}.")
        target = item.media.pixels[None]
        seed = int.from_bytes(hashlib.sha256(item.key.encode()).digest()[:4], "little")
        noise = np.random.default_rng(seed).integers(-self._noise, self._noise + 1, target.shape)
        return Output(item, target, np.clip(target.astype(int) + noise, 0, 255).astype(np.uint8))

    def embed(self, items):
        raise AtokenError("It has no vectors.")

    def embed_texts(self, texts):
        raise AtokenError("It has no vectors.")


def image(number, side=16):
    if number < 0:
        raise MediaError("This image is damaged.")
    return Image(np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8))


def entries(count, **broken):
    """``broken``: numbers of items that cannot be read, or that the model refuses."""
    unreadable, refused = broken.get("unreadable", ()), broken.get("refused", ())
    return [
        Entry(f"{'refused-' * (n in refused)}{n:05d}", partial(image, -1 if n in unreadable else n))
        for n in range(count)
    ]


def job(count=36, *, model=None, metrics=None, shard=8, batch=3, full=None, skipped=None, **broken):
    task = Task("small", "image", "", folders.images, Preparation(), {}, shard=shard, batch=batch)
    data = Prepared(entries(count, **broken), task.prepare)
    return Job(task, data, model or Copy(), metrics or [Psnr(), MeanDifference()], skipped or {}, full)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
