"""Discrete tokens and what they stand for: AToken-D's codes, or TokenBridge's levels of single scalars.

Letters: ``V`` tokens of a position, ``C`` the values that they stand for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atoken.bottleneck import FSQ


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
    """One of ``levels`` values for each scalar, V = C, as TokenBridge stores them (Wang et al. 2025, section 3.2).

    The scale of the table is ``span`` where that of the latents is ``largest``. Its values are loaded, not computed:
    the published ones were computed in fp32.
    """

    def __init__(self, levels: int, largest: float = 5.0, span: float = 3.0) -> None:
        super().__init__()
        self.scale = largest / span
        self.register_buffer("boundaries", torch.zeros(levels + 1))
        self.register_buffer("table", torch.zeros(levels))

    def values(self, tokens: Tensor) -> Tensor:
        """(..., C) int64 -> (..., C) fp32."""
        return self.table[tokens] * self.scale

    def tokens(self, values: Tensor) -> Tensor:
        """(..., C) -> (..., C) int64: the nearest value of the table."""
        middles = (self.table[1:] + self.table[:-1]) / 2
        return torch.bucketize(values / self.scale, middles)
