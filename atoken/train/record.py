"""What a run was started with: the resolved stage, versions of packages, and the state of the checkout."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from atoken.train.stages import Stage


def record(stage: Stage, step: int, teachers: Mapping[str, str]) -> dict[str, Any]:
    """All of it as plain values for JSON.

    step: where this start of the run begins. teachers: SHA-256 of the frozen networks' files, none without teachers.
    """
    found = {"step": step, "stage": _plain(stage), "teachers": dict(teachers)}
    return {**found, "versions": versions(), "git": git_state(Path(__file__).parent)}


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
    if hasattr(value, "items"):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value.__name__ if callable(value) else value
