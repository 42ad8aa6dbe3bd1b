"""Where the samples of a task come from: the procedural generator, or the sources that a file names.

Each sample is made to fit its room (``atoken/train/packing.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from atoken.data import labelled, procedural
from atoken.data.loading import fitting, load_asset, load_clip, load_picture, voxels_of
from atoken.data.mixing import Drawn, Mixture, hashed
from atoken.data.sources import CLIPS, MESHES, PICTURES, FolderSource, Sample, ShardSource, Source, TableSource
from atoken.errors import AtokenError, MediaError
from atoken.modalities.pixels import PATCH, patchify, to_values
from atoken.tokens import SparseTokens
from atoken.train.data_file import MEDIA, Data, Origin, read_data
from atoken.train.packing import Room
from atoken.train.stages import Stage, Task

SUFFIXES = {"image": PICTURES, "clip": CLIPS, "asset": MESHES}  # of the media that sources may give
PROCEDURAL = ".procedural"  # stands in a sample for the suffix of its media; its key is then the series
ENDLESS = 1 << 40  # samples of the generator
MAKERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {  # of each medium's series, from (seed, index, sizes)
    "image": {
        "mixed": procedural.picture,
        "labelled": labelled.labelled_picture,
        "grounded": labelled.grounded_picture,
        "scenes": labelled.scene,
    },
    "clip": {"mixed": procedural.clip, "labelled": labelled.labelled_clip},
    "asset": {"mixed": procedural.asset, "labelled": labelled.labelled_asset},
}
MIXED = {"mixed": 1}
MATCHED = {"image": {"labelled": 3, "grounded": 1}, "clip": {"labelled": 1}, "asset": {"labelled": 1}}  # with captions
SHOWN = 16  # samples of a source that are looked at for captions


class Fitted(NamedTuple):
    """What was made of a sample: its tokens, and one of its captions, or "" where it has none."""

    tokens: SparseTokens
    caption: str


@dataclass(frozen=True)
class Feed:
    """The samples of the task ``name``, each made to fit its room. ``seed``: of what is generated."""

    name: str
    task: Task
    mixture: Mixture
    seed: int

    def draw(self, room: Room) -> Drawn[Fitted]:
        """The sample of a room: a function of the room alone. Raises: AtokenError (as ``Mixture.draw``)."""
        return self.mixture.draw(room.index, partial(self._fitted, room))

    def _fitted(self, room: Room, sample: Sample) -> Fitted:
        task = self.task
        if sample.suffix == PROCEDURAL:
            return generated(task, room, self.seed, sample.key)
        if task.texts and not sample.captions:
            raise MediaError(f"{sample.key} has no caption, and {self.name} is trained on captions.")
        rng = room.rng()
        caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else ""
        if task.medium == "asset":
            return Fitted(load_asset(sample, room.patches), caption)
        if task.medium == "image":
            frames = load_picture(sample, room.patches, task.patches[0])
        else:
            least, strides, fps = task.patches[0], task.strides, task.fps
            frames = load_clip(sample, room.length, room.patches, rng, least=least, strides=strides, fps=fps)
        return Fitted(patchify(to_values(frames)), caption)


def generated(task: Task, room: Room, seed: int, series: str) -> Fitted:
    """The room's sample of a series of the generator, pictures and clips in a shape of their own."""
    make = MAKERS[task.medium][series]
    if task.medium == "asset":
        asset = make(seed, room.index)
        return Fitted(voxels_of(asset.mesh, room.patches), asset.caption)
    rows, columns = shape(task, room)
    frames = () if task.medium == "image" else (room.length * PATCH[0],)
    made = make(seed, room.index, *frames, rows * PATCH[1], columns * PATCH[2])
    return Fitted(patchify(to_values(made.frames)), made.caption)


def shape(task: Task, room: Room) -> tuple[int, int]:
    """Rows and columns of patches of a generated picture, or of a clip's frames; its aspect is drawn."""
    return fitting(room.patches, task.aspect ** room.rng().uniform(-1, 1), 1.0)


class Procedural:
    """A series of the generator as a source: it gives the name, because a sample depends on where it is wanted.

    What is generated is numbered by the task (``Room.index``), so that labels come round as they do in the series.
    """

    def __init__(self, series: str) -> None:
        self.series = series

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.series, b"", PROCEDURAL, ())


class Feeds(dict[str, Feed]):
    """The feed of each task by its name. ``data``: what they were made from."""

    def __init__(self, feeds: Mapping[str, Feed], data: Data) -> None:
        super().__init__(feeds)
        self.data = data


def load_feeds(data: str | Path, stage: Stage) -> Feeds:
    """The feeds of a stage's tasks; those that are parts of assets need none, they are always generated.

    data: the word ``procedural``, a folder of media, or a file as ``atoken/train/data_file.py`` describes it. Raises:
    MediaError (one sentence that names file, table and key), MissingExtraError (tables without pyarrow).
    """
    if str(data) == "procedural":
        found = Data("procedural", {name: _generated(task) for name, task in stage.used.items()})
    else:
        found = read_data(Path(data), [name for name, task in stage.tasks.items() if task.medium in MEDIA])
    tasks = {name: task for name, task in stage.used.items() if task.medium in MEDIA}
    return Feeds({name: _feed(found, name, task, stage.seed) for name, task in tasks.items()}, found)


def _generated(task: Task) -> Mapping[str, Origin]:
    """What is generated for a task: all there is or, where it is trained on captions, what they tell apart."""
    weights = MATCHED[task.medium] if task.texts else MIXED
    return {series: Origin("procedural", series=series, weight=weight) for series, weight in weights.items()}


def _feed(data: Data, name: str, task: Task, seed: int) -> Feed:
    table, origins = data.origins(name, task.medium)
    sources: dict[str, tuple[Source, int]] = {}
    for source, origin in origins.items():
        try:
            sources[source] = _opened(origin, task), origin.weight
        except MediaError as error:
            raise MediaError(f"{data.file}, [{table}.{source}]: {error}") from error
    # Each task and stage has an order of its own: two tasks on the same sources would else see the same at a time.
    own = hashed(data.seed, seed, crc32(name.encode()))
    return Feed(name, task, Mixture(sources, own), own)


def _opened(origin: Origin, task: Task) -> Source:
    """Raises: MediaError (nothing there, no captions for a task that is trained on them), MissingExtraError."""
    source: Source
    match origin.kind:
        case "folder":
            source = FolderSource(origin.path, SUFFIXES[task.medium])
        case "shards":
            source = ShardSource(origin.path)
        case "table":
            source = TableSource(origin.path, origin.media, origin.captions)
        case _:
            if origin.series not in MAKERS[task.medium]:
                known = ", ".join(MAKERS[task.medium])
                raise MediaError(f"the generator has no {origin.series} for the medium {task.medium}; it has {known}.")
            return Procedural(origin.series)
    if task.texts and not any(_has_captions(source, index) for index in range(min(SHOWN, len(source)))):
        raise MediaError(f"none of the first {SHOWN} samples has a caption, and the task is trained on captions.")
    return source


def _has_captions(source: Source, index: int) -> bool:
    with suppress(AtokenError):  # a broken sample
        return bool(source[index].captions)
    return False
