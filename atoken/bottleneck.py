"""The two bottlenecks: a diagonal Gaussian posterior (KL) and finite scalar quantisation (FSQ), all in fp32.

FSQ is the method of Mentzer et al. (arXiv 2309.15505); its use on groups of the posterior mean is paper section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from atoken.summary import Summary


@dataclass(frozen=True, repr=False)
class Posterior(Summary):
    """A diagonal Gaussian for each token: ``mean`` and ``logvar``, both (N, C) fp32."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw, (N, C); the noise is drawn on the generator's device."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """KL divergence to the unit Gaussian, summed over channels: (N,)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum(-1)


class FSQ:
    """Finite scalar quantisation of groups of ``len(levels)`` channels, without weights.

    With ``levels`` (4, 4, 4, 4, 4, 4) a group has 4096 codes, and 48 channels make 8 groups.
    """

    eps = 1e-3  # widens the bound, so that the outermost level is reached

    def __init__(self, levels: tuple[int, ...]) -> None:
        if not levels or any(level < 2 for level in levels):
            raise ValueError(f"FSQ levels must all be 2 or more, got {levels}.")
        self.levels = levels
        self.codes = prod(levels)

    def bound(self, values: Tensor) -> Tensor:
        """Squash (..., C) into the range of the levels, in units of one step; rounding gives the level."""
        levels = self._per_channel(values.shape[-1], values.device)
        half = (levels - 1) * (1 + self.eps) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(values.float() + torch.atanh(offset / half)) * half - offset

    def quantise(self, values: Tensor) -> Tensor:
        """The nearest levels in [-1, 1], (..., C), with the gradient of ``bound`` (straight-through estimator)."""
        bounded = self.bound(values)
        steps = bounded + (bounded.round() - bounded).detach()
        return steps / self._half_width(values.shape[-1], values.device)

    def to_codes(self, quantised: Tensor) -> Tensor:
        """Levels (..., C) as one code a group, (..., G) int64; the first channel of a group is the lowest digit.

        Values between or beyond the levels count as the nearest one.
        """
        width = self._half_width(quantised.shape[-1], quantised.device)
        highest = self._per_channel(quantised.shape[-1], quantised.device) - 1
        digits = (quantised * width + width).round().clamp(min=0).minimum(highest).long()
        return (digits.unflatten(-1, (-1, len(self.levels))) * self._basis(quantised.device)).sum(-1)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Codes (..., G) as levels, (..., C) fp32. Raises ValueError for a code outside [0, 4096)."""
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codes):
            raise ValueError(f"codes must lie in [0, {self.codes}), got {int(codes.min())} to {int(codes.max())}.")
        levels = torch.tensor(self.levels, device=codes.device)
        digits = codes.long()[..., None] // self._basis(codes.device) % levels
        return ((digits - levels // 2) / (levels // 2)).float().flatten(-2)

    def _basis(self, device: torch.device) -> Tensor:
        return torch.tensor([prod(self.levels[:i]) for i in range(len(self.levels))], device=device)

    def _per_channel(self, channels: int, device: torch.device) -> Tensor:
        if channels % len(self.levels):
            raise ValueError(f"{channels} channels do not divide into groups of {len(self.levels)}.")
        return torch.tensor(self.levels * (channels // len(self.levels)), dtype=torch.float32, device=device)

    def _half_width(self, channels: int, device: torch.device) -> Tensor:
        return self._per_channel(channels, device) // 2
