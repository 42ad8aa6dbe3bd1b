"""What a run was started with: recipe, data and model, all resolved, versions of packages, machine, checkout."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from atoken.errors import AtokenWarning, CheckpointError
from atoken.train.recipe import Recipe
from atoken.train.run_folder import rank_of_launch

FREE = "recipe.steps"  # a run may always be made longer
FIXED = ("recipe.seed", "start")
MISSING = object()


@dataclass(frozen=True)
class Started:
    """What a run is started with, beside its recipe; all of it is recorded.

    values: what makes the run this run; when it resumes, they are compared. fixed: beginnings of the dotted names of
    those that may not change as long as the run lasts. complete: beginnings of the names of mappings in which an entry
    more or less is a change, too (``data.``: all mappings inside ``data``); elsewhere it is a field that another
    version has. start: folder of the model that it begins with. rising: names of the numbers that are better high, for
    its report. launch: what it runs on, and what is not compared.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    complete: tuple[str, ...] = ()
    start: Path | None = None
    rising: tuple[str, ...] = ()
    launch: Mapping[str, Any] = field(default_factory=dict)

    def record(self, step: int, recipe: Recipe) -> dict[str, Any]:
        """All of it as plain values for JSON. step: where this start of the run begins."""
        found = {
            "step": step,
            "recipe": recipe,
            **self.values,
            "start": self.start,
            "rising": self.rising,
            "launch": self.launch,
        }
        return {
            **plain(found), "versions": versions(), "machine": machine(), "git": git_state(Path(__file__).parent)
        }  # fmt: skip

    def check_resumable(self, before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
        """Whether the run in a folder may continue as ``now``; both as ``record`` gives them, in JSON.

        Most values may change on the way, with an AtokenWarning. Raises: CheckpointError for one that is fixed, and for
        any change of a run that is finished.
        """
        compared = {name: now[name] for name in ("recipe", *self.values, "start")}
        if compared["start"] is None:
            del compared["start"]  # a run that resumes need not name it again
        changes = {name: pair for name, *pair in self._changes(before, compared) if name != FREE}
        if not changes:
            return
        said = "; ".join(f"{name}: {there}, now {here}" for name, (there, here) in changes.items())
        finished = now["step"] >= now["recipe"]["steps"]
        if finished or any(name.startswith((*FIXED, *self.fixed)) for name in changes):
            raise CheckpointError(
                f"{folder} holds {'a finished' if finished else 'another'} run ({said}); name another folder with -o, "
                "or remove that one."
            )
        if rank_of_launch() == 0:
            warnings.warn(f"The run in {folder} continues with other settings ({said}).", AtokenWarning, stacklevel=3)

    def _changes(self, there: Mapping[str, Any], here: Mapping[str, Any], path: str = "") -> Iterator[tuple]:
        """Dotted name, value there, value here."""
        for name in dict.fromkeys((*there, *here)):
            key, pair = f"{path}.{name}".lstrip("."), (there.get(name, MISSING), here.get(name, MISSING))
            if all(isinstance(value, Mapping) for value in pair):
                yield from self._changes(*pair, key)
            elif pair[0] != pair[1] and (MISSING not in pair or path.startswith(self.complete)):
                yield key, *(None if value is MISSING else value for value in pair)


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


def machine() -> dict[str, Any]:
    """The processor as it calls itself, or its kind, and how many cores this process may use."""
    processor = platform.machine()
    with suppress(OSError):
        named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = named[1] if named else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": processor, "cores": cores}


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


def plain(value: Any) -> Any:
    """Dataclasses and mappings by name, sequences as lists, functions by their names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Path):
        return str(value.resolve()) if value != Path() else None  # of a source that has no path
    if hasattr(value, "items"):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    return value.__name__ if callable(value) else value
