"""What a run was started with: stage, data and model, all resolved, versions of packages, state of the checkout."""

from __future__ import annotations

import platform
import re
import subprocess
import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from atoken.errors import AtokenWarning, CheckpointError
from atoken.pretrain.data_file import Data
from atoken.pretrain.stages import Stage

WHOLE = ("stage.mixture.", "data.")  # where a key more or less is a change, too; elsewhere it is a newer field
FIXED = ("stage.preset", "stage.name", "stage.seed", "data.", "start")  # as long as a run lasts


def record(
    stage: Stage, step: int, data: Data, start: Path | None, launch: Mapping[str, Any], teachers: Mapping[str, str]
) -> dict[str, Any]:
    """All of it as plain values for JSON.

    step: where this start of the run begins. start: folder of the model that it was given. launch: on what it runs.
    teachers: SHA-256 of the frozen networks' files, none without teachers.
    """
    found = {"step": step, "stage": _plain(stage), "data": _plain(data), "start": _plain(start), "launch": dict(launch)}
    return {**found, "teachers": dict(teachers), "versions": versions(), "git": git_state(Path(__file__).parent)}


def check_goes_on(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Whether what a folder holds may go on as ``now``; both as ``record`` gives them, in JSON.

    Rates, sizes and mixture may change on the way, which is said as an AtokenWarning. Raises: CheckpointError for what
    is ``FIXED``, and for any change of a run that is done.
    """
    before = {**now, **before}  # an earlier version recorded less
    tables = _tables(before) & _tables(now)
    there, here = _compared(before, tables), _compared(now, tables)
    if here["start"] is None:
        del there["start"]  # a run that resumes need not name it again
    keys = [key for key in (*there, *(set(here) - set(there))) if key in there or key.startswith(WHOLE)]
    changed = [key for key in dict.fromkeys(keys) if there.get(key) != here.get(key)]
    if not changed:
        return
    said = "; ".join(f"{key}: {there.get(key)}, now {here.get(key)}" for key in changed)
    done = now["step"] >= now["stage"]["steps"]
    if done or any(key.startswith(FIXED) for key in changed):
        raise CheckpointError(
            f"{folder} holds {'a finished' if done else 'another'} run ({said}); name another folder with -o, or "
            "remove that one."
        )
    warnings.warn(f"The run in {folder} goes on otherwise than it began ({said}).", AtokenWarning, stacklevel=3)


def _compared(started: Mapping[str, Any], tables: Collection[str]) -> dict[str, Any]:
    """By key what makes a run that run: its stage with the tasks that it uses, its data, and the model it began with.

    Steps are left out: a run may always be made longer. Of the data, these tables.
    """
    stage, data = dict(started["stage"]), started["data"]
    del stage["steps"]
    stage["tasks"] = {name: stage["tasks"][name] for name in _used(started)}
    sources = {"procedural": data["file"] == "procedural", "seed": data["seed"]}
    read = {name: data["tables"][name] for name in tables}
    return _flat({"stage": stage, "data": sources | read, "start": started["start"]})


def _used(started: Mapping[str, Any]) -> list[str]:
    return [*started["stage"]["mixture"], *started["stage"]["auxiliary"]]


def _tables(started: Mapping[str, Any]) -> set[str]:
    """The tables of the data that the tasks may read: their own, or those of their media."""
    tasks = started["stage"]["tasks"]
    return {
        name for task in _used(started) for name in (task, tasks[task]["modality"]) if name in started["data"]["tables"]
    }


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return found


def versions() -> dict[str, str]:
    """Versions of Python, of AToken, and of what it requires and its extras may add, where installed."""
    found = {"python": platform.python_version()}
    names = [match[0] for line in requires("atoken") or [] if (match := re.match(r"[\w.-]+", line))]
    for name in dict.fromkeys(["atoken", *names]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and changed files of the checkout that a folder is in; None outside of one, or without git."""
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "."))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.strip(), "changed": [line[3:] for line in changes.splitlines()]}


def _plain(value: Any) -> Any:
    """Dataclasses and mappings by name, sequences as lists, functions by their names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Path):
        return str(value.resolve()) if value != Path() else None  # of a source that has no path
    if hasattr(value, "items"):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value.__name__ if callable(value) else value
