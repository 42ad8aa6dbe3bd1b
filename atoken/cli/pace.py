"""How long one side of a model will take on this machine: a block is timed on few tokens, and the rest is arithmetic.

A block takes a n + b n^2 seconds for n tokens that attend to one another, so that two measurements give both.
"""

from __future__ import annotations

from time import perf_counter

import torch

from atoken.layers import Positions
from atoken.model import Stack
from atoken.patches import grid_coords
from atoken.tokens import SparseTokens

LONG = 10.0  # seconds; an estimate is given for what takes longer
_FEW, _MANY = 16, 64  # rows and columns of patches that are timed


def seconds(stack: Stack, tokens: int, tiles: float = 1) -> float:
    """Seconds of an encoder or decoder for ``tiles`` times so many tokens; 0 where that is certainly not long."""
    passes = tiles * len(stack.blocks)
    few = _timed(stack, _FEW)
    ratio = tokens / _FEW**2
    if few * passes * max(ratio, ratio**2) < LONG:
        return 0.0
    many = _timed(stack, _MANY)
    a, b = few / _FEW**2, 0.0
    if many > few * (_MANY / _FEW) ** 2:
        b = (many - a * _MANY**2) / (_MANY**4 - _FEW**2 * _MANY**2)
        a -= b * _FEW**2
    return passes * (a * tokens + b * tokens**2)


@torch.inference_mode()
def _timed(stack: Stack, side: int) -> float:
    coords = grid_coords(1, side, side)
    weight = stack.inputs.weight
    x_ND = torch.randn(len(coords), weight.shape[0], dtype=weight.dtype, device=weight.device)
    tokens = SparseTokens(x_ND, coords.to(weight.device), (len(coords),))
    positions = Positions.of(tokens, stack.head_width, 10000.0)
    times = []
    for _ in range(3):
        start = perf_counter()
        float(stack.blocks[0](x_ND, positions).float().sum())  # which also waits for a GPU
        times.append(perf_counter() - start)
    return min(times)


def spoken(duration: float) -> str:
    """Seconds as a person says them: 2 min 10 s."""
    if duration < 60:
        return f"{duration:.0f} s"
    minutes, rest = divmod(round(duration / 10) * 10, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
