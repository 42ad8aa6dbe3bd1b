"""What a bin holds: how many samples of its task and how much room each, known before any of them is decoded.

A **bin** is a micro-batch of one rank, packed to ``Task.tokens``. All here is a function of seed, task and number of
the bin, so that bins are as full on every rank, and any of them can be made alone. No sample is left out: bin b has
the samples b * n to b * n + n - 1 of its task, where n is the same for all bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from zlib import crc32

import numpy as np

from atoken.errors import AtokenError
from atoken.train.stages import Task

PARTS = ("part", "surface", "views")  # media that are pieces of one asset
_LENGTHS, _AREAS, _SAMPLE = 0, 1, 2  # keep the random streams of a task apart


@dataclass(frozen=True)
class Room:
    """What one sample may take: ``length`` time steps of at most ``patches`` each; of an asset, so many voxels.

    index: of the sample among all of its task. key: of its random generator.
    """

    index: int
    length: int
    patches: int
    key: tuple[int, ...]

    def rng(self) -> np.random.Generator:
        """The sample's own generator, at its start."""
        return np.random.default_rng(self.key)


def samples(task: Task) -> int:
    """How many samples a bin has: as many as fill it on average, if even the longest ones all fit at their smallest.

    Raises: AtokenError (there are fewer tokens than time steps).
    """
    low, high = task.patches
    if task.medium in PARTS:
        return 1
    if task.tokens < task.length[1]:
        raise AtokenError(
            f"A bin of {task.tokens} tokens has no room for {task.length[1]} time steps; raise tokens of that task or "
            "lower its length."
        )
    mean = ((high - low) / log(high / low) if high > low else low) * sum(task.length) / 2
    return max(1, min(round(task.tokens / mean), task.tokens // (low * task.length[1])))


def rooms(task: Task, seed: int, name: str, number: int) -> list[Room]:
    """The rooms of bin ``number`` of the task ``name``; no more than ``task.tokens`` together. Raises: AtokenError."""
    count, key = samples(task), (seed, crc32(name.encode()))
    sizes = [(1, task.tokens)] if task.medium in PARTS else _sizes(task, count, key, number)
    first = number * count
    return [
        Room(index, length, patches, (*key, _SAMPLE, index)) for index, (length, patches) in enumerate(sizes, first)
    ]


def _sizes(task: Task, count: int, key: tuple[int, ...], number: int) -> list[tuple[int, int]]:
    """Time steps, drawn evenly, and patches of each, drawn evenly by their logarithm and moved to fill the bin."""
    # Ranks that share weights (ZeRO-3) must run the same layers at the same time, a pass for each tile of a clip. So
    # the lengths follow from the step alone and are those of all its bins; the areas are each bin's own.
    by_step, by_bin = (
        np.random.default_rng((*key, stream, place))
        for stream, place in ((_LENGTHS, number // task.bins), (_AREAS, number))
    )
    lengths_n = by_step.integers(task.length[0], task.length[1], count, endpoint=True)
    low, high = task.patches
    areas_n = _filling(task, lengths_n, low * (high / low) ** by_bin.random(count))
    return [(int(length), int(area)) for length, area in zip(lengths_n, areas_n, strict=True)]


def _filling(task: Task, lengths_n: np.ndarray, areas_n: np.ndarray) -> np.ndarray:
    """The areas, moved from the smallest one allowed by a common factor, so that they fill the bin.

    What exceeds the largest one allowed is cut off and goes to the others; the largest are looked at first, so that one
    pass is enough.
    """
    low, high = task.patches
    over_n, room = areas_n - low, max(0.0, float(task.tokens - low * lengths_n.sum()))
    order = np.argsort(-areas_n)
    left_n = np.cumsum((lengths_n * over_n)[order][::-1])[::-1]  # of this one and those after it
    filled_n = np.full(len(areas_n), float(low))
    for sample, left in zip(order, left_n, strict=True):
        if left > 0:
            filled_n[sample] += min(over_n[sample] * room / left, high - low)
            room -= lengths_n[sample] * (filled_n[sample] - low)
    return np.minimum(filled_n, task.tokens // lengths_n)  # one sample alone may be too long for its smallest area
