"""Sums and products that are the same to the last bit in whatever order and pieces they are computed.

Shape letters: ``Q`` and ``C`` vectors that are compared, ``D`` their width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from atoken.errors import AtokenError
from eval.contract import Output, State

GRID = 2.0**26  # steps in 1 of the values of vectors
SLACK = 1e-2  # by which the length of a vector may differ from 1


class Mean(ABC):
    """A metric whose numbers are means, over the outputs, of numbers that each output has alone.

    Means are exact: the sums are kept without rounding (expansions of Shewchuk 1997), so that order, shards and ranks
    do not matter. A number that is not finite makes its mean not finite; without outputs a mean is NaN.
    """

    name: str
    record: Mapping[str, str]
    numbers: tuple[str, ...]  # the names of what ``measure`` may return

    @abstractmethod
    def measure(self, output: Output) -> dict[str, float]:
        """The numbers of one output; one that it does not have is in no mean."""

    def start(self) -> State:
        """For each number: how many, the sum of those that are not finite, and the parts of the sum of the others."""
        return {name: np.zeros(2) for name in self.numbers}

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Fold outputs into ``state``, in place. Raises: as ``measure``."""
        found = [self.measure(output) for output in outputs]
        for name, value in (pair for numbers in found for pair in numbers.items()):
            state[name] = _joined(state[name], np.array([1, 0, value] if math.isfinite(value) else [1, value]))
        return found

    def merge(self, first: State, second: State) -> State:
        """The state of the outputs of both."""
        return {name: _joined(first[name], second[name]) for name in self.numbers}

    def finish(self, state: State) -> dict[str, float]:
        """The means, by name."""
        return {name: _mean(state[name]) for name in self.numbers}


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    count, broken, *parts = first.tolist()
    more, worse, *values = second.tolist()
    for value in values:
        parts = _with(parts, value)
    return np.array([count + more, broken + worse, *parts])


def _with(parts: list[float], value: float) -> list[float]:
    """Parts whose exact sum is that of ``parts`` and ``value``: the rounding error of each addition is kept."""
    errors = []
    for part in parts:
        large, small = (value, part) if abs(value) > abs(part) else (part, value)
        value = large + small
        if error := small - (value - large):
            errors.append(error)
    return [*errors, value]


def _mean(total: np.ndarray) -> float:
    count, broken, *parts = total.tolist()
    return (math.fsum(parts) + broken) / count if count else math.nan


def on_grid(vectors_CD: np.ndarray, whose: str) -> np.ndarray:
    """(C, D) float64: unit vectors rounded to multiples of 2^-26, so that their products in float64 are exact.

    A product of two values is then a multiple of 2^-52, and no partial sum of products of two vectors of length 1
    reaches 2, so that every step fits the 53 bits of a float64: blocks, threads, machines and neighbours do not matter.
    A vector that is not finite becomes NaN as a whole. Raises: AtokenError for a length that is neither 1 nor 0.
    """
    rounded_CD = np.rint(np.asarray(vectors_CD, np.float64) * GRID) / GRID
    rounded_CD[~np.isfinite(rounded_CD).all(axis=1)] = math.nan
    lengths = np.linalg.norm(rounded_CD, axis=1)
    wrong = (np.abs(lengths - 1) > SLACK) & (lengths > 0)
    if wrong.any():
        length = lengths[wrong][0]
        raise AtokenError(f"A vector of {whose} has length {length:.3g} instead of 1; let the model normalise it.")
    return rounded_CD
