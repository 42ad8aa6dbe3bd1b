"""The TOML file, or the one folder of media, that says what a run is trained on.

It has a table for each modality (``image``, ``video``, ``asset``) or task, and in it one for each source, whose name is
free; a task's own table goes before that of its modality. A source has a folder of media, shards (a ``.tar`` file or a
folder of them), a table (a ``.parquet``, ``.arrow`` or ``.feather`` file or a folder of them; ``media`` and
``captions`` name its columns), or the generator, which has four series: all that it makes (``mixed``), one object of
a nameable class (``labelled``), images of one class that differ in their grounds (``grounded``), images of several
objects (``scenes``). Paths are relative to the file::

    seed = 0            # of the order of samples
    most_broken = 0.1   # share of samples that may be broken before the run stops

    [image.photos]
    folder = "photos"
    weight = 3          # of each source, 1 if left out

    [image.more]
    table = "more.parquet"
    captions = "text"

    [image-text.captioned]
    shards = "captioned"

    [video.generated]
    procedural = "mixed"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoken.errors import MediaError
from atoken.pretrain.curriculum import CURRICULA

MEDIA = ("image", "video", "asset")  # modalities that sources give; crops of assets are always generated
KINDS = ("folder", "shards", "table", "procedural")
SERIES = ("mixed", "labelled", "grounded", "scenes")  # of the generator
WANTED = "name a TOML file or a folder of media, or write procedural"
COLUMNS = ("media", "captions")
ALLOWED = {
    **dict.fromkeys(("folder", "shards", "table"), "a path"),
    "procedural": f"one of {', '.join(SERIES)}",
    "weight": "a whole number from 1 on",
    **dict.fromkeys(COLUMNS, "the name of a column, of a table only"),
}


@dataclass(frozen=True)
class Origin:
    """One source: ``kind`` is one of ``KINDS``, ``series`` is the generator's, and two names are columns of a table."""

    kind: str
    path: Path = Path()
    series: str = "mixed"
    weight: int = 1
    media: str | None = None
    captions: str | None = None


@dataclass(frozen=True)
class Data:
    """What ``file`` holds; ``tables``: sources by name, by modality or task."""

    file: str
    tables: Mapping[str, Mapping[str, Origin]]
    seed: int = 0
    most_broken: float = 0.1

    def origins(self, task: str, modality: str) -> tuple[str, Mapping[str, Origin]]:
        """The table of a task, or else of its modality, and its sources. Raises: MediaError (there is neither)."""
        for name in (task, modality):
            if name in self.tables:
                return name, self.tables[name]
        wanted = " or ".join(f"[{name}.SOURCE]" for name in dict.fromkeys((task, modality)))
        raise MediaError(f"{self.file} has no source for the task {task}; add a table {wanted} with {_listed(KINDS)}.")


def read_data(path: Path, tasks: Iterable[str]) -> Data:
    """Read and check a file; it may be about media, ``tasks``, and those of the curricula.

    A folder stands for the file that has it as the one source of every modality. Raises: MediaError (one sentence:
    file, table, key, and what is allowed).
    """
    if path.is_dir():
        return Data(str(path), {modality: {"files": Origin("folder", path)} for modality in MEDIA})
    try:
        stated = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MediaError(f"Cannot read {path}: {error.strerror}; {WANTED}.") from error
    except UnicodeDecodeError as error:
        raise MediaError(f"Cannot read {path}: it is no text; {WANTED}.") from error
    except (ValueError, RecursionError) as error:
        raise MediaError(f"Cannot read {path}: it is no TOML ({str(error).rstrip('.')}).") from error
    numbers = {key: stated.pop(key) for key in ("seed", "most_broken") if key in stated}
    _check_numbers(path, **numbers)
    names = list(dict.fromkeys([*MEDIA, *tasks, *_planned()]))
    return Data(str(path), {name: _table(path, name, table, names) for name, table in stated.items()}, **numbers)


def _planned() -> list[str]:
    """Tasks of all curricula: one file may serve all stages."""
    stages = [stage for stages in CURRICULA.values() for stage in stages.values()]
    return [name for stage in stages for name, task in stage.tasks.items() if task.modality in MEDIA]


def _check_numbers(path: Path, seed: object = 0, most_broken: object = 0) -> None:
    if type(seed) is not int or seed < 0:
        raise MediaError(f"{path}: seed must be a whole number from 0 on, not {seed}.")
    if type(most_broken) not in (int, float) or not 0 <= most_broken <= 1:  # type: ignore[operator]
        raise MediaError(f"{path}: most_broken must be a number from 0 to 1, not {most_broken}.")


def _table(path: Path, name: str, table: Any, names: list[str]) -> Mapping[str, Origin]:
    if name not in names:
        raise MediaError(f"{path}: {name} is unknown; there are seed, most_broken, and tables for {_listed(names)}.")
    if not isinstance(table, dict) or not table or not all(isinstance(source, dict) for source in table.values()):
        raise MediaError(f"{path}: [{name}] must hold a table for each source, such as [{name}.mine].")
    return {source: _origin(path, f"[{name}.{source}]", values) for source, values in table.items()}


def _origin(path: Path, table: str, stated: dict[str, Any]) -> Origin:
    kinds = [key for key in KINDS if key in stated]
    if len(kinds) != 1:
        raise MediaError(f"{path}: {table} must have one of {_listed(KINDS)}, not {_listed(kinds) or 'none'}.")
    for key, value in stated.items():
        if key not in ALLOWED:
            raise MediaError(f"{path}: {table} has no {key}; there are {_listed(ALLOWED)}.")
        if not _is_allowed(key, value) or (key in COLUMNS and kinds != ["table"]):
            raise MediaError(f"{path}: {key} of {table} must be {ALLOWED[key]}, not {value!r}.")
    kind = kinds[0]
    rest = {key: value for key, value in stated.items() if key != kind}
    if kind == "procedural":
        return Origin(kind, series=stated[kind], **rest)
    return Origin(kind, path.parent / stated[kind], **rest)


def _is_allowed(key: str, value: object) -> bool:
    if key == "weight":
        return type(value) is int and value >= 1
    return value in SERIES if key == "procedural" else isinstance(value, str) and value != ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
