"""The TOML file, or the one folder of media, that says what a run is trained on.

It has a table for each modality (``image``, ``video``, ``asset``) or task, with one table for each source, whose name
is free. A task uses its own table if there is one, else that of its modality. A source is a folder of media, shards (a
``.tar`` file or a folder of them), a table (a ``.parquet``, ``.arrow`` or ``.feather`` file or a folder of them;
``media`` and ``captions`` name its columns), or a series of the generator: everything it makes (``mixed``), one object
of a class (``labelled``), images of one class that differ in their backgrounds (``grounded``), images of several
objects (``scenes``), of one to four equal ones (``counted``), of one beside another (``placed``), videos of an object
and where it goes (``moving``). Paths are relative to the file, or to the cache of ``atoken fetch`` where they begin
with ``fetched:``. ``templates`` make captions of what the ``.json`` file of a sample says, or the columns of a table;
``label`` makes the classes of a token store of it, ``items`` says how many samples of a series are in one, and ``side``
how many pixels its squares have.
``filmed`` makes videos of images: a camera moves over each.
``cropped`` takes a random part of each image, half of them at its own resolution, for tasks with captions a part that
is nearly the whole; half of them are mirrored, unless the caption says left or
right::

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

    [image.fetched]
    shards = "fetched:photos/train"
    cropped = true
    templates = ["a photo of a {label}"]

    [video.filmed]
    shards = "fetched:photos/train"
    filmed = true
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from msgspec import Meta

from atoken.data.sources.sample import fields_of
from atoken.errors import MediaError
from atoken.metrics.pinned import check_fetched, located
from atoken.modalities import MODALITIES
from atoken.pretrain.curriculum import CURRICULA
from atoken.train.overrides import known, typed
from atoken.train.recipe import Count

SETTINGS = {"seed": Annotated[int, Meta(ge=0)], "most_broken": Annotated[float, Meta(ge=0, le=1)]}
WANTED = "name a TOML file or a folder of media, or write procedural"
SOURCE_TYPES = ("folder", "shards", "table", "procedural")
Text = Annotated[str, Meta(min_length=1)]


@dataclass(frozen=True)
class Origin:
    """One source: exactly one of the first four. ``procedural``: a series.

    ``media``, ``captions``: columns of the table. ``templates``: of captions, with fields of a sample's record, as
    ``label`` is, of the class. ``items``: of the series, which has no end; ``side``: of its squares, in pixels.
    Training has no use for the last three. ``filmed``: images, of which videos are made. ``cropped``: images, of which
    parts are taken.
    """

    folder: Text | None = None
    shards: Text | None = None
    table: Text | None = None
    procedural: Text | None = None
    weight: Count = 1
    media: Text | None = None
    captions: Text | None = None
    templates: tuple[Text, ...] = ()
    label: Text | None = None
    items: Count | None = None
    side: Count | None = None
    filmed: bool = False
    cropped: bool = False

    def check_fetched(self) -> None:
        """Raises: MediaError where its path is in the cache, and nothing is there."""
        check_fetched(Path(self.folder or self.shards or self.table or ""))

    @property
    def fields(self) -> list[str]:
        """Names between the braces of ``templates`` and ``label``. Raises: MediaError (something else is there)."""
        return sorted(set().union(*map(fields_of, (*self.templates, self.label or ""))))


KEYS = get_type_hints(Origin, include_extras=True)


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
        kinds = ", ".join(SOURCE_TYPES)
        raise MediaError(f"{self.file} has no source for the task {task}; add a table {wanted} with one of {kinds}.")


def read_data(path: Path, tasks: Iterable[str]) -> Data:
    """Read and check a file; it may have tables for modalities, ``tasks``, and those of the curricula.

    A folder is read as a file that names it as the only source of every modality. Raises: AtokenError (one sentence:
    file, table, key, and what is allowed).
    """
    if path.is_dir():
        return Data(str(path), {modality: {"files": Origin(folder=str(path))} for modality in MODALITIES})
    try:
        stated = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MediaError(f"Cannot read {path}: {error.strerror}; {WANTED}.") from error
    except UnicodeDecodeError as error:
        raise MediaError(f"Cannot read {path}: it is not a text file; {WANTED}.") from error
    except (ValueError, RecursionError) as error:
        raise MediaError(f"Cannot read {path}: it is not valid TOML ({str(error).rstrip('.')}).") from error
    settings = {key: typed(stated.pop(key), kind, f"{path}, {key}") for key, kind in SETTINGS.items() if key in stated}
    names = dict.fromkeys([*MODALITIES, *tasks, *planned()])
    for name in stated:
        known(name, names, "table or setting", str(path), f", {', '.join(SETTINGS)}")
    return Data(str(path), {name: _sources(path, name, table) for name, table in stated.items()}, **settings)


def planned() -> dict[str, str]:
    """Tasks of all curricula, and their modalities: one file may serve all stages."""
    stages = [stage for stages in CURRICULA.values() for stage in stages.values()]
    tasks = {name: task.modality for stage in stages for name, task in stage.tasks.items()}
    return {name: modality for name, modality in tasks.items() if modality in MODALITIES}


def _sources(path: Path, name: str, table: Any) -> Mapping[str, Origin]:
    sources = typed(table, Annotated[dict[str, Any], Meta(min_length=1)], f"{path}, [{name}]")
    return {source: _origin(path, f"{path}, [{name}.{source}]", stated) for source, stated in sources.items()}


def _origin(path: Path, where: str, stated: Any) -> Origin:
    for key in typed(stated, dict[str, Any], where):
        known(key, KEYS, "key", where)
    found = {key: typed(value, KEYS[key], f"{where}, {key}") for key, value in stated.items()}
    kinds = [kind for kind in SOURCE_TYPES if kind in found]
    if len(kinds) != 1:
        raise MediaError(f"{where} must have one of {', '.join(SOURCE_TYPES)}; it has {' and '.join(kinds) or 'none'}.")
    (kind,) = kinds
    if kind != "table" and not found.keys().isdisjoint(("media", "captions")):
        raise MediaError(f"{where}: media and captions name the columns of a table; a source of {kind} has none.")
    if kind == "procedural":
        return Origin(**found)
    if not found.keys().isdisjoint(("items", "side")):
        raise MediaError(f"{where}: items and side are of a series of the generator; a source of {kind} has its own.")
    return Origin(**found | {kind: str(located(found[kind], path.parent))})
