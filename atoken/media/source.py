"""What media are read from: a path, bytes, or an open binary file; and one sentence for whatever a parser raises."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from atoken.errors import AtokenError, MediaError

Source = str | Path | bytes | BinaryIO


def name_of(source: Source, name: str | None = None) -> str:
    """What to call a source in messages: ``name``, else its path, else what it is."""
    if name is None:
        name = str(source) if isinstance(source, str | Path) else getattr(source, "name", None)
    return name if isinstance(name, str) else "<bytes>" if isinstance(source, bytes) else "<file>"


def opened(source: Source, name: str, *, for_child: bool = False) -> BinaryIO:
    """Open a source for reading from its start; the caller closes the result.

    A file object is read to its end from where it stands and left open. ``for_child``: the result has a descriptor that
    a child process can be given, which for bytes is that of a file in memory. Raises: MediaError (a missing file,
    something other than a plain file, an object that gives no bytes).
    """
    try:
        if isinstance(source, str | Path):
            return _opened_path(str(source))
        data = source if isinstance(source, bytes) else source.read()
        if not for_child:
            return io.BytesIO(data)
        copy = _file_in_memory()
        copy.write(data)
        copy.seek(0)
        return copy
    except OSError as error:
        raise MediaError(f"Cannot read {name}: {error.strerror or error}.") from error
    except (AttributeError, TypeError) as error:
        raise MediaError(
            f"Cannot read {name}: a {type(source).__name__} gives no bytes; pass a path, bytes, or a file opened with "
            "mode 'rb'."
        ) from error


def missing(path: str | Path, otherwise: str = "there is no such file") -> str:
    """Why there is nothing at a path, as a clause without a full stop."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE):  # but not C:/
        return "it is an address, and nothing is fetched; download the file first"
    return otherwise


def _opened_path(text: str) -> BinaryIO:
    path = Path(text)
    if not path.exists():
        raise MediaError(f"Cannot read {text}: {missing(text)}.")
    if not path.is_file():  # opening a pipe or a device could wait for ever
        what = "a folder, not a file; name the files in it" if path.is_dir() else "not a file"
        raise MediaError(f"Cannot read {path}: it is {what}.")
    return path.open("rb")


def _file_in_memory() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("atoken"), "w+b")
    return TemporaryFile()


@contextmanager
def error_prefix(name: str) -> Iterator[None]:
    """Put ``name`` before the sentence of an error that does not say which of several inputs it is about."""
    try:
        yield
    except AtokenError as error:
        if name not in str(error):
            error.args = (f"{name}: {error}",)
        raise


@contextmanager
def translated(failed: str) -> Iterator[None]:
    """Make one sentence, a MediaError that begins with ``failed``, of whatever a parser raises."""
    try:
        yield
    except AtokenError:
        raise
    except MemoryError as error:
        raise MediaError(f"{failed}: there is not enough memory for it.") from error
    except Exception as error:  # parsers raise nearly any type on damaged input
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        damage = "it is damaged, truncated, malformed or of an unsupported variant"
        raise MediaError(f"{failed}: {damage} ({reason}).") from error
