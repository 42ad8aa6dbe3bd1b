"""Where language models come from: fetched names, folders, hub ids."""

from __future__ import annotations

from pathlib import Path

from atoken.errors import AtokenError
from atoken.metrics.pinned import cache

FETCHED = ("smollm2",)  # by ``atoken fetch``


def language_folder(source: str | Path) -> str | Path:
    """The folder of a fetched language model, by name; any other source unchanged. Raises: AtokenError."""
    if str(source) not in FETCHED:
        return source
    folder = cache() / str(source)
    if not (folder / "config.json").is_file():
        raise AtokenError(f"{source} is not in the cache; run `atoken fetch {source}`, or pass a folder or a hub id.")
    return folder
