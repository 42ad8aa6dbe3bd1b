"""What a micro-batch holds: how many samples of its task, and the token budget of each, before any is decoded.

A **micro-batch** is the work of one rank, packed to ``Task.tokens``. All here is a function of seed, task and its
number, so that micro-batches are as full on every rank, and any of them can be made alone. No sample is left out:
micro-batch b has the samples b * n to b * n + n - 1 of its task, where n is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from zlib import crc32

import numpy as np

from atoken.errors import AtokenError
from atoken.pretrain.stages import Task

CROPS = ("crop", "surface")  # modalities whose micro-batches hold one crop of an asset
_LENGTHS, _AREAS, _SAMPLE = 0, 1, 2  # keep the random streams of a task apart


@dataclass(frozen=True)
class Budget:
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
    """How many samples fill a micro-batch on average, if even the longest all fit at their smallest.

    Raises: AtokenError (there are fewer tokens than time steps).
    """
    low, high = task.patches
    if task.modality in CROPS:
        return 1
    if task.tokens < task.length[1]:
        raise AtokenError(
            f"A micro-batch of {task.tokens} tokens has no room for {task.length[1]} time steps; raise "
            "tokens of that task or lower its length."
        )
    mean = ((high - low) / log(high / low) if high > low else low) * sum(task.length) / 2
    return max(1, min(round(task.tokens / mean), task.tokens // (low * task.length[1])))


def stream(task: Task, name: str) -> int:
    """A number for the random stream of a task, different for each name."""
    return crc32((task.stream or name).encode())


def budgets(task: Task, seed: int, name: str, number: int) -> list[Budget]:
    """The budgets of micro-batch ``number`` of a task; no more than ``task.tokens`` together. Raises: AtokenError."""
    count, key = samples(task), (seed, stream(task, name))
    sizes = [(1, task.tokens)] if task.modality in CROPS else _sizes(task, count, key, number)
    first = number * count
    return [
        Budget(index, length, patches, (*key, _SAMPLE, index)) for index, (length, patches) in enumerate(sizes, first)
    ]


def _sizes(task: Task, count: int, key: tuple[int, ...], number: int) -> list[tuple[int, int]]:
    """Time steps, drawn evenly, and patches of each, drawn evenly by their logarithm and scaled to fill it."""
    # Ranks that share weights (ZeRO-3) must run the same layers at the same time, a pass for each tile of a video. So
    # the lengths follow from the step alone and are those of all its micro-batches; the areas are each micro-batch's
    # own.
    by_step, by_micro_batch = (
        np.random.default_rng((*key, stream, place))
        for stream, place in ((_LENGTHS, number // task.micro_batches), (_AREAS, number))
    )
    lengths_n = by_step.integers(task.length[0], task.length[1], count, endpoint=True)
    low, high = task.patches
    areas_n = _filling(task, lengths_n, low * (high / low) ** by_micro_batch.random(count))
    return [(int(length), int(area)) for length, area in zip(lengths_n, areas_n, strict=True)]


def _filling(task: Task, lengths_n: np.ndarray, areas_n: np.ndarray) -> np.ndarray:
    """The areas, moved from the smallest one allowed by a common factor, so that they fill the micro-batch.

    What exceeds the largest one allowed is cut off and goes to the others; the largest are looked at first, so that one
    pass is enough.
    """
    low, high = task.patches
    over_n, budget = areas_n - low, max(0.0, float(task.tokens - low * lengths_n.sum()))
    order = np.argsort(-areas_n)
    left_n = np.cumsum((lengths_n * over_n)[order][::-1])[::-1]  # of this one and those after it
    filled_n = np.full(len(areas_n), float(low))
    for sample, left in zip(order, left_n, strict=True):
        if left > 0:
            filled_n[sample] += min(over_n[sample] * budget / left, high - low)
            budget -= lengths_n[sample] * (filled_n[sample] - low)
    return np.minimum(filled_n, task.tokens // lengths_n)  # one sample alone may be too long for its smallest area
