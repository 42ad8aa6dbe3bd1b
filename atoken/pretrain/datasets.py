"""Where the samples of a task come from: the procedural generator, or the sources that a file names.

Each sample is made to fit its budget (``atoken/pretrain/packing.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from atoken.data.loading import fitting, load_asset, load_image, load_video, voxels_of
from atoken.data.mixing import Drawn, Mixture, hashed
from atoken.data.sources import IMAGES, MESHES, VIDEOS, FolderSource, Sample, ShardSource, Source, TableSource
from atoken.data.synthetic import labelled, procedural
from atoken.errors import AtokenError, MediaError
from atoken.modalities.pixels import PATCH, patchify, to_values
from atoken.pretrain.data_file import MEDIA, Data, Origin, read_data
from atoken.pretrain.packing import Budget, stream
from atoken.pretrain.stages import Stage, Task
from atoken.tokens import SparseTokens

SUFFIXES = {"image": IMAGES, "video": VIDEOS, "asset": MESHES}  # of the media that sources may give
PROCEDURAL = ".procedural"  # stands in a sample for the suffix of its media; its key is then the series
ENDLESS = 1 << 40  # samples of the generator
MAKERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {  # of each modality's series, from (seed, index, sizes)
    "image": {
        "mixed": procedural.make_image,
        "labelled": labelled.labelled_image,
        "grounded": labelled.grounded_image,
        "scenes": labelled.scene,
    },
    "video": {"mixed": procedural.make_video, "labelled": labelled.labelled_video},
    "asset": {"mixed": procedural.make_asset, "labelled": labelled.labelled_asset},
}
MIXED = {"mixed": 1}
MATCHED = {"image": {"labelled": 3, "grounded": 1}, "video": {"labelled": 1}, "asset": {"labelled": 1}}  # with captions
SHOWN = 16  # samples of a source that are looked at for captions


class Fitted(NamedTuple):
    """What was made of a sample: its tokens, and one of its captions, or "" where it has none."""

    tokens: SparseTokens
    caption: str


@dataclass(frozen=True)
class TaskDataset:
    """The samples of the task ``name``, each made to fit its budget. ``seed``: of what is generated."""

    name: str
    task: Task
    mixture: Mixture
    seed: int

    def draw(self, budget: Budget) -> Drawn[Fitted]:
        """The sample of a budget: a function of the budget alone. Raises: AtokenError (as ``Mixture.draw``)."""
        return self.mixture.draw(budget.index, partial(self._fitted, budget))

    def _fitted(self, budget: Budget, sample: Sample) -> Fitted:
        task = self.task
        if sample.suffix == PROCEDURAL:
            return generated(task, budget, self.seed, sample.key)
        if task.texts and not sample.captions:
            raise MediaError(f"{sample.key} has no caption, and {self.name} is trained on captions.")
        rng = budget.rng()
        caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else ""
        if task.modality == "asset":
            return Fitted(load_asset(sample, budget.patches), caption)
        if task.modality == "image":
            frames = load_image(sample, budget.patches, task.patches[0])
        else:
            least, strides, fps = task.patches[0], task.strides, task.fps
            frames = load_video(sample, budget.length, budget.patches, rng, least=least, strides=strides, fps=fps)
        return Fitted(patchify(to_values(frames)), caption)


def generated(task: Task, budget: Budget, seed: int, series: str) -> Fitted:
    """The room's sample of a series of the generator, images and videos in a shape of their own."""
    make = MAKERS[task.modality][series]
    if task.modality == "asset":
        asset = make(seed, budget.index)
        return Fitted(voxels_of(asset.mesh, budget.patches), asset.caption)
    rows, columns = shape(task, budget)
    frames = () if task.modality == "image" else (budget.length * PATCH[0],)
    made = make(seed, budget.index, *frames, rows * PATCH[1], columns * PATCH[2])
    return Fitted(patchify(to_values(made.frames)), made.caption)


def shape(task: Task, budget: Budget) -> tuple[int, int]:
    """Rows and columns of patches of a generated image, or of a video's frames; its aspect is drawn."""
    return fitting(budget.patches, task.aspect ** budget.rng().uniform(-1, 1), 1.0)


class Procedural:
    """A series of the generator as a source: it gives the name, because a sample depends on where it is wanted.

    What is generated is numbered by the task (``Budget.index``), so that labels come round as they do in the series.
    """

    def __init__(self, series: str) -> None:
        self.series = series

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.series, b"", PROCEDURAL, ())


class Datasets(dict[str, TaskDataset]):
    """The dataset of each task by its name. ``data``: what they were made from."""

    def __init__(self, datasets: Mapping[str, TaskDataset], data: Data) -> None:
        super().__init__(datasets)
        self.data = data


def load_datasets(data: str | Path, stage: Stage) -> Datasets:
    """The datasets of a stage's tasks; crops of assets need none, they are always generated.

    data: the word ``procedural``, a folder of media, or a file as ``atoken/pretrain/data_file.py`` describes it.

    Raises:
    MediaError (one sentence that names file, table and key), MissingExtraError (tables without pyarrow).
    """
    if str(data) == "procedural":
        found = Data("procedural", {name: _generated(task) for name, task in stage.used.items()})
    else:
        found = read_data(Path(data), [name for name, task in stage.tasks.items() if task.modality in MEDIA])
    tasks = {name: task for name, task in stage.used.items() if task.modality in MEDIA}
    return Datasets({name: _dataset(found, name, task, stage.recipe.seed) for name, task in tasks.items()}, found)


def _generated(task: Task) -> Mapping[str, Origin]:
    """What is generated for a task: all there is or, where it is trained on captions, what they tell apart."""
    weights = MATCHED[task.modality] if task.texts else MIXED
    return {series: Origin("procedural", series=series, weight=weight) for series, weight in weights.items()}


def _dataset(data: Data, name: str, task: Task, seed: int) -> TaskDataset:
    table, origins = data.origins(name, task.modality)
    sources: dict[str, tuple[Source, int]] = {}
    for source, origin in origins.items():
        try:
            sources[source] = _opened(origin, task), origin.weight
        except MediaError as error:
            raise MediaError(f"{data.file}, [{table}.{source}]: {error}") from error
    # Each task and stage has an order of its own: two tasks on the same sources would else see the same at a time.
    own = hashed(data.seed, seed, stream(task, name))
    return TaskDataset(name, task, Mixture(sources, own), own)


def _opened(origin: Origin, task: Task) -> Source:
    """Raises: MediaError (nothing there, no captions for a task that is trained on them), MissingExtraError."""
    source: Source
    match origin.kind:
        case "folder":
            source = FolderSource(origin.path, SUFFIXES[task.modality])
        case "shards":
            source = ShardSource(origin.path)
        case "table":
            source = TableSource(origin.path, origin.media, origin.captions)
        case _:
            if origin.series not in MAKERS[task.modality]:
                known = ", ".join(MAKERS[task.modality])
                raise MediaError(
                    f"the generator has no {origin.series} for the modality {task.modality}; it has {known}."
                )
            return Procedural(origin.series)
    if task.texts and not any(_has_captions(source, index) for index in range(min(SHOWN, len(source)))):
        raise MediaError(f"none of the first {SHOWN} samples has a caption, and the task is trained on captions.")
    return source


def _has_captions(source: Source, index: int) -> bool:
    with suppress(AtokenError):  # a broken sample
        return bool(source[index].captions)
    return False
