"""What a micro-batch contains: how many samples of its task, and the token budget of each, before any is decoded.

A **micro-batch** is packed to ``Task.tokens``. It depends on the seed, the task and its number alone, so that it is
equally full on every rank and can be made without the others. Micro-batch b has the samples b * n to b * n + n - 1 of
its task, with the same n for all, so that no sample is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from zlib import crc32

import numpy as np

from atoken.errors import AtokenError
from atoken.pretrain.stages import Task

CROPS = ("crop", "surface")  # modalities whose micro-batches hold one crop of an asset
_LENGTHS, _AREAS, _SAMPLE = 0, 1, 2  # numbers of the random streams of a task


@dataclass(frozen=True)
class Budget:
    """The token budget of one sample: ``length`` time steps of at most ``patches`` each; of an asset, so many voxels.

    index: of the sample among all of its task. key: of its random generator.
    """

    index: int
    length: int
    patches: int
    key: tuple[int, ...]

    def rng(self) -> np.random.Generator:
        """A new random generator of the sample."""
        return np.random.default_rng(self.key)


def samples(task: Task) -> int:
    """How many samples fill a micro-batch on average; at most so many that even the longest fit at their smallest size.

    Raises: AtokenError (there are fewer tokens than time steps).
    """
    low, high = task.patches
    if task.modality in CROPS:
        return 1
    if task.tokens < task.length[1]:
        raise AtokenError(
            f"A micro-batch of {task.tokens} tokens is too small for {task.length[1]} time steps; raise tokens of that "
            "task or lower its length."
        )
    mean = ((high - low) / log(high / low) if high > low else low) * sum(task.length) / 2
    return max(1, min(round(task.tokens / mean), task.tokens // (low * task.length[1])))


def stream(task: Task, name: str) -> int:
    """A number for the random stream of a task, different for each name."""
    return crc32((task.stream or name).encode())


def budgets(task: Task, seed: int, name: str, number: int) -> list[Budget]:
    """The budgets of micro-batch ``number`` of a task, at most ``task.tokens`` in all. Raises: AtokenError."""
    count, key = samples(task), (seed, stream(task, name))
    sizes = [(1, task.tokens)] if task.modality in CROPS else _sizes(task, count, key, number)
    first = number * count
    return [
        Budget(index, length, patches, (*key, _SAMPLE, index)) for index, (length, patches) in enumerate(sizes, first)
    ]


def _sizes(task: Task, count: int, key: tuple[int, ...], number: int) -> list[tuple[int, int]]:
    """Uniform random time steps, and log-uniform random patches of each, scaled to fill the micro-batch."""
    # Ranks that share weights (ZeRO-3) must run the same layers at the same time, one pass for each tile of a video. So
    # all micro-batches of a step have the same lengths, while each has its own areas.
    by_step, by_micro_batch = (
        np.random.default_rng((*key, stream, index))
        for stream, index in ((_LENGTHS, number // task.micro_batches), (_AREAS, number))
    )
    lengths_n = by_step.integers(task.length[0], task.length[1], count, endpoint=True)
    low, high = task.patches
    areas_n = _filling(task, lengths_n, low * (high / low) ** by_micro_batch.random(count))
    return [(int(length), int(area)) for length, area in zip(lengths_n, areas_n, strict=True)]


def _filling(task: Task, lengths_n: np.ndarray, areas_n: np.ndarray) -> np.ndarray:
    """The areas, whose excess over the smallest allowed one is scaled by a common factor to fill the micro-batch.

    What exceeds the largest allowed one is cut off and distributed to the others; one pass is enough, because the
    largest come first.
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
    return np.minimum(filled_n, task.tokens // lengths_n)  # a single sample may be too long even for the smallest area
