"""Batches: micro-batch b of a task is a function of stage, datasets and b alone.

So a run can resume, on any number of ranks.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import resource_tracker

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from atoken.data.mixing import Broken, hashed
from atoken.errors import AtokenError
from atoken.modalities.pixels import PATCH
from atoken.modalities.voxels import VALUES
from atoken.pretrain.crops import FEW, SurfaceTargets, crop, surface
from atoken.pretrain.datasets import TaskDataset
from atoken.pretrain.packing import CROPS, budgets, stream
from atoken.pretrain.stages import Stage
from atoken.tokens import SparseTokens


@dataclass(frozen=True)
class Batch:
    """One packed micro-batch of one task.

    values: how many of the P patch values are real, 768 of an image or voxel, 3072 of a video. captions: one a sample,
    "" where it has none. targets: what the Gaussians of the tokens must be like, where the task is one of the Gaussian
    decoder. drawn: samples taken; broken: those skipped. noise: seed of what the losses draw.
    """

    task: str
    tokens: SparseTokens
    values: int
    captions: tuple[str, ...] = ()
    targets: SurfaceTargets | None = None
    drawn: int = 0
    broken: tuple[Broken, ...] = ()
    noise: int = 0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, tokens=self.tokens.to(device), targets=targets)


def batch(stage: Stage, datasets: Mapping[str, TaskDataset], name: str, number: int) -> Batch:
    """Bin ``number`` of the task ``name``. Raises: AtokenError (too many samples in a row are broken, no extra)."""
    task = stage.tasks[name]
    if task.modality in CROPS:
        return _crop(stage, name, number)
    found = [(budget.length, datasets[name].draw(budget)) for budget in budgets(task, stage.seed, name, number)]
    # Attention takes neighbours of one length together. Time steps come first: their order is that of all ranks.
    drawn = [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].value.tokens.lengths))]
    return Batch(
        name,
        SparseTokens.pack([one.value.tokens for one in drawn]),
        PATCH[0] * VALUES if task.modality == "video" else VALUES,
        captions=tuple(one.value.caption for one in drawn),
        drawn=len(drawn),
        broken=tuple(broken for one in drawn for broken in one.broken),
        noise=hashed(stage.seed, stream(task, name), number),
    )


def _crop(stage: Stage, name: str, number: int) -> Batch:
    """A crop of one procedural asset, with the targets of its Gaussians where the task asks for them."""
    task = stage.tasks[name]
    (budget,) = budgets(task, stage.seed, name, number)
    if task.modality == "surface":
        found = crop(stage.seed, budget.index, budget.patches)
        return Batch(name, found.tokens, VALUES, ("",), surface(found), drawn=1)
    return Batch(name, crop(stage.seed, budget.index, budget.patches, FEW).tokens, VALUES, ("",), drawn=1)


def batches(
    stage: Stage, datasets: Mapping[str, TaskDataset], first_step: int, workers: int, rank: int = 0, world: int = 1
) -> Generator[list[Batch]]:
    """The micro-batches of a rank in each step from ``first_step`` on, made ahead by ``workers`` processes.

    Close it, or its processes go on for as long as something holds it.

    They are in the order of ``Stage.tasks_of``; of a task's micro-batches, rank r of w takes r, r + w, r + 2w, ...

    Raises: AtokenError (micro-batches that cannot be shared out evenly, and as ``batch``).
    """
    check_shares(stage, world)
    # Spawned: torch's threads do not survive a fork, and the worker of a fork server would outlive a killed run.
    loader = DataLoader(
        _Bins(stage, datasets), batch_size=None, sampler=_places(stage, first_step, rank, world), num_workers=workers,
        prefetch_factor=2 if workers else None, worker_init_fn=_prepare,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    with _deaf_children():
        made = iter(loader)
    return _steps(stage, first_step, world, _ended(made))


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start meanwhile do not hear SIGTERM: launchers send it to all, and a run needs them to its end.

    They end by themselves when their parent is done with them, or gone.
    """
    resource_tracker.ensure_running()  # started with the first of them, it would open the ears again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_shares(stage: Stage, world: int) -> None:
    """Raises: AtokenError for micro-batches that ranks cannot share out evenly."""
    for name, task in stage.used.items():
        if task.micro_batches % world:
            raise AtokenError(
                f"The {task.micro_batches} micro-batches of the task {name} cannot be shared out evenly to "
                f"{world} ranks; set a multiple "
                f"of {world}, such as --set tasks.{name}.micro_batches={-(-task.micro_batches // world) * world}."
            )


def _places(stage: Stage, first_step: int, rank: int, world: int) -> Iterator[tuple[str, int]]:
    """Task and number of each micro-batch of a rank, in order."""
    for step in range(first_step, stage.steps):
        for name, before in stage.tasks_of(step):
            micro_batches = stage.tasks[name].micro_batches
            yield from ((name, before * micro_batches + k) for k in range(rank, micro_batches, world))


def _steps(stage: Stage, first_step: int, world: int, made: Generator[Batch | AtokenError]) -> Generator[list[Batch]]:
    with closing(made):
        for step in range(first_step, stage.steps):
            count = sum(stage.tasks[name].micro_batches // world for name, _ in stage.tasks_of(step))
            yield [_sound(one) for one in islice(made, count)]


def _ended(made: Iterator[Batch | AtokenError]) -> Generator[Batch | AtokenError]:
    """Ends the processes when it is closed: deaf as they are, the interpreter would wait for them as it exits."""
    try:
        yield from made
    finally:
        if isinstance(made, _MultiProcessingDataLoaderIter):
            made._shutdown_workers()


@contextmanager
def living_workers() -> Iterator[None]:
    """Around all of a run: torch raises wherever it is when the system has killed a process that makes batches.

    Raises: AtokenError in place of torch's page.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise AtokenError(
            f"A process that makes batches died: {str(error).splitlines()[0]} Where memory is short, train with fewer "
            "--workers, or with smaller micro_batches."
        ) from error


def _sound(made: Batch | AtokenError) -> Batch:
    if isinstance(made, AtokenError):
        raise made
    return made


class _Bins(Dataset[Batch | AtokenError]):
    """What goes wrong is given, not raised: a DataLoader would make a page of its one sentence."""

    def __init__(self, stage: Stage, datasets: Mapping[str, TaskDataset]) -> None:
        self.stage, self.datasets = stage, datasets

    def __getitem__(self, place: tuple[str, int]) -> Batch | AtokenError:
        try:
            return batch(self.stage, self.datasets, *place)
        except AtokenError as error:
            return AtokenError(str(error))  # not every kind of it can travel between processes


def _prepare(_: int) -> None:
    """In a process that makes batches, before the first."""
    torch.set_num_threads(1)
    # It must not tidy up at its end: the thread that sends batches may be inside torch, which aborts when Python ends
    # its threads, and the loader would take that for a death.
    atexit.register(os._exit, 0)
