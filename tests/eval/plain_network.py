"""A network of features with nothing to learn: what images look like in a few large cells."""

import numpy as np

from atoken.io import Image
from eval.contract import Item, Output


class PlainNetwork:
    """Mean colours of 2 x 2 cells (12 numbers), of 3 x 3 cells (27), and a softmax of the first as probabilities."""

    name, checksum, videos = "plain", "0" * 64, False

    def __init__(self, kinds=("pooled", "spatial", "probabilities")):
        self.kinds, self.record = frozenset(kinds), {"resize": "none"}
        self.calls = 0

    def features(self, frames):
        self.calls += 1
        images = [image / 255 for video in frames for image in video]
        pooled = np.array([cells(image, 2) for image in images])
        weights = np.exp(4 * pooled)
        every = {
            "pooled": pooled.astype(np.float32),
            "spatial": np.array([cells(image, 3) for image in images], np.float32),
            "probabilities": weights / weights.sum(1, keepdims=True),
        }
        return {kind: every[kind] for kind in self.kinds}


def cells(image, side):
    rows = np.array_split(image, side)
    return np.concatenate([cell.mean((0, 1)) for row in rows for cell in np.array_split(row, side, axis=1)])


def images(seed, count, side=12):
    """(count, side, side, 3) uint8 whose cells differ."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 3, 3)).repeat(side // 3, 1).repeat(side // 3, 2)
    return np.clip(coarse + rng.normal(0, 9, coarse.shape), 0, 255).astype(np.uint8)


def samples(prediction=None, target=None):
    """A sample of each image; a side may be missing."""
    present = prediction if prediction is not None else target
    return [
        Output(
            Item(f"{index:04}.png", Image(present[index])),
            prediction=None if prediction is None else prediction[index][None],
            target=None if target is None else target[index][None],
        )
        for index in range(len(present))
    ]
