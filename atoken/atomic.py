"""Files written atomically: to a temporary name in the same folder, then renamed.

What cannot be replaced (a device, a pipe, a binary file object) is written into, once everything is there.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from atoken.errors import AtokenError

Target = str | Path | BinaryIO  # what can be written: a path, or an object with ``write`` for bytes


@contextmanager
def atomic_path(target: Target, error: type[AtokenError], *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path; on success what it holds is written to ``target``, and on failure nothing is.

    A plain file is replaced in one step. A symbolic link stays, and the file that it leads to is replaced. Operating-
    system failures (no such folder, no space, no permission) are raised as ``error`` with one sentence. durable: wait
    until the disk has it; without, which takes milliseconds less, a power cut may leave a file of other contents.
    """
    if not isinstance(target, str | Path) and (not hasattr(target, "write") or isinstance(target, io.TextIOBase)):
        raise error(f"Cannot write to a {type(target).__name__}; pass a path, or a file opened with mode 'wb'.")
    try:
        replaced = _plain_file(target)
        if replaced is not None:
            with _replacing(replaced, durable) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="atoken-", ignore_cleanup_errors=True) as folder:
            temporary = Path(folder) / "part"
            yield temporary
            _copy(temporary, target)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise error(f"Cannot write {called(target)}: {reason}.") from failure


def called(target: Target) -> str:
    """What to call a target in messages: its path, or the name of the file object."""
    name = target if isinstance(target, str | Path) else getattr(target, "name", None)
    return str(name) if isinstance(name, str | Path) else "standard output" if name == 1 else "the file object"


def suffix_of(target: Target, default: str, format: str | None = None) -> str:
    """Give the suffix, in lower case and with the dot, that says in which format to write.

    It is that of ``format`` if there is one, else of the target's name; ``default`` for a file object, a device or a
    pipe without one.
    """
    if format is not None:
        return f".{format.lower().removeprefix('.')}"
    return Path(called(target)).suffix.lower() or (default if is_written_into(target) else "")


def is_written_into(target: Target) -> bool:
    """Whether a target is a device, a pipe or a file object, which cannot be replaced."""
    try:
        return _plain_file(target) is None
    except OSError:
        return False


def sync(path: Path) -> None:
    """Make what is written in a file, or the names in a folder, last through a power cut. Raises: OSError."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows keeps names by itself, and opens no folders
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain_file(target: Target) -> Path | None:
    """The file to replace, or to make; None for what can only be written into. Raises: OSError."""
    if not isinstance(target, str | Path):
        return None
    path = Path(os.path.realpath(target))
    try:
        mode = Path(target).stat().st_mode
    except FileNotFoundError:
        return path
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return path if stat.S_ISREG(mode) and path.exists() else None  # /dev/stdout may lead to a file without a name


@contextmanager
def _replacing(path: Path, durable: bool) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        with suppress(OSError):  # a read-only file system refuses even to remove what is not there
            temporary.unlink(missing_ok=True)


def _copy(source: Path, target: Target) -> None:
    with source.open("rb") as file:
        if not isinstance(target, str | Path):
            shutil.copyfileobj(file, target)
            target.flush()
            return
        with Path(target).open("wb") as opened:
            shutil.copyfileobj(file, opened)
