"""Mean and deviation of each latent channel of a model: measured over data, kept with the model, used by generators.

A model's folder holds them in ``latents.json``, beside configuration and weights, which they state the fingerprint of.
Letters: ``C`` latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from atoken.atomic import Target, atomic_path
from atoken.errors import CheckpointError, TensorError

NAME = "latents.json"
ALL = "all"  # what the statistics over all modalities are called
LEAST = 1e-6  # of a deviation: a channel that never changes is not divided by zero


@dataclass(frozen=True)
class LatentStatistics:
    """``mean`` and ``std`` of each channel over so many tokens of so many samples. Every token counts once."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    samples: int = 0
    tokens: int = 0

    def normalise(self, latents: Tensor) -> Tensor:
        """Packed latents (N, C) or grids (B, C, ...) to mean 0 and deviation 1 in each channel."""
        mean, std = self._like(latents)
        return (latents - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of ``normalise``: what a generator made, for the decoder."""
        mean, std = self._like(latents)
        return latents * std + mean

    @property
    def overall(self) -> tuple[float, float]:
        """Mean and deviation of the numbers of all channels together."""
        mean, std = torch.tensor([self.mean, self.std], dtype=torch.float64)
        whole = mean.mean()
        return float(whole), float((std.square() + mean.square()).mean().sub(whole.square()).sqrt())

    def _like(self, latents: Tensor) -> Tensor:
        if latents.ndim < 2 or latents.shape[1] != len(self.mean):
            raise TensorError(
                f"Latents must be (N, {len(self.mean)}) or (B, {len(self.mean)}, ...), got {tuple(latents.shape)}."
            )
        both = torch.tensor([self.mean, self.std], device=latents.device, dtype=latents.dtype)
        return both.reshape(2, 1, -1, *(1,) * (latents.ndim - 2))


class Sums:
    """Running sums of latents, in fp64: the same numbers however a sample is cut into calls, but for rounding.

    ``sums`` (2, C): of values and of their squares. ``ends`` (2, C): smallest and largest, infinite without a token.
    """

    def __init__(self, channels: int) -> None:
        self.samples = self.tokens = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)
        self.ends = torch.tensor([[math.inf], [-math.inf]], dtype=torch.float64).repeat(1, channels)

    def add(self, latents: Tensor, samples: int = 1) -> None:
        """Add (N, C) latents of so many new samples."""
        values = latents.detach().cpu().double()
        self.sums += torch.stack([values.sum(0), values.square().sum(0)])
        if len(values):
            self._widen(torch.stack([values.amin(0), values.amax(0)]))
        self.samples += samples
        self.tokens += len(latents)

    def __add__(self, other: Sums) -> Sums:
        both = Sums(self.sums.shape[1])
        both.samples, both.tokens = self.samples + other.samples, self.tokens + other.tokens
        both.sums = self.sums + other.sums
        both.ends = self.ends.clone()
        both._widen(other.ends)
        return both

    def _widen(self, ends: Tensor) -> None:
        self.ends = torch.stack([torch.minimum(self.ends[0], ends[0]), torch.maximum(self.ends[1], ends[1])])

    def statistics(self) -> LatentStatistics:
        """What was added, with six significant digits; at least one token must have been."""
        mean, square = self.sums / self.tokens
        std = (square - mean.square()).clamp_min(0).sqrt().clamp_min(LEAST)
        digits = [tuple(float(f"{value:.6g}") for value in row.tolist()) for row in (mean, std)]
        return LatentStatistics(digits[0], digits[1], self.samples, self.tokens)


@dataclass(frozen=True)
class Measured:
    """What ``latents.json`` holds: statistics over all modalities and over each, on which data, of which weights."""

    data: str
    fingerprint: str
    latents: Mapping[str, LatentStatistics]

    @property
    def statistics(self) -> LatentStatistics:
        """Those over all modalities."""
        return self.latents[ALL]

    def save(self, target: Target) -> None:
        """Write the file, atomically. Raises: CheckpointError."""
        with atomic_path(target, CheckpointError) as temporary:
            temporary.write_bytes(msgspec.json.encode(asdict(self)) + b"\n")

    @staticmethod
    def load(path: str | Path) -> Measured:
        """Read the file. Raises: CheckpointError."""
        try:
            found = msgspec.json.decode(Path(path).read_bytes(), type=Measured)
            sizes = {len(row) for one in found.latents.values() for row in (one.mean, one.std)}
            if ALL not in found.latents or len(sizes) != 1:
                raise ValueError("it lacks numbers")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} holds no latent statistics: {error}; atoken stats makes it.") from error
        return found


def measured_in(folder: str | Path, fingerprint: Callable[[], str], **where: Any) -> Measured | None:
    """The statistics that a model's folder or hub id holds; None if it holds none.

    fingerprint: gives that of the model. where: ``subfolder``, ``revision`` and the like of a hub id.
    Raises: CheckpointError (a damaged file, or one that other weights gave).
    """
    from transformers.utils import cached_file

    may_fail = "gated_repo", "missing_entries", "connection_errors"
    path = cached_file(str(folder), NAME, **where, **{f"_raise_exceptions_for_{what}": False for what in may_fail})
    if path is None:
        return None
    measured = Measured.load(path)
    if measured.fingerprint != fingerprint():
        raise CheckpointError(f"{path} was measured with other weights than these; measure again with atoken stats.")
    return measured
