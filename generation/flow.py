"""The linear path between data and noise, its velocity, and the loss (Lipman et al. 2023; Liu et al. 2023).

One convention everywhere, that of diffusers: ``sigma`` is 0 for data and 1 for noise, a point on the path is
``(1 - sigma) data + sigma noise``, and the velocity is ``noise - data``. What others call time is mapped where their
weights are loaded (``generation/weights.py``). Letters: ``B`` samples, ``C`` channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name


class FlowLoss(NamedTuple):
    """Of each sample (B,): the mean square, and 1 - cosine over channels, averaged over positions."""

    square: Tensor
    cosine: Tensor

    @property
    def total(self) -> Tensor:
        """The mean of their sum, a number (LightningDiT weights both by 1)."""
        return (self.square + self.cosine).mean()


def mixed(data: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
    """The point of the path at ``sigma_B`` (B,): data and noise (B, ...) of one shape."""
    sigma = _like(sigma_B, data)
    return (1 - sigma) * data + sigma * noise


def data_of(point: Tensor, velocity: Tensor, sigma_B: Tensor) -> Tensor:
    """The data that a velocity at a point of the path leads back to."""
    return point - _like(sigma_B, point) * velocity


def noise_of(point: Tensor, velocity: Tensor, sigma_B: Tensor) -> Tensor:
    """The noise that a velocity at a point of the path comes from."""
    return point + (1 - _like(sigma_B, point)) * velocity


def flow_loss(prediction: Tensor, data: Tensor, noise: Tensor) -> FlowLoss:
    """Of predicted velocities (B, C, ...), or (N, C) of tokens, in fp32 (terms of LightningDiT, Yao et al. 2025)."""
    prediction, target = prediction.float(), (noise - data).float()
    square = (prediction - target).square().flatten(1).mean(1)
    return FlowLoss(square, 1 - F.cosine_similarity(prediction, target, dim=1).reshape(len(square), -1).mean(1))


def drawn_sigmas(samples: int, generator: torch.Generator, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """(B,) fp32 on the CPU: logit-normal, most often in the middle of the path (Esser et al. 2024, section 3.1)."""
    return torch.sigmoid(mean + std * torch.randn(samples, generator=generator))


def shifted(sigma: Tensor, shift: float | Tensor) -> Tensor:
    """More of the path near noise for ``shift`` above 1 (Esser et al. 2024, equation 23); nothing else shifts.

    LightningDiT's timestep_shift s, in a time that is 1 for data, is a shift of 1 / s here.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def shift_of(steps: int, tokens: int) -> float:
    """The shift for so many latent frames of so many tokens each: more noise for what has more tokens to agree.

    From 1 at 256 tokens to 3 at 4096, linearly and at least 1, times the square root of frames (Open-Sora 2.0).
    """
    return max(1.0, 1 + 2 * (tokens - 256) / (4096 - 256)) * steps**0.5


def _like(sigma_B: Tensor, values: Tensor) -> Tensor:
    return sigma_B.reshape(-1, *(1,) * (values.ndim - 1))
