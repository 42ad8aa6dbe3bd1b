"""A run on disk: checkpoints that exist whole or not at all, and the log.

A checkpoint is written to a temporary folder, synced, listed with its SHA-256 in a manifest that comes last, and
renamed; resuming takes the newest one whose manifest verifies.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from atoken.atomic import sync
from atoken.errors import CheckpointError

KEEP = 2  # checkpoints


class RunFolder:
    """Checkpoints ``step-NNNNNN/``, ``log.jsonl`` and notes under one folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.log_path = self.path / "log.jsonl"

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Write a checkpoint, then drop all but the newest ``KEEP``. Raises: CheckpointError (a full disk, say)."""
        final = self.path / f"step-{numbers['step']:06d}"
        temporary = self.path / f".{final.name}.part"
        try:
            with writing(final):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
                save_file(whole, temporary / "state.safetensors")
                (temporary / "numbers.json").write_text(json.dumps(numbers))
                sums = {name: _sha256(temporary / name) for name in ("state.safetensors", "numbers.json")}
                (temporary / "manifest.json").write_text(json.dumps(sums))
                for file in temporary.iterdir():
                    sync(file)
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
                sync(self.path)
        except CheckpointError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in self.checkpoints()[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)  # what stays is tried again after the next one

    def checkpoints(self) -> list[Path]:
        """Folders of checkpoints, oldest first."""
        found = [path for path in self.path.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=_step_of)

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint whose files match their manifest; None where there is none at all.

        Raises: CheckpointError where all are damaged: a run that began anew would throw away the log.
        """
        for folder in reversed(self.checkpoints()):
            if verified(folder):
                return load_file(folder / "state.safetensors"), json.loads((folder / "numbers.json").read_text())
        if self.checkpoints():
            raise CheckpointError(f"All checkpoints in {self.path} are damaged; remove them to begin the run anew.")
        return None

    def log(self, row: dict[str, Any], name: str = "log") -> None:
        """Append one line of JSON to ``name.jsonl``. Raises: CheckpointError."""
        with writing(path := self.path / f"{name}.jsonl"), path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def note(self, name: str, values: dict[str, Any]) -> None:
        """Write ``name.json``, in place of one of that name. Raises: CheckpointError."""
        _replace(self.path / f"{name}.json", json.dumps(values, indent=1) + "\n")

    def noted(self, beginning: str) -> dict[str, Any] | None:
        """The last note, by name, whose name begins so; None where there is none."""
        found = sorted(self.path.glob(f"{beginning}*.json"), key=_step_of)
        return json.loads(found[-1].read_text()) if found else None

    def rewind(self, step: int) -> None:
        """Drop what a run resumed at ``step`` will write again: lines of all logs, those cut short, images.

        Notes of later starts and parts of checkpoints that a killed run left go, too. Raises: CheckpointError.
        """
        for note in self.path.glob("start-*.json"):
            if _step_of(note) > step:
                note.unlink()
        for path in self.path.glob("*.jsonl"):
            rows = [line for line in path.read_text().splitlines(keepends=True) if _logged_step(line) < step]
            _replace(path, "".join(rows))
        for image in self.path.glob("images/step-*.png"):
            if _step_of(image) >= step:
                image.unlink()
        for part in self.path.glob(".step-*.part"):
            shutil.rmtree(part, ignore_errors=True)

    def counted(self, step: int) -> dict[str, int]:
        """How many samples were drawn and broken before ``step``, as the log says."""
        lines = self.log_path.read_text().splitlines()[:step] if self.log_path.exists() else []
        last = json.loads(lines[-1]) if lines else {}
        return {name: last.get(name, 0) for name in ("drawn", "broken")}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises: CheckpointError for what keeps a file or folder of a run from being written, such as a full disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk comes as either
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Cannot write {path}: {reason}.") from error


def _replace(path: Path, text: str) -> None:
    with writing(path):
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(text)
        temporary.replace(path)


def _step_of(path: Path) -> int:
    """The number at the end of a name; as text, a million would stand before 999,750."""
    return int(path.stem.rpartition("-")[2])


def _logged_step(line: str) -> float:
    """The step of a line of a log; none comes before that of a line that was cut short."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else inf
    except ValueError:
        return inf


def verified(folder: Path) -> bool:
    """Whether the files of a checkpoint match its manifest."""
    try:
        sums = json.loads((folder / "manifest.json").read_text())
        return bool(sums) and all(_sha256(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError):  # ValueError: no JSON, no text
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
