"""Frames of images and videos, uint8 (T, H, W, 3), to values and patches, and back (``atoken/patches.py``)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atoken.patches import fold, unfold
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


def unpatchify(tokens: SparseTokens, frames: int, height: int, width: int) -> Tensor:
    """One sample of patches (N, 3072) back to a video (T, H, W, 3); a position without a token stays 0 (grey)."""
    return unfold(tokens, (frames, height, width))[0]
