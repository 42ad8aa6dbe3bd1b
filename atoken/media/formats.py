"""File formats, recognised by first bytes and not by name: a playlist called video.mp4 is not a video.

Some formats have no magic bytes: what looks like OBJ, glTF (JSON), binary STL or TGA must also have such a name. Each
reader lists its ``FORMATS``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from atoken.errors import MediaError

_HEAD, _END = 4096, 32  # bytes that are looked at


class Head(NamedTuple):
    """What a format is known by: the first and last bytes of a file, its size, the suffix of its name in lower case.

    ``file``: the open file, for formats that need to see more of it.
    """

    start: bytes
    size: int
    suffix: str
    end: bytes
    file: BinaryIO


class Format(NamedTuple):
    """A file format.

    ``name``: what Pillow calls an image format, FFmpeg a demuxer, trimesh a 3D format. ``suffixes``: of such files, the
    usual one first. ``matches``: whether a file is one. A format of folders is known by ``folder_file`` in them.
    """

    name: str
    suffixes: tuple[str, ...]
    matches: Callable[[Head], bool]
    folder_file: str = ""


def begins(*magic: bytes) -> Callable[[Head], bool]:
    """Match files that begin with one of some byte strings."""
    return lambda head: head.start.startswith(magic)


def head_of(file: BinaryIO, name: str) -> Head:
    """Look at an open file, and rewind it. Raises: MediaError (it is empty)."""
    start = file.read(_HEAD)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _END, 0))
    end = file.read()
    file.seek(0)
    if not start:
        raise MediaError(f"Cannot read {name}: the file is empty.")
    return Head(start, size, Path(name).suffix.lower(), end, file)


def format_of(file: BinaryIO, name: str, formats: Sequence[Format], what: str) -> str:
    """Name the format of an open file, which one reader of ``what`` is to read. Raises: MediaError."""
    head = head_of(file, name)
    found = next((format.name for format in formats if format.matches(head)), None)
    if found is None:
        raise MediaError(
            f"Cannot read {name} as {what}: its content is none of the formats {listed(formats)}; use one of these, or "
            "load_media for other modalities."
        )
    return found


def listed(formats: Sequence[Format]) -> str:
    """Name formats for a person, by the usual suffix of each."""
    return ", ".join(format.suffixes[0] for format in formats if format.suffixes)
