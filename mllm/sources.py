"""Where models come from: bundled and fetched names, folders, hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from atoken.errors import AtokenError
from atoken.metrics.pinned import cache

FETCHED = ("smollm2",)  # language models, by ``atoken fetch``
S = TypeVar("S", bound=str | Path | None)
BUNDLED = Path(__file__).parent / "bundled"


def model_folder(source: S) -> S | Path:
    """The folder of a bundled vision-language model, by name; any other source unchanged."""
    return next((folder for folder in BUNDLED.glob("*/") if folder.name == str(source)), source)


def language_folder(source: str | Path) -> str | Path:
    """The folder of a fetched language model, by name; any other source unchanged. Raises: AtokenError."""
    if str(source) not in FETCHED:
        return source
    folder = cache() / str(source)
    if not (folder / "config.json").is_file():
        raise AtokenError(f"{source} is not in the cache; run `atoken fetch {source}`, or pass a folder or a hub id.")
    return folder
