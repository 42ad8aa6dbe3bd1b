"""Files written atomically: to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoken.errors import AtokenError


@contextmanager
def atomic_path(path: str | Path, error: type[AtokenError]) -> Iterator[Path]:
    """Give a temporary path in the folder of ``path``; rename it to ``path`` on success, remove it on failure.

    Operating-system failures (no such folder, no space, no permission) are raised as ``error`` with one sentence.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise error(f"Cannot write {target}: {reason}.") from failure
    finally:
        temporary.unlink(missing_ok=True)


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
