"""The headers of a tar file, read one by one: nothing is unpacked, no link is followed, no name in it is opened.

The formats are POSIX ustar and pax, and GNU's; https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html.
Python's tarfile is not used because it allocates as much memory as a header asks for, accepts truncated files, and
skips malformed pax records.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from atoken.errors import MediaError

BLOCK = 512  # bytes
FOLDER, FILES = "5", ("0", "\0", "7")
_BARE = ("1", "2", "3", "4", FOLDER, "6")  # links, devices, folders, pipes: no data follows, whatever their size says
_PAX, _LONG_NAME, _SKIPPED = ("x", "X"), "L", ("g", "K")  # headers about the next member, the last two unused
_SPARSE = "S"
_MOST_NAME = 1 << 20  # bytes of a long name, or of a pax header
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


class Entry(NamedTuple):
    """A member: its ``kind`` (tar's type flag), and the ``offset`` in the file at which its ``size`` bytes begin."""

    name: str
    kind: str
    offset: int
    size: int


def entries(descriptor: int, path: Path) -> Iterator[Entry]:
    """Each member of an open tar file. The end mark is required, so that a truncated file is refused.

    Raises: MediaError (truncated, damaged, compressed, with sparse members), possibly after some members.
    """
    tar, at = _Tar(descriptor, path), 0
    stated: dict[bytes, bytes] = {}  # by the headers in front of the member's own
    while (header := tar.read(at, BLOCK, at)) != bytes(BLOCK):
        kind, size, data = tar.kind(header, at), tar.number(header[124:136], at), at + BLOCK
        if kind in _PAX:
            stated |= tar.records(tar.read(data, size, at), at)
        elif kind == _LONG_NAME:
            stated[b"path"] = tar.read(data, size, at).rstrip(b"\0")
        elif kind not in _SKIPPED:
            entry = tar.entry(header, kind, stated, at)
            size, stated = entry.size, {}
            yield entry
        at = data + -(-size // BLOCK) * BLOCK


class _Tar:
    """Reads and checks parts of headers. ``at``, in every method: offset of the header, for error messages."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor, self.path = descriptor, path
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, size: int, at: int) -> bytes:
        if size > _MOST_NAME:
            raise self.damaged(at, f"a name of {size:,} bytes")
        data = os.pread(self.descriptor, size, offset)
        if len(data) < size:
            raise self.damaged(at, "it ends early")
        return data

    def kind(self, header: bytes, at: int) -> str:
        field = header[148:156]
        if sum(header) - sum(field) + 8 * ord(" ") != self.number(
            field, at
        ):  # the checksum field itself counts as spaces
            raise self.damaged(at, "this is not a tar header; the file may be compressed")
        return chr(header[156])

    def number(self, field: bytes, at: int) -> int:
        if field[:1] == b"\x80":  # GNU's form of numbers that are too large for octal digits
            return int.from_bytes(field[1:])
        digits = _OCTAL.fullmatch(field)
        if digits is None:
            raise self.damaged(at, "a size or checksum is not a number")
        return int(digits[1] or b"0", 8)

    def records(self, data: bytes, at: int) -> dict[bytes, bytes]:
        """Values of a pax header, each ``length key=value`` and a line feed, the length counting all of it."""
        found, start = {}, 0
        while start < len(data):
            head = _RECORD.match(data, start)
            stop = start + int(head[1]) if head else 0
            if head is None or not head.end() < stop <= len(data):
                raise self.damaged(at, "a pax header is malformed")
            found[head[2]], start = data[head.end() : stop - 1], stop
        return found

    def entry(self, header: bytes, kind: str, stated: dict[bytes, bytes], at: int) -> Entry:
        name = stated.get(b"path") or _name(header)
        if kind == _SPARSE or any(key.startswith(b"GNU.sparse") for key in stated):
            raise self.damaged(at, "it has sparse members; pack it without --sparse")
        if kind == "\0" and name.endswith(b"/"):  # how folders were marked before POSIX
            kind = FOLDER
        size = 0 if kind in _BARE else self.number(header[124:136], at)
        if kind not in _BARE and b"size" in stated:
            size = self.decimal(stated[b"size"], at)
        if at + BLOCK + size > self.size:
            raise self.damaged(at, "it ends early, or a size is wrong")
        return Entry(name.decode(errors="backslashreplace"), kind, at + BLOCK, size)

    def decimal(self, digits: bytes, at: int) -> int:
        if not digits.isdigit() or len(digits) > 20:
            raise self.damaged(at, "a size or checksum is not a number")
        return int(digits)

    def damaged(self, at: int, reason: str) -> MediaError:
        return MediaError(f"The shard {self.path} is truncated or damaged at byte {at:,} ({reason}); pack it again.")


def _name(header: bytes) -> bytes:
    """The name in a member's own header; ustar, but not GNU, has a separate field for the front of a long name."""
    name, front = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return front + b"/" + name if front and header[257:263] == b"ustar\0" else name
