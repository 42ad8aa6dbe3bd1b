"""An entry of a data set that is not read yet, lists of entries, and the items that a preparation makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoken.errors import MediaError
from atoken.io import Image, Mesh, Video
from eval.contract import Item
from eval.prepare import Preparation

Draw = Callable[[], Image | Video | Mesh]


@dataclass(frozen=True)
class Entry:
    """One member of a data set, not read yet: a file, a folder of views, frames of a video, or what draws it.

    size: bytes on disk of what is drawn, where it lies in a larger file.
    """

    key: str
    media: Path | tuple[Path, ...] | Draw
    label: int | None = None
    captions: tuple[str, ...] = ()
    size: int = 0

    def line(self) -> str:
        """For the hash of a data set: name, bytes on disk, label, captions."""
        files = () if callable(self.media) else (self.media,) if isinstance(self.media, Path) else self.media
        return json.dumps([self.key, self.size + sum(map(_bytes, files)), self.label, self.captions])


@dataclass(frozen=True)
class Listing:
    """The entries of a data set, in order, and the names of its classes by label."""

    entries: Sequence[Entry]
    classes: tuple[str, ...] = ()


class Prepared:
    """The items of a listing, as a ``Dataset``. Raises: MediaError while reading."""

    def __init__(self, entries: Sequence[Entry], preparation: Preparation) -> None:
        self.entries, self.preparation = entries, preparation

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        """The name of an item."""
        return self.entries[index].key

    def line(self, index: int) -> str:
        """For the hash of the data."""
        return self.entries[index].line()

    def __getitem__(self, index: int) -> Item:
        entry = self.entries[index]
        media = self.preparation(entry.media()) if callable(entry.media) else self.preparation.read(entry.media)
        return Item(entry.key, media, entry.label, entry.captions)


def _bytes(path: Path) -> int:
    """Of a file, or of all files in a folder of views."""
    try:
        inside = path.rglob("*") if path.is_dir() else (path,)
        return sum(one.stat().st_size for one in inside if one.is_file() or one == path)
    except OSError:  # reading it raises the error that the user sees
        return -1


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped. Raises: MediaError."""
    return [line.strip() for line in text_of(path).splitlines() if line.strip()]


def text_of(path: Path) -> str:
    """A text file in UTF-8. Raises: MediaError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MediaError(f"Cannot read {path}, which the data set must have: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise MediaError(f"Cannot read {path}: it is not UTF-8.") from error
