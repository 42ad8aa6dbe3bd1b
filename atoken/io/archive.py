"""The outer layer of a token file: prefix, chunks one after another, table of contents, footer.

``docs/token-file.md`` describes the bytes. Everything that comes from a file is untrusted and checked before use.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from atoken.atomic import Target, atomic_path, called
from atoken.errors import TokenFileError
from atoken.io.chunks import Chunk, Levels, decode, encode
from atoken.io.contents import MAX_TOC, Item, pack, unpack
from atoken.media.source import Source, missing, name_of, opened

VERSION = 3
_PREFIX = struct.Struct("<4sHH")  # magic, version, reserved
_FOOTER = struct.Struct("<QQ32s4s")  # offset and length of the table of contents, SHA-256 of prefix and table, magic
_START = _PREFIX.pack(b"ATOK", VERSION, 0)
_END_MAGIC = b"KOTA"


class ArchiveWriter:
    """Writes chunks, then the table of contents of ``items``; the file appears at ``target`` when the block ends well.

    ``target``: a path, or a binary file object, which gets the whole file at the end of the block. ``compress``: chunks
    are as small as the codecs make them; without, they are raw, which is much faster. ``durable``: as ``atomic_path``.
    Raises: TokenFileError, also when the block ends without an item.
    """

    def __init__(self, target: Target, *, compress: bool = True, durable: bool = True) -> None:
        self._target = target
        self._compress, self._durable = compress, durable
        self.items: list[Item] = []
        self.checksums: list[bytes] = []  # SHA-256 of all bytes of each item
        self._end = len(_START)  # of the last complete item

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self._target, TokenFileError, durable=self._durable))
            self._file = stack.enter_context(temporary.open("xb"))
            self._file.write(_START)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> bool | None:
        if kind is not None:
            return self._stack.__exit__(kind, *error)  # type: ignore[arg-type]
        with self._stack:  # so that a failure here, too, removes the temporary file
            self._finish()
        return None

    def begin(self) -> None:
        """Start an item, over the remains of one that failed."""
        self._file.seek(self._end)
        self._checksum = hashlib.sha256()

    def put(self, array: np.ndarray, dtype: str, levels: Levels | None = None) -> Chunk:
        """Write an array. Raises: TokenFileError."""
        chunk, data = encode(array, dtype, levels, self._file.tell(), compress=self._compress)
        self._write(data)
        return chunk

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._checksum.update(data)

    def complete(self, item: Item) -> None:
        """End an item, all chunks of which are written."""
        self.items.append(item)
        self.checksums.append(self._checksum.digest())
        self._end = self._file.tell()

    def append(self, archive: Archive) -> None:
        """Copy all items of an open token file, their chunks as they are, unchecked. Raises: TokenFileError."""
        for item in archive.items:
            self.begin()
            moved = item.moved(self._end - next(item.chunks()).offset)
            for data in archive.stored(item):
                self._write(data)
            self.complete(moved)

    def _finish(self) -> None:
        if not self.items:
            raise TokenFileError(f"{called(self._target)} would hold no item; a token file needs at least one.")
        contents = pack(self.items)
        digest = hashlib.sha256(_START + contents).digest()
        self._file.seek(self._end)
        self._file.write(contents + _FOOTER.pack(self._end, len(contents), digest, _END_MAGIC))
        self._file.truncate()


class Archive:
    """An open token file: ``items``, and ``get`` for their arrays; use ``with``.

    ``source``: a path, bytes, or a binary file, which is read to its end at once. ``items``: where they are known; the
    table of contents is then not read.
    Raises: TokenFileError for a file that is missing, damaged, changed, or of another version; MediaError for an object
    that gives no bytes.
    """

    items: tuple[Item, ...]

    def __init__(self, source: Source, *, items: tuple[Item, ...] | None = None) -> None:
        self.name = name_of(source)
        with ExitStack() as stack, _faults_of(self.name):
            self._file = stack.enter_context(_opened(source, self.name))
            self.items = _read_contents(self._file, self.name) if items is None else items
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; ``items`` stays readable."""
        self._stack.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Name the file in every error of the block. Raises: TokenFileError (also if the file is closed)."""
        if self._file.closed:
            raise TokenFileError(f"{self.name} was closed; open it again to read it.")
        with _faults_of(self.name):
            yield

    def get(self, chunk: Chunk, dtype: str, levels: Levels | None = None) -> np.ndarray:
        """Read an array. Raises: TokenFileError."""
        return decode(chunk, _bytes(self._file, chunk.offset, chunk.stored), dtype, levels)

    def stored(self, item: Item) -> Iterator[bytes]:
        """The bytes of an item, chunk by chunk as they lie in the file. Raises: TokenFileError."""
        for chunk in item.chunks():
            with self.reading():
                data = _bytes(self._file, chunk.offset, chunk.stored)
            yield data


def _opened(source: Source, name: str) -> BinaryIO:
    if not isinstance(source, str | Path):
        return opened(source, name)
    if not Path(source).is_file():  # a pipe would block, a device would never end
        raise _UnreadableError(f"There is no token file {name}; {missing(name, 'check the path')}.")
    return Path(source).open("rb")


def _read_contents(file: BinaryIO, name: str) -> tuple[Item, ...]:
    size = file.seek(0, os.SEEK_END)
    _check_start(_bytes(file, 0, min(size, len(_START))), name)
    end = size - _FOOTER.size
    offset, length, digest, magic = _FOOTER.unpack(_bytes(file, max(end, 0), _FOOTER.size))
    if magic != _END_MAGIC or offset < len(_START) or length > MAX_TOC or offset + length != end:
        raise TokenFileError("it was cut short or something was added to it.")
    contents = _bytes(file, offset, length)
    if hashlib.sha256(_START + contents).digest() != digest:
        raise TokenFileError("the check sum of its table of contents is wrong.")
    return unpack(contents, len(_START), offset)


def _check_start(start: bytes, name: str) -> None:
    magic, version, reserved = _PREFIX.unpack(start.ljust(len(_START), b"\0"))
    if magic != b"ATOK":
        raise _UnreadableError(f"{name} is not a token file; give one that AToken wrote.")
    if version > VERSION:
        raise _UnreadableError(f"{name} has format version {version}, newer than {VERSION}; update AToken to read it.")
    if 0 < version < VERSION:
        raise _UnreadableError(
            f"{name} has format version {version}, which this AToken no longer reads (it reads {VERSION}); encode the "
            "original again."
        )
    if version != VERSION or reserved:
        raise TokenFileError("its first bytes are wrong.")


def _bytes(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise TokenFileError("it ends too early.")
    return data


class _UnreadableError(TokenFileError):
    """Already a whole sentence with the file's name in it."""


@contextmanager
def _faults_of(name: str) -> Iterator[None]:
    """Make one sentence with the file's name in it of whatever is wrong with a file."""
    try:
        yield
    except _UnreadableError as error:
        raise TokenFileError(str(error)) from error
    except TokenFileError as error:
        raise TokenFileError(
            f"{name} is damaged, {str(error).rstrip('.')}; make it again or get another copy."
        ) from error
    except OSError as error:
        raise TokenFileError(f"Cannot read {name}: {error.strerror or error}.") from error
