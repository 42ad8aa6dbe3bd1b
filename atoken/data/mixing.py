"""Sources mixed by weight: the sample at a global index is a function of the seed and that index alone.

So the position of a run is one integer, and of w ranks rank r takes the indices r, r + w, r + 2w, ...
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from math import isqrt
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from atoken.data.sources.sample import Sample, Source, located
from atoken.errors import AtokenError, MediaError, MissingExtraError

T = TypeVar("T")
ROUNDS = 8  # of the Feistel network; with fewer, the orders of a handful of samples are not equally frequent
ATTEMPTS = 100  # at one global index, before the run stops


class Broken(NamedTuple):
    """A sample that was skipped: at which global index, of which source, its key, and why."""

    at: int
    source: str
    key: str
    reason: str


@dataclass(frozen=True)
class Drawn(Generic[T]):
    """What was made of the sample ``key`` of ``source``, and what was skipped before it."""

    source: str
    key: str
    value: T
    broken: tuple[Broken, ...]


class Mixture:
    """Named sources and their weights, whole numbers; ``seed`` gives the order.

    Raises: MediaError (nothing to mix, an empty source, a weight that is no whole number from 1 on).
    """

    # Sources come in exact ratios over a cycle as long as the sum of the weights, each cycle in an order of its own.
    # Were they drawn in proportion, how often a source came before an index would have to be counted; here that number,
    # which makes its epochs exact, is arithmetic. The changing order keeps a rank from always meeting the same source
    # where the cycle and the number of ranks have a common divisor.

    def __init__(self, parts: Mapping[str, tuple[Source, int]], seed: int) -> None:
        for name, (source, weight) in parts.items():
            if len(source) < 1 or not isinstance(weight, int) or weight < 1:
                raise MediaError(f"The source {name} needs samples and a whole number from 1 on as its weight.")
        if not parts:
            raise MediaError("There is nothing to mix; name at least one source.")
        self._names, self._sources = list(parts), [source for source, _ in parts.values()]
        self._weights = [weight for _, weight in parts.values()]
        self._ends, self._seed = list(accumulate(self._weights)), seed

    def place(self, index: int, attempt: int = 0) -> tuple[str, int]:
        """Name of the source and number of the sample for a global index >= 0.

        Each source is gone through in epochs, each of which has every sample once. Later attempts stay in the source,
        so that the ratios hold, and take any of its samples.
        """
        number, item = self._place(index, attempt)
        return self._names[number], item

    def draw(self, index: int, load: Callable[[Sample], T]) -> Drawn[T]:
        """Load the sample of a global index; where an AtokenError says that it is broken, the next candidate.

        Raises: MediaError (too many candidates in a row are broken), MissingExtraError (it would befall all samples).
        """
        broken: list[Broken] = []
        for attempt in range(ATTEMPTS):
            number, item = self._place(index, attempt)
            name, key = self._names[number], f"sample {item}"
            try:
                sample = self._sources[number][item]
                key = sample.key
                return Drawn(name, key, load(sample), tuple(broken))
            except MissingExtraError:
                raise
            except AtokenError as error:
                broken.append(Broken(index, name, key, str(error)))
        raise MediaError(f"{ATTEMPTS} samples of {name} in a row are broken, the last one so: {broken[-1].reason}")

    def _place(self, index: int, attempt: int) -> tuple[int, int]:
        cycle, turn = divmod(index, self._ends[-1])
        number, nth = located(self._ends, permuted(turn, self._ends[-1], self._seed, cycle))
        size = len(self._sources[number])
        if attempt:
            return number, hashed(self._seed, index, attempt) % size
        epoch, turn = divmod(cycle * self._weights[number] + nth, size)
        return number, permuted(turn, size, self._seed, number, epoch)


class Counted(Protocol):
    """Something that ``drawn`` samples went into, ``broken`` ones having been skipped."""

    @property
    def drawn(self) -> int:
        """How many."""

    @property
    def broken(self) -> Sequence[Broken]:
        """Which."""


class Tally:
    """Counts the broken samples of a run, lists them in a file, a line of JSON each, and stops a run with too many.

    ``most``: the share of all samples tried that may break, looked at from ``at_least`` samples on. ``drawn`` and
    ``broken`` are the counts, to be given again where a run resumes.
    """

    def __init__(
        self, path: str | Path, most: float = 0.1, at_least: int = 100, *, drawn: int = 0, broken: int = 0
    ) -> None:
        self.path, self.most, self.at_least = Path(path), most, at_least
        self.drawn, self.broken = drawn, broken

    def listed(self, step: int, batches: Iterable[Counted]) -> tuple[int, int]:
        """Write the broken samples of a step to the file; how many were drawn, and how many are broken.

        They are counted apart, by ``count``, because all ranks must stop together. Raises: MediaError (cannot write).
        """
        batches = list(batches)
        broken = [entry for batch in batches for entry in batch.broken]
        if broken:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps({"step": step, **entry._asdict()}) + "\n" for entry in broken)
            except OSError as error:
                raise MediaError(f"Cannot write the list of broken samples {self.path}: {error.strerror}.") from error
        return sum(batch.drawn for batch in batches), len(broken)

    def count(self, drawn: int, broken: int) -> dict[str, int]:
        """Add to the counts, and give them. Raises: MediaError (too many are broken)."""
        self.drawn, self.broken = self.drawn + drawn, self.broken + broken
        tried = self.drawn + self.broken
        if tried >= self.at_least and self.broken > self.most * tried:
            found, limit = f"{self.broken} of {tried} samples are broken", f"over the limit of {self.most:.0%}"
            raise MediaError(f"{found}, {limit}; mend or remove those that {self.path} lists.")
        return {"drawn": self.drawn, "broken": self.broken}


def permuted(place: int, size: int, *key: int) -> int:
    """Where a permutation of range(size), one for each ``key``, takes ``place``, without the others being known.

    A Feistel network on pairs of numbers below the root of the size, rounded up, walked until it is back in the range
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    side = isqrt(size - 1) + 1
    while True:
        left, right = divmod(place, side)
        for turn in range(ROUNDS):
            left, right = right, (left + hashed(*key, turn, right)) % side
        place = left * side + right
        if place < size:
            return place


def hashed(*numbers: int) -> int:
    """A 64-bit hash of whole numbers, the same everywhere."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest())
