"""Frames of images and videos, uint8 (T, H, W, 3), to values and patches, and back (``atoken/patches.py``)."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from atoken.patches import PATCH, fold, grid, grid_coords, unfold
from atoken.tokens import SparseTokens


def to_values(frames: np.ndarray) -> Tensor:
    """uint8 (T, H, W, 3) -> fp32 in [-1, 1]."""
    return torch.tensor(np.ascontiguousarray(frames), dtype=torch.float32).div_(127.5).sub_(1.0)


def to_uint8(values: Tensor) -> np.ndarray:
    """[-1, 1] of any float dtype -> uint8, rounded to the nearest and clamped."""
    return values.float().add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(torch.uint8).cpu().numpy()


def patchify(values: Tensor) -> SparseTokens:
    """A video (T, H, W, 3) in [-1, 1] as one sample of tokens (N, 3072), on its full grid."""
    return fold(values[None])


def patchify_frames(frames: np.ndarray) -> SparseTokens:
    """Frames, uint8 (T, H, W, 3), as one sample of patches (N, 3072), or (N, 768) of a single frame, an image.

    The values are those of ``patchify(to_values(frames))``, whose further frames of an image are empty. This is faster,
    for it puts bytes in order, not floats.
    """
    cells, frames_a_patch = grid(*frames.shape[:3]), 1 if len(frames) == 1 else PATCH[0]
    patch = frames_a_patch, *PATCH[1:]
    behind, *edges = (count * side - size for count, side, size in zip(cells, patch, frames.shape[:3], strict=True))
    if behind or any(edges):
        frames = np.pad(frames, [(0, behind), *((0, edge) for edge in edges), (0, 0)], "edge")
    cut = "(t pt) (h ph) (w pw) c -> t (h w) pt (ph pw c)"
    values = to_values(rearrange(frames, cut, pt=frames_a_patch, ph=PATCH[1], pw=PATCH[2]))
    values[-1, :, frames_a_patch - behind :] = 0.0
    feats = values.flatten(0, 1).flatten(1)
    return SparseTokens(feats, grid_coords(*cells), (len(feats),))


def unpatchify(tokens: SparseTokens, frames: int, height: int, width: int) -> Tensor:
    """One sample of patches (N, 3072) back to a video (T, H, W, 3); a position without a token stays 0 (grey)."""
    return unfold(tokens, (frames, height, width))[0]
