"""Occupied cells of a grid at several sizes, and convolutions over them, without a dense grid.

Letters: ``N`` cells of all samples, ``M`` those of twice the side, ``C`` channels, ``P`` pairs of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.tokens import SparseTokens

_STEPS = torch.tensor([*product((-1, 0, 1), repeat=3)])  # to a cell and its neighbours: x, y, z, which is the fastest
_CENTRE = len(_STEPS) // 2


@dataclass(frozen=True)
class Cells:
    """Cells of one size.

    tokens: their coordinates, and zeros of no width. pairs: of each of the 27 steps, cells that have a neighbour there,
    and that neighbour, each (P,); a cell is there once at most. coarser: of each cell the one of twice the side that it
    is in, (N,), and how many are in each of those, (M,).
    """

    tokens: SparseTokens
    pairs: tuple[tuple[Tensor, Tensor], ...]
    coarser: tuple[Tensor, Tensor]

    @staticmethod
    def sizes(tokens: SparseTokens, count: int) -> list[Cells]:
        """Those of tokens and of so many sizes in all, each twice the last; the coarser ones are in order of x, y, z.

        What it gives has the device of the features, its search that of the coordinates.
        """
        found = list[Cells]()
        while len(found) < count:
            parent_N, larger = _coarser(tokens)
            number_M = torch.bincount(parent_N, minlength=len(larger.feats))
            device = tokens.feats.device
            bare = tokens.with_feats(tokens.feats[:, :0])
            found.append(Cells(bare, _pairs(tokens), (parent_N.to(device), number_M.to(device))))
            tokens = larger
        return found


class SparseConv(nn.Module):
    """A convolution of 3 x 3 x 3 cells, computed at occupied ones only; others count as zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, len(_STEPS), inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight.flatten(1), a=5**0.5)

    def forward(self, x_NC: Tensor, cells: Cells) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        weights = [weight.contiguous() for weight in self.weight.unbind(1)]
        y_NC = F.linear(x_NC, weights[_CENTRE], self.bias)
        for number, (here_P, there_P) in enumerate(cells.pairs):
            if number != _CENTRE and len(here_P):
                y_NC.index_add_(0, here_P, F.linear(x_NC[there_P], weights[number]).to(y_NC.dtype))
        return y_NC


def pooled(x_NC: Tensor, cells: Cells, *, published: bool) -> Tensor:
    """(N, C) -> (M, C): the mean of the cells in each one of twice the side.

    published: as TRELLIS has it, whose mean counts the zero that its sum starts with.
    """
    parent_N, number_M = cells.coarser
    sums_MC = x_NC.new_zeros(len(number_M), x_NC.shape[1]).index_add(0, parent_N, x_NC)
    return sums_MC / (number_M + published).to(x_NC.dtype)[:, None]


def _pairs(tokens: SparseTokens) -> tuple[tuple[Tensor, Tensor], ...]:
    """Of each of the 27 steps. A step back has the pairs of the step, the other way round."""
    key_N, strides = _keys(tokens)
    sorted_N, order_N = key_N.sort()
    steps = _STEPS.to(key_N.device)
    wanted = key_N[:, None] + (steps[:_CENTRE] * strides).sum(1)
    place = torch.searchsorted(sorted_N, wanted).clamp_max(max(len(key_N) - 1, 0))
    device = tokens.feats.device
    first = []
    for number in range(_CENTRE):
        here_P = (sorted_N[place[:, number]] == wanted[:, number]).nonzero()[:, 0]
        first.append((here_P.to(device), order_N[place[here_P, number]].to(device)))
    itself = torch.arange(len(key_N), device=device)
    return (*first, (itself, itself), *((there_P, here_P) for here_P, there_P in reversed(first)))


def _coarser(tokens: SparseTokens) -> tuple[Tensor, SparseTokens]:
    """Of each token the one of twice the side, and those, without features."""
    halved = torch.cat([tokens.coords[:, :1], tokens.coords[:, 1:] // 2], 1)
    unique_M, parent_N = torch.unique(_keys(replace(tokens, coords=halved))[0], return_inverse=True)
    coords_M4 = halved.new_zeros(len(unique_M), 4).index_copy(0, parent_N, halved)
    sample_M = tokens.sample_N.new_zeros(len(unique_M)).index_copy(0, parent_N, tokens.sample_N)
    lengths = torch.bincount(sample_M, minlength=len(tokens.lengths)).tolist()
    return parent_N, SparseTokens(tokens.feats.new_zeros(len(unique_M), 0), coords_M4, tuple(lengths))


def _keys(tokens: SparseTokens) -> tuple[Tensor, Tensor]:
    """A number for each cell that rises with sample, x, y, z, and how much it rises along x, y and z: int64.

    There is an empty cell between any two rows, so that a neighbour outside the grid has a number of its own.
    """
    coords_N3 = tokens.coords[:, 1:].long() + 1
    side = int(coords_N3.max()) + 2 if len(coords_N3) else 2
    strides = torch.tensor([side**2, side, 1], device=coords_N3.device)
    return tokens.sample_N * side**3 + (coords_N3 * strides).sum(1), strides
