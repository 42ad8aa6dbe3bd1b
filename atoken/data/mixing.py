"""Sources mixed by weight: the sample at a global index depends on the seed and that index alone.

So the position of a run is one integer, and rank r of w takes the indices r, r + w, r + 2w, ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from math import isqrt
from typing import Generic, NamedTuple, TypeVar

from atoken.data.sources.sample import Sample, Source, located
from atoken.errors import AtokenError, MediaError, MissingExtraError

T = TypeVar("T")
ROUNDS = 8  # of the Feistel network; with fewer, some orders of a few samples are more frequent than others
ATTEMPTS = 100  # to load a sample at one global index, before the run stops


class Broken(NamedTuple):
    """A sample that was skipped: the global index, its source and key, and why."""

    at: int
    source: str
    key: str
    reason: str


@dataclass(frozen=True)
class Drawn(Generic[T]):
    """What was loaded of the sample ``key`` of ``source``, and the samples that were skipped before it."""

    source: str
    key: str
    value: T
    broken: tuple[Broken, ...]


class Mixture:
    """Named sources and their weights, whole numbers; ``seed`` gives the order, but that of the sources ``in_order``.

    Raises: MediaError (no sources, an empty source, a weight that is not a whole number of at least 1).
    """

    # A cycle is as long as the sum of the weights and has each source exactly as often as its weight, in an order of
    # its own. How often a source came before a given index is therefore arithmetic, which makes its epochs exact. The
    # order changes so that no rank always gets the same source if the cycle and the number of ranks share a divisor.

    def __init__(
        self, parts: Mapping[str, tuple[Source, int]], seed: int, in_order: Collection[str] = frozenset()
    ) -> None:
        for name, (source, weight) in parts.items():
            if len(source) < 1 or not isinstance(weight, int) or weight < 1:
                raise MediaError(f"The source {name} needs samples, and a whole number of at least 1 as its weight.")
        if not parts:
            raise MediaError("There are no sources; name at least one.")
        self._names, self._sources = list(parts), [source for source, _ in parts.values()]
        self._weights = [weight for _, weight in parts.values()]
        self._ends, self._seed = list(accumulate(self._weights)), seed
        self._in_order = [name in in_order for name in parts]

    def position(self, index: int, attempt: int = 0) -> tuple[str, int]:
        """Name of the source and number of the sample for a global index >= 0.

        An epoch of a source has each of its samples once. Later attempts take any sample of the same source, so that
        the ratios hold.
        """
        number, item = self._position(index, attempt)
        return self._names[number], item

    def draw(self, index: int, load: Callable[[Sample], T]) -> Drawn[T]:
        """Load the sample of a global index; if it is broken (an AtokenError), another one of its source.

        Raises: MediaError (too many in a row are broken), MissingExtraError (all samples would fail alike).
        """
        broken: list[Broken] = []
        for attempt in range(ATTEMPTS):
            number, item = self._position(index, attempt)
            name, key = self._names[number], f"sample {item}"
            try:
                sample = self._sources[number][item]
                key = sample.key
                return Drawn(name, key, load(sample), tuple(broken))
            except MissingExtraError:
                raise
            except AtokenError as error:
                broken.append(Broken(index, name, key, str(error)))
        raise MediaError(f"{ATTEMPTS} samples of {name} in a row are broken. The last one: {broken[-1].reason}")

    def _position(self, index: int, attempt: int) -> tuple[int, int]:
        cycle, turn = divmod(index, self._ends[-1])
        number, nth = located(self._ends, permuted(turn, self._ends[-1], self._seed, cycle))
        size = len(self._sources[number])
        if attempt:
            return number, hashed(self._seed, index, attempt) % size
        epoch, turn = divmod(cycle * self._weights[number] + nth, size)
        return number, turn if self._in_order[number] else permuted(turn, size, self._seed, number, epoch)


def permuted(number: int, size: int, *key: int) -> int:
    """The image of ``number`` under a permutation of range(size), a different one for each ``key``.

    A Feistel network on pairs of numbers below the square root of the size, rounded up, applied until the result is
    in the range (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Constant memory.
    """
    side = isqrt(size - 1) + 1
    while True:
        left, right = divmod(number, side)
        for turn in range(ROUNDS):
            left, right = right, (left + hashed(*key, turn, right)) % side
        number = left * side + right
        if number < size:
            return number


def hashed(*numbers: int) -> int:
    """A 64-bit hash of whole numbers, the same on every machine."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest())
