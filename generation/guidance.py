"""Classifier-free guidance: a network and two conditions become a velocity (Ho and Salimans 2022).

Samplers know neither networks nor conditions; they see ``velocity(x, sigma)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from atoken.errors import AtokenError

Velocity = Callable[[Tensor, float], Tensor]  # (B, ...) at one sigma -> (B, ...)
T = TypeVar("T", bound=Sized)  # of conditions, one a sample
Network = Callable[[Tensor, Tensor, T], Tensor]  # (B, ...), sigma (B,), conditions of B samples -> velocity (B, ...)


@dataclass(frozen=True)
class Guidance:
    """``null + scale (conditional - null)`` where sigma is in the interval, both ends included; conditional elsewhere.

    scale 1 is no guidance, 0 the null condition. channels: guide so many of the first only, as LightningDiT's released
    sampler does; None for all. Outside the interval the null half is not computed (Kynkäänniemi et al. 2024).
    Raises: AtokenError (an interval that is not within 0 and 1).
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise AtokenError(f"A guidance interval is two numbers from 0 to 1, rising; got {low} and {high}.")

    def applies(self, sigma: float) -> bool:
        """Whether two evaluations are needed at this sigma."""
        return self.scale != 1 and self.interval[0] <= sigma <= self.interval[1]

    def combined(self, conditional: Tensor, null: Tensor) -> Tensor:
        """Both (B, C, ...)."""
        channels = conditional.shape[1] if self.channels is None else self.channels
        guided = null[:, :channels] + self.scale * (conditional[:, :channels] - null[:, :channels])
        return torch.cat([guided, conditional[:, channels:]], 1) if channels < conditional.shape[1] else guided


def guided(
    network: Network[T], condition: T, null: T, guidance: Guidance,
    joined: Callable[[Sequence[T]], T] = torch.cat,  # type: ignore[assignment]
) -> Velocity:  # fmt: skip
    """The velocity of samples with these conditions; ``condition`` and ``null`` have one row a sample.

    Where guidance applies, both halves are one batch, whose conditions ``joined`` puts one after another. Of packed
    samples x is (N, C), and the network is given twice the samples then: as many as there are conditions.
    """

    def velocity(x: Tensor, sigma: float) -> Tensor:
        at = torch.full((len(condition),), sigma, device=x.device, dtype=torch.float32)
        if not guidance.applies(sigma):
            return network(x, at, condition)
        both = network(torch.cat([x, x]), torch.cat([at, at]), joined([condition, null]))
        return guidance.combined(*both.chunk(2))

    return velocity
