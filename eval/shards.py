"""Results of a run as files, one for each shard of items: written atomically, checked when read, never unpickled.

A shard holds the state of every metric after its items, and the line of each item. Which items a shard has does not
depend on who measures it, so that ranks and interruptions change nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoken.atomic import atomic_path
from atoken.errors import ReportError
from eval.contract import State

ItemLine = dict[str, Any]  # of the file of items, see eval/protocol.py
_NOTES = "notes"  # the array of a shard that is JSON
_SHA256 = 32  # bytes of the digest at the end of a file, after what NumPy reads


@dataclass(frozen=True)
class Shard:
    """states: by metric. lines: one for each item, in order. faults: why a metric has no state here."""

    states: Mapping[str, State]
    lines: Sequence[ItemLine]
    faults: Mapping[str, str]


class ShardFolder:
    """The shards of one run. ``run`` names what is measured: the files of another run do not count."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{number:06d}.npz"

    def write(self, number: int, shard: Shard) -> None:
        """Write a shard atomically. Raises: ReportError."""
        notes = json.dumps({"run": self.run, "lines": shard.lines, "faults": dict(shard.faults)})
        arrays = {f"{metric}/{name}": array for metric, state in shard.states.items() for name, array in state.items()}
        arrays[_NOTES] = np.frombuffer(notes.encode(), np.uint8)
        assert not any(array.dtype.hasobject for array in arrays.values())  # they would be pickled
        packed = io.BytesIO()
        np.savez(packed, **arrays)  # type: ignore[arg-type] # the stubs take names for options
        make_folder(self.folder)
        with atomic_path(self.path(number), ReportError) as temporary:
            temporary.write_bytes(packed.getvalue() + hashlib.sha256(packed.getbuffer()).digest())

    def read(self, number: int) -> Shard | None:
        """A shard, or None where it is missing, damaged, or of another run. Raises: ReportError where it is locked."""
        try:
            data = self.path(number).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ReportError(f"Cannot read {self.path(number)}: {error.strerror or error}.") from error
        packed, stated = data[:-_SHA256], data[-_SHA256:]
        if hashlib.sha256(packed).digest() != stated:
            return None
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            return self._shard({name: file[name] for name in file.files})

    def _shard(self, arrays: dict[str, np.ndarray]) -> Shard | None:
        notes = json.loads(arrays.pop(_NOTES).tobytes())
        states: dict[str, State] = {}
        for name, array in arrays.items():
            metric, _, part = name.partition("/")
            states.setdefault(metric, {})[part] = array
        return Shard(states, notes["lines"], notes["faults"]) if notes["run"] == self.run else None

    def clear(self) -> None:
        """Remove all shards, also those that a kill left half written."""
        for path in [*self.folder.glob("*.npz"), *self.folder.glob(".*.part")]:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it may hold a file of the user's, or was never made
            self.folder.rmdir()


def make_folder(folder: Path) -> None:
    """Make a folder unless it exists. Raises: ReportError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"Cannot make the folder {folder}: {error.strerror or error}.") from error
