"""Batches: micro-batch b of a task is a function of stage, datasets and b alone, so that a run can resume anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from atoken.data.mixing import Broken, hashed
from atoken.errors import AtokenError
from atoken.modalities.voxels import VALUES
from atoken.patches import PATCH
from atoken.pretrain.crops import FEW, SurfaceTargets, crop, surface
from atoken.pretrain.datasets import TaskDataset
from atoken.pretrain.packing import CROPS, budgets, stream
from atoken.pretrain.stages import Stage, Task
from atoken.tokens import SparseTokens


@dataclass(frozen=True)
class Batch:
    """One packed micro-batch of one task.

    tokens: patches of 768 values of images and voxels, whose further frames are empty, and of 3072 of videos. captions:
    one a sample, "" where it has none. targets: what the Gaussians of the tokens must be like, where the task is one of
    the Gaussian decoder. samples: how many; broken: those skipped. noise: seed of what the losses draw.
    """

    task: str
    tokens: SparseTokens
    captions: tuple[str, ...] = ()
    targets: SurfaceTargets | None = None
    samples: int = 0
    broken: tuple[Broken, ...] = ()
    noise: int = 0

    def __len__(self) -> int:
        return len(self.tokens.feats)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, tokens=self.tokens.to(device), targets=targets)


def batch(stage: Stage, datasets: Mapping[str, TaskDataset], name: str, number: int) -> Batch:
    """Micro-batch ``number`` of the task ``name``.

    Raises: AtokenError (too many samples in a row are broken, an extra is missing).
    """
    task = stage.tasks[name]
    if task.modality in CROPS:
        return _crop(stage, name, number)
    found = [(budget.length, datasets[name].draw(budget)) for budget in budgets(task, stage.recipe.seed, name, number)]
    # Attention takes neighbours of one length together. Time steps come first: their order is that of all ranks.
    drawn = [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].value.tokens.lengths))]
    return Batch(
        name, _packed(task, [one.value.tokens for one in drawn]),
        captions=tuple(one.value.caption for one in drawn), samples=len(drawn),
        broken=tuple(broken for one in drawn for broken in one.broken),
        noise=hashed(stage.recipe.seed, stream(task, name), number),
    )  # fmt: skip


def _crop(stage: Stage, name: str, number: int) -> Batch:
    """A crop of one procedural asset, with the targets of its Gaussians where the task asks for them."""
    task, seed = stage.tasks[name], stage.recipe.seed
    (budget,) = budgets(task, seed, name, number)
    found = crop(seed, budget.index, budget.patches, *([FEW] if task.modality == "crop" else []))
    targets = surface(found) if task.modality == "surface" else None
    return Batch(name, _packed(task, [found.tokens]), ("",), targets, samples=1)


def _packed(task: Task, samples: list[SparseTokens]) -> SparseTokens:
    """Without the empty frames, which would take most of the time to copy and hand over."""
    values = PATCH[0] * VALUES if task.modality == "video" else VALUES
    packed = SparseTokens.pack([sample.with_feats(sample.feats[:, :values]) for sample in samples])
    return packed.with_feats(packed.feats.contiguous())  # of a single sample it is a view


def check_shares(stage: Stage, world: int) -> None:
    """Raises: AtokenError for micro-batches that ranks cannot share out evenly."""
    for name, task in stage.used.items():
        if task.micro_batches % world:
            enough = -(-task.micro_batches // world) * world
            raise AtokenError(
                f"The {task.micro_batches} micro-batches of the task {name} cannot be shared out evenly to {world} "
                f"ranks; set a multiple of {world}, such as --set tasks.{name}.micro_batches={enough}."
            )


@dataclass(frozen=True)
class MicroBatches:
    """The source of a stage's batches; a key is a task and the number of the micro-batch among all of that task."""

    stage: Stage
    datasets: Mapping[str, TaskDataset]

    def keys(self, step: int) -> list[tuple[str, int]]:
        """In the order of ``Stage.tasks_of``; those of each task are shared out evenly (``check_shares``)."""
        tasks = self.stage.tasks
        return [
            (name, before * tasks[name].micro_batches + number)
            for name, before in self.stage.tasks_of(step)
            for number in range(tasks[name].micro_batches)
        ]

    def batch(self, key: tuple[str, int]) -> Batch:
        """As ``batch``."""
        return batch(self.stage, self.datasets, *key)
