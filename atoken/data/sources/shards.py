"""WebDataset shards, read by offset: the headers of a shard are read once, and its index is kept in a file beside it.

The members ``a/0001.jpg``, ``a/0001.txt``, ``a/0001.json`` and ``a/0001.cls`` make one sample: a key ends at the first
dot of the file's name (https://github.com/webdataset/webdataset). Of several media in one sample a 3D asset is
preferred to a video, and a video to an image, which may be its preview or texture. The text of ``.cls``, a class, is
``cls`` of the record, unless the ``.json`` has that, too. All other members are ignored.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
from msgspec import MsgspecError, msgpack

from atoken.atomic import atomic_path
from atoken.data.sources.sample import (
    MOST_MEDIA,
    MOST_TEXT,
    SUFFIXES,
    Sample,
    captions_in,
    files_at,
    located,
    stamp_of,
)
from atoken.data.sources.tar import FILES, FOLDER, entries
from atoken.errors import AtokenWarning, MediaError
from atoken.modalities import MODALITIES

TEXT, RECORD, CLASS = ".txt", ".json", ".cls"
_BESIDE = (TEXT, RECORD, CLASS)  # the media
_KEPT = SUFFIXES | {*_BESIDE}
_VERSION = 2  # of the index
_OPEN = 64  # shards that a process keeps open
_ABSENT = (0, -1)  # the span of a member that a sample does not have


class ShardSource:
    """The samples of one ``.tar`` shard, or of all shards below a folder: shards by name, their samples in file order.

    The index of a shard is written to ``shard.tar.index``, and again when the shard changes; where it cannot be
    written, it stays in memory. Links, devices and names that lead outside are left out with an AtokenWarning.
    Raises: MediaError (truncated, damaged or empty shards, two members of one name, no media; for a sample: damaged
    captions, too large, or the shard has changed).
    """

    def __init__(self, path: str | Path) -> None:
        self._shards = [_described(file, name) for name, file in files_at(Path(path), (".tar",))]
        self._ends = list(accumulate(shard.count for shard in self._shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        number, row = located(self._ends, index)
        return _opened(self._shards[number]).sample(row)


@dataclass(frozen=True)
class _Shard:
    """``stamp``: size and time of change, by which a change is noticed; ``index``: only if it could not be written."""

    name: str
    path: Path
    stamp: tuple[int, int]
    count: int
    index: _Index | None = field(default=None, compare=False)


@dataclass(frozen=True)
class _Index:
    """``names`` of the media of S samples; ``spans`` (S, 4, 2) int64: offset and size of media, .txt, .json, .cls."""

    names: list[str]
    spans: np.ndarray

    def packed(self, stamp: tuple[int, int]) -> bytes:
        """Bytes of the file beside a shard: SHA-256 of the rest, then msgpack."""
        body = msgpack.encode([_VERSION, stamp, self.names, self.spans.astype("<i8").tobytes()])
        return hashlib.sha256(body).digest() + body

    @staticmethod
    def unpacked(data: bytes, stamp: tuple[int, int]) -> _Index | None:
        """None where the bytes are damaged, of another version, or of a shard as it was before."""
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        with suppress(ValueError, MsgspecError):  # the index may come from whoever made the shard
            version, of, names, spans = msgpack.decode(data[32:], type=tuple[int, tuple[int, int], list[str], bytes])
            index = _Index(names, np.frombuffer(spans, "<i8").reshape(-1, 1 + len(_BESIDE), 2))
            if version == _VERSION and of == stamp and len(index.names) == len(index.spans) > 0:
                return index
        return None


class _Opened:
    """A shard that this process has open; it is closed with the last reference to it."""

    def __init__(self, shard: _Shard) -> None:
        with _translated(shard.path):
            self._shard, self._descriptor = shard, os.open(shard.path, os.O_RDONLY)
            self._check_unchanged()
            self._index = shard.index or _indexed(self._descriptor, shard.path)[0]

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def _check_unchanged(self) -> None:
        if stamp_of(os.fstat(self._descriptor)) != self._shard.stamp:
            raise MediaError(f"The shard {self._shard.path} has changed since the run began; start the run again.")

    def sample(self, row: int) -> Sample:
        self._check_unchanged()
        key, suffix = split_name(self._index.names[row])
        media, *beside = self._index.spans[row].tolist()
        what = f"{self._shard.name}/{key}"
        text, record, label = (self._member(span, MOST_TEXT, what) for span in beside)
        captions, about = captions_in(text, record, what)
        if label is not None:
            about = {"cls": label.decode(errors="backslashreplace"), **about}
        return Sample(what, self._member(media, MOST_MEDIA, what) or b"", suffix, captions, about)

    def _member(self, span: tuple[int, int], most: int, what: str) -> bytes | None:
        offset, size = span
        if size < 0:
            return None
        if size > most:
            raise MediaError(f"A member of {what} has {size:,} bytes, over the limit of {most:,}; make it smaller.")
        with _translated(self._shard.path):
            data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            raise MediaError(f"{what} is incomplete: the shard {self._shard.path} is truncated; pack it again.")
        return data


@lru_cache(maxsize=_OPEN)
def _opened(shard: _Shard) -> _Opened:
    return _Opened(shard)


def _described(path: Path, name: str) -> _Shard:
    with _translated(path):
        if not path.is_file():
            raise MediaError(f"There is no shard {path}; name a .tar file, or a folder of them.")
        with path.open("rb") as file:
            index, kept = _indexed(file.fileno(), path)
            return _Shard(name, path, stamp_of(os.fstat(file.fileno())), len(index.names), None if kept else index)


def _indexed(descriptor: int, path: Path) -> tuple[_Index, bool]:
    """The index of an open shard, and whether the file beside it holds it now."""
    stamp, beside = stamp_of(os.fstat(descriptor)), path.with_name(path.name + ".index")
    with suppress(OSError):
        index = _Index.unpacked(beside.read_bytes(), stamp)
        if index is not None:
            return index, True
    index = _scanned(descriptor, path)
    with suppress(MediaError), atomic_path(beside, MediaError) as temporary:  # a read-only folder, or a full disk
        temporary.write_bytes(index.packed(stamp))
        return index, True
    return index, False


def _scanned(descriptor: int, path: Path) -> _Index:
    """Read all headers of a shard. Raises: MediaError."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    left_out = 0
    for entry in entries(descriptor, path):
        parts = [part for part in entry.name.split("/") if part not in ("", ".")]
        if entry.kind not in FILES or entry.name.startswith("/") or ".." in parts:
            left_out += entry.kind != FOLDER
            continue
        key, suffix = split_name("/".join(parts))
        if suffix not in _KEPT:
            continue
        if groups.setdefault(key, {}).setdefault(suffix, (entry.offset, entry.size)) != (entry.offset, entry.size):
            raise MediaError(f"The shard {path} has two members {key}{suffix}; pack it again with one of them.")
    if left_out:
        reason = "links, devices, or names that lead outside"
        warnings.warn(f"{left_out} members of the shard {path} are left out: {reason}.", AtokenWarning, stacklevel=2)
    return _index_of(groups, path)


def _index_of(groups: dict[str, dict[str, tuple[int, int]]], path: Path) -> _Index:
    names, spans, preferred = [], [], list(reversed(MODALITIES.values()))  # assets, videos, images
    for key, members in groups.items():
        media = next((suffix for of in preferred for suffix in members if suffix in of.suffixes), None)
        if media is not None:
            names.append(key + media)
            spans.append([members[media], *(members.get(suffix, _ABSENT) for suffix in _BESIDE)])
    if not names:
        raise MediaError(f"The shard {path} holds no image, video or 3D asset; leave it out.")
    return _Index(names, np.array(spans, np.int64))


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: ``a.b/c.seg.PNG`` -> ``a.b/c``, ``.seg.png``; no suffix for a hidden file."""
    folder, slash, file = name.rpartition("/")
    stem, dot, rest = file.partition(".")
    return (folder + slash + stem, (dot + rest).lower()) if stem else (name, "")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MediaError(f"Cannot read the shard {path}: {error.strerror}.") from error
