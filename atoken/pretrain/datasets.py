"""Where the samples of a task come from: the procedural generator, or the sources that a file names.

Each sample is scaled to its token budget (``atoken/pretrain/packing.py``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from atoken.data.loading import crop_image, film_image, fitting, load_asset, load_image, load_video, voxels_of
from atoken.data.mixing import Drawn, Mixture, hashed
from atoken.data.sources import FolderSource, Sample, ShardSource, Source, TableSource, Templated
from atoken.data.synthetic.series import MAKERS
from atoken.errors import AtokenError, AtokenWarning, MediaError
from atoken.modalities import MODALITIES
from atoken.modalities.pixels import patchify_frames
from atoken.patches import PATCH
from atoken.pretrain.data_file import Data, Origin, read_data
from atoken.pretrain.packing import Budget, stream
from atoken.pretrain.stages import Stage, Task
from atoken.tokens import SparseTokens

PROCEDURAL = ".procedural"  # suffix of a sample that is to be generated; its key is the series
FILMED, CROPPED = ".filmed", ".cropped"  # suffixes of an image over which a camera is to move, or to be taken a part of
SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)  # in captions that a mirror would make wrong
ENDLESS = 1 << 40  # number of samples of a series
RELATED = ("counted", "placed", "moving")  # series whose neighbours differ in what the series is about
MIXED = {"mixed": 1}
MATCHED = {"image": {"labelled": 3, "grounded": 1}, "video": {"labelled": 1}, "asset": {"labelled": 1}}  # with captions
LOOKED_AT = 16  # samples of a source that are searched for captions


class Fitted(NamedTuple):
    """The tokens of a sample within its budget, and one of its captions, or "" if it has none."""

    tokens: SparseTokens
    caption: str


@dataclass(frozen=True)
class TaskDataset:
    """The samples of the task ``name``, each within its budget. ``seed``: of generated samples."""

    name: str
    task: Task
    mixture: Mixture
    seed: int

    def draw(self, budget: Budget) -> Drawn[Fitted]:
        """The sample of a budget; it depends on the budget alone. Raises: AtokenError (as ``Mixture.draw``)."""
        return self.mixture.draw(budget.index, partial(self._fitted, budget))

    def _fitted(self, budget: Budget, sample: Sample) -> Fitted:
        task = self.task
        if sample.suffix == PROCEDURAL:
            return generated(task, replace(budget, **sample.record), self.seed, sample.key)
        if task.texts and not sample.captions:
            raise MediaError(f"{sample.key} has no caption, and {self.name} is trained on captions.")
        rng = budget.rng()
        caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else ""
        if task.modality == "asset":
            return Fitted(load_asset(sample, budget.patches), caption)
        if sample.suffix == CROPPED:
            if task.texts:
                frames = load_image(sample, budget.patches, task.patches[0], rng)
            else:
                frames = crop_image(sample, budget.patches, task.aspect, rng)
            if rng.random() < 0.5 and not SIDES.search(caption):
                frames = frames[:, :, ::-1]
        elif task.modality == "image":
            frames = load_image(sample, budget.patches, task.patches[0])
        elif sample.suffix == FILMED:
            frames = film_image(sample, budget.length, shape(task, budget), rng)
        else:
            least, strides, fps = task.patches[0], task.strides, task.fps
            frames = load_video(sample, budget.length, budget.patches, rng, least=least, strides=strides, fps=fps)
        return Fitted(patchify_frames(frames), caption)


def generated(task: Task, budget: Budget, seed: int, series: str) -> Fitted:
    """The sample of a budget from a series of the generator; images and videos have a random aspect."""
    make = MAKERS[task.modality][series]
    if task.modality == "asset":
        asset = make(seed, budget.index)
        return Fitted(voxels_of(asset.mesh, budget.patches), asset.caption)
    rows, columns = shape(task, budget)
    frames = () if task.modality == "image" else (budget.length * PATCH[0],)
    sample = make(seed, budget.index, *frames, rows * PATCH[1], columns * PATCH[2])
    return Fitted(patchify_frames(sample.frames), sample.caption)


def shape(task: Task, budget: Budget) -> tuple[int, int]:
    """Rows and columns of patches of a generated image or of the frames of a video, with a random aspect."""
    return fitting(budget.patches, task.aspect ** budget.rng().uniform(-1, 1), 1.0)


class Procedural:
    """A series of the generator as a source. Its samples are only a name: ``generated`` makes them, by their budget.

    They are numbered as in the task (``Budget.index``), so that classes alternate as in the series; but by how many of
    them came before in the ``RELATED`` series, whose neighbours would else be apart where there are other sources.
    """

    def __init__(self, series: str) -> None:
        self.series = series

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.series, b"", PROCEDURAL, (), {"index": index} if self.series in RELATED else {})


class Marked:
    """The images of a source with another suffix, which says what becomes of them: ``FILMED`` or ``CROPPED``."""

    def __init__(self, images: Source, suffix: str) -> None:
        self._images, self._suffix = images, suffix

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        return replace(self._images[index], suffix=self._suffix)


class Datasets(dict[str, TaskDataset]):
    """The dataset of each task by its name. ``data``: the file that describes them; ``held_out``: images of none."""

    def __init__(self, datasets: Mapping[str, TaskDataset], data: Data, held_out: Sequence[FolderSource] = ()) -> None:
        super().__init__(datasets)
        self.data, self.held_out = data, held_out


def load_datasets(data: str | Path, stage: Stage) -> Datasets:
    """The datasets of a stage's tasks; crops of assets have none, they are always generated.

    data: the word ``procedural``, a folder of media, or a file as described in ``atoken/pretrain/data_file.py``.
    Raises: AtokenError (one sentence with file, table and key), MissingExtraError (tables without pyarrow).
    """
    if str(data) == "procedural":
        found = Data("procedural", {name: _generated(task) for name, task in stage.used.items()})
    else:
        found = read_data(Path(data), [name for name, task in stage.tasks.items() if task.modality in MODALITIES])
    tasks = {name: task for name, task in stage.used.items() if task.modality in MODALITIES}
    held_out: list[FolderSource] = []
    datasets = {name: _dataset(found, name, task, stage, held_out) for name, task in tasks.items()}
    return Datasets(datasets, found, held_out)


def _generated(task: Task) -> Mapping[str, Origin]:
    """The series of a task: mixed ones or, for training on captions, those with one object."""
    weights = MATCHED[task.modality] if task.texts else MIXED
    return {series: Origin(procedural=series, weight=weight) for series, weight in weights.items()}


def _dataset(data: Data, name: str, task: Task, stage: Stage, held_out: list[FolderSource]) -> TaskDataset:
    """What the stage holds out is added to ``held_out``."""
    table, origins = data.origins(name, task.modality)
    sources: dict[str, tuple[Source, int]] = {}
    for source, origin in origins.items():
        try:
            opened = source_of(origin, task)
            if stage.held_out and isinstance(opened, FolderSource) and task.modality == "image":
                opened = _without_held_out(opened, stage.held_out, held_out)
            sources[source] = opened, origin.weight
        except MediaError as error:
            raise MediaError(f"{data.file}, [{table}.{source}]: {error}") from error
    # Each task and stage has its own order; otherwise two tasks with the same sources would see the same samples.
    own = hashed(data.seed, stage.recipe.seed, stream(task, name))
    related = {source for source, origin in origins.items() if origin.procedural in RELATED}
    return TaskDataset(name, task, Mixture(sources, own, related), own)


def _without_held_out(source: FolderSource, share: float, held_out: list[FolderSource]) -> FolderSource:
    """What is left for training; the rest is added to ``held_out``. Warns of a folder that is too small."""
    if len(source) < 2:
        warned = f"{source.folder} has a single image: it is trained on, and none is left to measure the result with."
        warnings.warn(warned, AtokenWarning, stacklevel=2)
        return source
    held, left = source.split(share)
    held_out.append(held)
    return left


def source_of(origin: Origin, task: Task) -> Source:
    """A source as a task reads it.

    Raises: MediaError (nothing there, no captions for a task that is trained on them), MissingExtraError.
    """
    source: Source
    for key, modality in (("filmed", "video"), ("cropped", "image")):
        if getattr(origin, key) and (task.modality != modality or origin.procedural):
            raise MediaError(f"{key} is for sources of image files in a table of the modality {modality}; take it out.")
    if origin.procedural:
        if origin.procedural not in MAKERS[task.modality]:
            series, known = origin.procedural, ", ".join(MAKERS[task.modality])
            raise MediaError(f"the generator has no {series} for the modality {task.modality}; it has {known}.")
        return Procedural(origin.procedural)
    origin.check_fetched()
    if origin.folder:
        source = FolderSource(origin.folder, MODALITIES["image" if origin.filmed else task.modality].suffixes)
    elif origin.shards:
        source = ShardSource(origin.shards)
    else:
        source = TableSource(origin.table or "", origin.media, origin.captions, origin.fields)
    source = Templated(source, origin.templates) if origin.templates else source
    if origin.filmed or origin.cropped:
        source = Marked(source, FILMED if origin.filmed else CROPPED)
    if task.texts and not any(_has_captions(source, index) for index in range(min(LOOKED_AT, len(source)))):
        raise MediaError(f"none of the first {LOOKED_AT} samples has a caption, and the task is trained on captions.")
    return source


def _has_captions(source: Source, index: int) -> bool:
    with suppress(AtokenError):  # a broken sample
        return bool(source[index].captions)
    return False
