"""Published weight files that count only with a pinned SHA-256, in a folder that the user names or in the cache.

Nothing is downloaded here; ``atoken fetch`` fills the cache (``atoken/fetch.py``).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from atoken.errors import CheckpointError, MediaError


def cache() -> Path:
    """The folder of what was fetched: $ATOKEN_CACHE, or atoken in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("ATOKEN_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "atoken"


def located(path: str, folder: Path) -> Path:
    """A path below ``folder``, or below the cache if it begins with ``fetched:``."""
    fetched = path.removeprefix("fetched:")
    return folder / path if fetched == path else cache() / fetched


def check_fetched(path: Path) -> None:
    """Raises: MediaError for a path in the cache where nothing is, with the command that brings it."""
    if cache() in path.parents and not os.path.exists(path):  # noqa: PTH110 - False in a locked folder
        raise MediaError(f"There is no {path}; run `atoken fetch {path.relative_to(cache()).parts[0]}`.")


@dataclass(frozen=True)
class PinnedFile:
    """A published file of weights: its name, its SHA-256, what it is for, and how to get it."""

    name: str
    sha256: str
    purpose: str
    how: str

    def path(self, folder: str | Path | None) -> Path | None:
        """Where the file is: in ``folder``, else in the cache; None if it is in neither."""
        paths = [Path(one) / self.name for one in (folder, cache()) if one is not None]
        return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113 - False in a locked folder

    def read(self, folder: str | Path | None, otherwise: str = "") -> bytes:
        """The file's bytes, whose SHA-256 was checked, from ``folder`` or else the cache.

        otherwise: the end of an error, what else the user can do.

        Raises: CheckpointError for a file that is missing or another one, with how to get it.
        """
        end = f", {otherwise}." if otherwise else "."
        if (path := self.path(folder)) is None:
            if folder is None:
                where = f"in {cache()} or a folder that you name"
                raise CheckpointError(f"{self.name} is needed ({self.purpose}), {where}: {self.how}{end}")
            path = Path(folder) / self.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"Cannot read {path} ({self.purpose}; {error.strerror}): {self.how}{end}") from error
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            reason = f"{self.purpose}; SHA-256 {found[:8]}… instead of {self.sha256[:8]}…"
            raise CheckpointError(f"{path} is not the published file ({reason}): {self.how}{end}")
        return data

    def tensors(self, folder: str | Path | None, otherwise: str = "") -> Mapping[str, Tensor]:
        """The tensors of a file that ``torch.save`` wrote; nothing else in it is unpickled. Raises: as ``read``."""
        return torch.load(io.BytesIO(self.read(folder, otherwise)), map_location="cpu", weights_only=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in constant memory. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def channels_last(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, those of convolutions in the memory order that a CPU is fastest with; images need it, too."""
    last = torch.channels_last
    return {name: x.contiguous(memory_format=last) if x.ndim == 4 else x for name, x in weights.items()}
