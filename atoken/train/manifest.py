"""Folders with the SHA-256 of each of their files in ``manifest.json``, so that damage is noticed.

Neither safetensors nor JSON notices a flipped bit. The manifest is written last, and on disk before the folder gets its
name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from atoken.atomic import sync
from atoken.errors import CheckpointError

NAME = "manifest.json"


def seal(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a folder that is complete, folders in it included, and all of it to disk. Raises: OSError.

    known: SHA-256 by name, relative to the folder, of files that need not be read again; they may be outside of it.
    """
    sums = dict(known or {})
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in sums:
            sums[name] = sha256(path)
        sync(path)
    (folder / NAME).write_text(json.dumps(sums, indent=1))
    sync(folder / NAME)
    sync(folder)


def read(folder: Path) -> dict[str, str]:
    """SHA-256 of each file by its name, once all of them match. Raises: CheckpointError (which one does not)."""
    try:
        sums = json.loads((folder / NAME).read_text())
        if not sums:
            raise ValueError("it is empty")
        for name, expected in sums.items():
            if sha256(folder / name) != expected:
                raise CheckpointError(f"{folder / name} is damaged: it does not match {NAME}.")
    except (OSError, ValueError, AttributeError, TypeError) as error:  # what is no JSON, or other JSON
        raise CheckpointError(f"{folder} is damaged: {error}.") from error
    return sums


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
