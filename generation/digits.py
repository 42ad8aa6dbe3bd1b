"""Discrete tokens and what they stand for: AToken-D's codes, or TokenBridge's levels of single scalars.

Letters: ``V`` tokens of a position, ``C`` the values that they stand for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from atoken.bottleneck import FSQ

SPAN = 3.0  # standard deviations


class CodeValues(nn.Module):
    """The codes of a quantiser of AToken: V = C / len(levels) codes of prod(levels) each."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.quantiser = FSQ(levels)

    def values(self, tokens: Tensor) -> Tensor:
        """(..., V) int64 -> (..., C) fp32."""
        return self.quantiser.from_codes(tokens)

    def tokens(self, values: Tensor) -> Tensor:
        """(..., C) -> (..., V) int64."""
        return self.quantiser.to_codes(values)


class ScalarValues(nn.Module):
    """One of ``levels`` values for each scalar, V = C (Wang et al. 2025, section 3.2).

    Bins of a standard normal with equal probability, cut off at ``SPAN``; a bin stands for its mean. ``scale``: latents
    are so many times the numbers of the table. Published tables are loaded: they were computed in fp32, and differ.
    """

    def __init__(self, levels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        even = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
        bounds = torch.special.ndtri(even).clamp(-SPAN, SPAN)
        mass = torch.special.ndtr(bounds).diff()
        means = -torch.exp(-bounds.square() / 2).diff() / (2 * math.pi) ** 0.5 / mass
        middles = (bounds[1:] + bounds[:-1]) / 2  # of bins that the cut leaves empty
        self.register_buffer("boundaries", bounds.float())
        self.register_buffer("table", torch.where(mass > 0, means, middles).float())

    def values(self, tokens: Tensor) -> Tensor:
        """(..., C) int64 -> (..., C) fp32."""
        return self.table[tokens] * self.scale

    def tokens(self, values: Tensor) -> Tensor:
        """(..., C) -> (..., C) int64: the nearest value of the table."""
        return torch.bucketize((values / self.scale).contiguous(), (self.table[1:] + self.table[:-1]) / 2)
