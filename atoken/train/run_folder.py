"""The folder of a run: its logs and notes, and what a resumed run takes back of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from atoken.errors import CheckpointError


class RunFolder:
    """``log.jsonl``, other logs and notes under one folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.log_path = self.path / "log.jsonl"

    def log(self, row: dict[str, Any], name: str = "log") -> None:
        """Append one line of JSON to ``name.jsonl``. Raises: CheckpointError."""
        with writing(path := self.path / f"{name}.jsonl"), path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def note(self, name: str, values: dict[str, Any]) -> None:
        """Write ``name.json``, in place of one of that name. Raises: CheckpointError."""
        _replace(self.path / f"{name}.json", json.dumps(values, indent=1) + "\n")

    def noted(self, beginning: str) -> dict[str, Any] | None:
        """The last note, by name, whose name begins so; None where there is none."""
        found = sorted(self.path.glob(f"{beginning}*.json"), key=step_of)
        return json.loads(found[-1].read_text()) if found else None

    def rewind(self, step: int) -> None:
        """Drop what a run resumed at ``step`` will write again: lines of all logs, those cut short, images.

        Notes of later starts and unfinished checkpoints of a killed run are removed, too. Raises: CheckpointError.
        """
        for note in self.path.glob("start-*.json"):
            if step_of(note) > step:
                note.unlink()
        for path in self.path.glob("*.jsonl"):
            rows = [line for line in path.read_text().splitlines(keepends=True) if _logged_step(line) < step]
            _replace(path, "".join(rows))
        for image in self.path.glob("images/step-*.png"):
            if step_of(image) >= step:
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


def rank_of_launch() -> int:
    """Which of the processes that a launcher started this is; 0 without one."""
    return int(os.environ.get("RANK", 0))


def step_of(path: Path) -> int:
    """The number at the end of a name; as text, a million would stand before 999,750."""
    return int(path.stem.rpartition("-")[2])


def _logged_step(line: str) -> float:
    """The step of a line of a log; none comes before that of a line that was cut short."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else inf
    except ValueError:
        return inf
