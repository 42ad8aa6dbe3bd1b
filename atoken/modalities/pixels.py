"""Images and videos <-> tokens: an image is a video of one frame.

Patches are 4 frames x 16 rows x 16 columns, flattened in the order frame, row, column, channel; values are in [-1, 1].
H and W are padded to whole patches by repeating the edge pixels, T with zeros (grey), and the padding is cut off again
(docs/conventions.md). Letters: ``T`` frames, ``H`` rows, ``W`` columns of pixels; ``N`` tokens, ``P`` = 3072.
"""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.tokens import SparseTokens

PATCH = (4, 16, 16)


def to_values(frames: np.ndarray) -> Tensor:
    """uint8 (T, H, W, 3) -> fp32 in [-1, 1]."""
    return torch.tensor(np.ascontiguousarray(frames), dtype=torch.float32).div_(127.5).sub_(1.0)


def to_uint8(values: Tensor) -> np.ndarray:
    """[-1, 1] of any float dtype -> uint8, rounded to the nearest and clamped."""
    return values.float().add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(torch.uint8).cpu().numpy()


def grid(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Time steps, rows and columns of patches that cover a video."""
    return tuple(-(-size // patch) for size, patch in zip((frames, height, width), PATCH, strict=True))  # type: ignore[return-value]


def grid_coords(steps: int, rows: int, columns: int) -> Tensor:
    """(N, 4) int32: every position of a full grid, ordered by t, row, column; z is 0."""
    axes = (torch.arange(size, dtype=torch.int32) for size in (steps, rows, columns, 1))
    return torch.cartesian_prod(*axes).reshape(-1, 4)


def patchify(values: Tensor) -> SparseTokens:
    """A video (T, H, W, 3) in [-1, 1] as one sample of tokens (N, P), on its full grid."""
    frames, height, width, _ = values.shape
    steps, rows, columns = grid(frames, height, width)
    if behind := steps * PATCH[0] - frames:
        values = F.pad(values, (0, 0, 0, 0, 0, 0, 0, behind))
    right, below = columns * PATCH[2] - width, rows * PATCH[1] - height
    if right or below:
        values = F.pad(values.permute(0, 3, 1, 2), (0, right, 0, below), mode="replicate").permute(0, 2, 3, 1)
    feats = rearrange(values, "(t pt) (h ph) (w pw) c -> (t h w) (pt ph pw c)", pt=PATCH[0], ph=PATCH[1], pw=PATCH[2])
    return SparseTokens(feats, grid_coords(steps, rows, columns).to(values.device), (len(feats),))


def unpatchify(tokens: SparseTokens, frames: int, height: int, width: int) -> Tensor:
    """One sample of patches (N, P) back to a video (T, H, W, 3), padding cut off.

    Patches may come in any order; t counts from the sample's first step. A position without a token stays 0 (grey).
    """
    steps, rows, columns = grid(frames, height, width)
    first = tokens.reduce_coords("amin")[0, 0]
    t, row, column, _ = tokens.coords.long().unbind(1)
    dense = tokens.feats.new_zeros(steps * rows * columns, tokens.feats.shape[1])
    dense[((t - first) * rows + row) * columns + column] = tokens.feats
    values = rearrange(
        dense,
        "(t h w) (pt ph pw c) -> (t pt) (h ph) (w pw) c",
        h=rows, w=columns, pt=PATCH[0], ph=PATCH[1], pw=PATCH[2],
    )  # fmt: skip
    return values[:frames, :height, :width]
