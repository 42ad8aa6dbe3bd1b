"""The largest file that is not larger than another: codecs at the bytes of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from atoken.errors import AtokenError

T = TypeVar("T")


@dataclass(frozen=True)
class AtMost:
    """Bytes that the file of an item may take: one number for all, or a number by key. ``like``: whose bytes they are.

    An item whose smallest file takes more fails with one sentence.
    """

    size: int | Mapping[str, int]
    like: str = ""

    def __str__(self) -> str:
        most = "those of " + self.like if self.like else "given" if isinstance(self.size, Mapping) else f"{self.size:,}"
        return f"at most {most}"

    def of(self, key: str) -> int:
        """The bytes of one item. Raises: AtokenError where there is no number for it."""
        if isinstance(self.size, int):
            return self.size
        if key not in self.size:
            raise AtokenError(f"There is no number of bytes for {key}; measure {self.like or 'it'} on the same items.")
        return self.size[key]

    def file(self, model: str, key: str, levels: Sequence[T], encoded: Callable[[T], bytes]) -> bytes:
        """The file of an item at the highest of ``levels`` that is small enough. Raises: AtokenError where none is."""
        most = self.of(key)
        found = largest(levels, encoded, most)
        if found is None:
            raise AtokenError(
                f"{model} takes {len(encoded(levels[0])):,} bytes for {key} at its lowest quality, over the {most:,} "
                "asked for; ask for more bytes, or leave it out of the comparison."
            )
        return found[1]


def largest(levels: Sequence[T], encoded: Callable[[T], bytes], most: int) -> tuple[T, bytes] | None:
    """The highest of ``levels`` whose file has at most ``most`` bytes, and that file; None where none has.

    By bisection, which assumes that files grow from level to level. Where some do not (entropy coders), at least the
    file of the next level is over ``most``.
    """
    low, high, best = 0, len(levels), None
    while low < high:
        middle = (low + high) // 2
        data = encoded(levels[middle])
        if len(data) <= most:
            low, best = middle + 1, (levels[middle], data)
        else:
            high = middle
    return best
