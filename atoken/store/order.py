"""Which samples a micro-batch has: a function of a seed and its number, in which every epoch has each sample once.

Samples are numbered so that those of one class are side by side; classes are what may stand in for each other: samples
of one grid in dense batches, of about equally many tokens in packed ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np

from atoken.data.mixing import hashed, permuted
from atoken.data.sources.sample import located


@dataclass(frozen=True)
class DenseOrder:
    """Micro-batches of ``size`` samples of one class, the same class in a whole step, so that no rank waits.

    firsts: the first sample of each class, and the end. Classes take turns as their numbers of samples demand; of each
    class the samples are an endless stream, epoch after epoch, of which every step takes the next.
    """

    firsts: np.ndarray
    size: int
    micro_batches: int
    seed: int

    @property
    def epoch(self) -> float:
        """Micro-batches of an epoch, on average over classes."""
        return int(self.firsts[-1]) / self.size

    @cached_property
    def _ends(self) -> list[int]:
        """Up to which turn of a cycle each class has them, before they are permuted."""
        sizes = np.diff(self.firsts)
        return np.cumsum(sizes // gcd(*sizes.tolist())).tolist()

    def drawn(self, number: int) -> list[tuple[int, int]]:
        """The samples of a micro-batch, and the epoch of each."""
        step, part = divmod(number, self.micro_batches)
        cycle, turn = divmod(step, self._ends[-1])
        group, nth = located(self._ends, permuted(turn, self._ends[-1], self.seed, cycle))
        before = cycle * (self._ends[group] - (self._ends[group - 1] if group else 0)) + nth
        start = (before * self.micro_batches + part) * self.size
        first, end = self.firsts[group : group + 2].tolist()
        turns = (divmod(at, end - first) for at in range(start, start + self.size))
        return [(first + permuted(turn, end - first, self.seed, group, epoch), epoch) for epoch, turn in turns]


@dataclass(frozen=True)
class PackedOrder:
    """Micro-batches of samples of any classes, of together at most ``budget`` tokens.

    firsts: as of ``DenseOrder``. tokens: of a sample of each class, at most. The classes are packed once, in an order
    of the seed, and every epoch fills the packs with the samples of these classes in another way: an epoch has as many
    packs as the one before, so that the epoch of any micro-batch is known without going through those before.
    """

    firsts: np.ndarray
    tokens: np.ndarray
    budget: int
    seed: int

    @property
    def epoch(self) -> float:
        """Micro-batches of an epoch."""
        return len(self._packs[1]) - 1

    @cached_property
    def _packs(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples in an order of the seed, and where packs begin in it, and the end."""
        lengths = np.repeat(self.tokens, np.diff(self.firsts))
        # A bit generator gives the same numbers in all versions of NumPy, other than what is built on it.
        samples = np.argsort(np.random.PCG64(hashed(self.seed)).random_raw(len(lengths)), kind="stable")
        ends, bounds = np.cumsum(lengths[samples]), [0]
        while bounds[-1] < len(samples):
            before = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(int(np.searchsorted(ends, before + self.budget, side="right")))
        return samples, np.array(bounds)

    def drawn(self, number: int) -> list[tuple[int, int]]:
        """The samples of a micro-batch, and the epoch of each."""
        samples, bounds = self._packs
        epoch, turn = divmod(number, len(bounds) - 1)
        pack = permuted(turn, len(bounds) - 1, self.seed, epoch)
        found = []
        for sample in samples[bounds[pack] : bounds[pack + 1]].tolist():
            group = int(np.searchsorted(self.firsts, sample, side="right")) - 1
            first, end = self.firsts[group : group + 2].tolist()
            found.append((first + permuted(sample - first, end - first, self.seed, group, epoch), epoch))
        return sorted(found)  # attention takes neighbours of one length together


def rounded(tokens: int, budget: int) -> int:
    """Tokens rounded up to five binary digits: samples within a sixteenth may stand in for each other in a pack."""
    step = 1 << max(tokens.bit_length() - 5, 0)
    return min(-(-tokens // step) * step, budget)
