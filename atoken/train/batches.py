"""Batches of procedural pictures, clips and assets: batch s is a function of stage and s alone, so a run can resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from atoken.data.procedural import clip, picture
from atoken.modalities.pixels import PATCH, patchify, to_values
from atoken.modalities.voxels import VALUES
from atoken.tokens import SparseTokens
from atoken.train.parts import Pictures, Surface, part, pictures, surface
from atoken.train.stages import Stage

MOST_SAMPLES = 4096  # of one batch: the room that each batch has in the numbering of samples


@dataclass(frozen=True)
class Batch:
    """One packed batch of one modality.

    values: how many of the P patch values are real. targets: what the Gaussians of the tokens must be like, where the
    step is one of the Gaussian decoder.
    """

    modality: str
    tokens: SparseTokens
    values: int
    targets: Surface | Pictures | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, tokens=self.tokens.to(device), targets=targets)


def modality_of(stage: Stage, step: int) -> str:
    """The modality of a step: the mixture's cycle, spread evenly, equal on every rank."""
    slots = [(turn / share, name) for name, share in stage.mixture.items() for turn in range(1, share + 1)]
    return sorted(slots)[step % len(slots)][1]


def batch(stage: Stage, step: int) -> Batch:
    """The batch of a step: pictures or clips until the token budget is full, or a part of one asset that fits it.

    Modalities: ``image`` and ``clip``; ``asset``, voxel tokens alone; ``surface`` and ``views``, with those targets of
    the Gaussian decoder.
    """
    modality, first = modality_of(stage, step), step * MOST_SAMPLES
    if modality in ("image", "clip"):
        return Batch(modality, _full(stage, modality, first), VALUES if modality == "image" else PATCH[0] * VALUES)
    made = part(stage.seed, first, stage.tokens)
    targets: Surface | Pictures | None = None
    if modality == "surface":
        targets = surface(made)
    elif modality == "views":
        targets = pictures(made, stage.seed, first, stage.views)
    return Batch(modality, made.tokens, VALUES, targets)


def _full(stage: Stage, modality: str, first: int) -> SparseTokens:
    """Samples from number ``first`` on; the last one that fits the budget closes the batch."""
    samples: list[SparseTokens] = []
    room = stage.tokens
    for index in range(first, first + MOST_SAMPLES):
        shape = sample_shape(stage, modality, index)
        if int(np.prod(shape)) > room:
            break
        samples.append(sample(stage, modality, index, shape))
        room -= len(samples[-1].feats)
    return SparseTokens.pack(samples)


def sample_shape(stage: Stage, modality: str, index: int) -> tuple[int, int, int]:
    """Time steps, rows and columns of patches of a sample: a function of the seed and its index."""
    rng = np.random.default_rng([stage.seed, index])
    low, high = stage.image_patches if modality == "image" else stage.clip_patches
    area = np.exp(rng.uniform(np.log(low), np.log(high)))
    aspect = stage.aspect ** rng.uniform(-1, 1)
    rows, columns = (max(1, int(side)) for side in (np.sqrt(area * aspect), np.sqrt(area / aspect)))
    steps = 1 if modality == "image" else int(rng.integers(stage.clip_steps[0], stage.clip_steps[1] + 1))
    return steps, rows, columns


def sample(stage: Stage, modality: str, index: int, shape: tuple[int, int, int]) -> SparseTokens:
    """The tokens of one procedural sample."""
    steps, rows, columns = shape
    size = rows * PATCH[1], columns * PATCH[2]
    if modality == "image":
        made = picture(stage.seed, index, *size)
    else:
        made = clip(stage.seed, index, steps * PATCH[0], *size)
    return patchify(to_values(made.frames))


class _Steps(Dataset[Batch]):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> Batch:
        return batch(self.stage, step)


def batches(stage: Stage, first: int, workers: int) -> Iterator[Batch]:
    """Batches ``first`` to the stage's last, in order, made ahead by ``workers`` processes."""
    order = range(first, stage.steps)
    # Spawned: torch's threads do not survive a fork, and the worker of a fork server would outlive a killed run.
    loader = DataLoader(
        _Steps(stage), batch_size=None, sampler=order, num_workers=workers, prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread, multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    return iter(loader)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
