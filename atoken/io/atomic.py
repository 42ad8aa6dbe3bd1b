"""Files that appear whole or not at all: write to a temporary name in the same folder, then rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoken.errors import AtokenError


@contextmanager
def atomic_path(path: str | Path, error: type[AtokenError]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success rename it there, on any failure remove it.

    Operating-system failures (no such folder, no space, no permission) are raised as ``error`` with one sentence.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise error(f"Cannot write {target}: {reason}.") from failure
    finally:
        temporary.unlink(missing_ok=True)
