"""How near a reconstruction is to its original: PSNR and SSIM of uint8 pictures and clips."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

SIGMA, WINDOW = 1.5, 11  # of SSIM's Gaussian


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 arrays of one shape; infinite where they are equal."""
    return psnr_of(squared_error(ours, theirs))


def squared_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean squared difference of uint8 arrays of one shape. Raises ValueError where the shapes differ."""
    if ours.shape != theirs.shape:
        raise ValueError(f"the shapes differ: {ours.shape} and {theirs.shape}.")
    difference = ours.astype(np.int32) - theirs.astype(np.int32)
    return float(np.square(difference, out=difference).mean(dtype=np.float64))


def psnr_of(error: float) -> float:
    """PSNR in dB of a mean squared error of 8-bit values."""
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Structural similarity of (..., H, W, 3) uint8 arrays, mean over colours and places (Wang et al. 2004).

    Gaussian window of 11 x 11 and sigma 1.5 at every place where it fits whole; along a side shorter than 11 the window
    shrinks to the side. Raises ValueError where the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"the shapes differ: {ours.shape} and {theirs.shape}.")
    x, y = (torch.from_numpy(a).float() for a in (ours, theirs))
    return float(similarity(x, y, 255).double().mean())


def similarity(ours: torch.Tensor, theirs: torch.Tensor, peak: float) -> torch.Tensor:
    """SSIM, as of ``ssim``, at every place and colour of (..., H, W, 3) values from 0 to ``peak``; differentiable."""
    x, y = (a.reshape(-1, *a.shape[-3:]).movedim(-1, 1).flatten(0, 1)[:, None] for a in (ours, theirs))
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_x, mean_y, xx, yy, xy = (_blur(values) for values in (x, y, x * x, y * y, x * y))
    variances, covariance = (xx - mean_x**2) + (yy - mean_y**2), xy - mean_x * mean_y
    means = mean_x**2 + mean_y**2
    return (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((means + c1) * (variances + c2))


def _blur(values: torch.Tensor) -> torch.Tensor:
    for axis in (2, 3):
        size = min(WINDOW, values.shape[axis])
        places = torch.arange(size, device=values.device) - (size - 1) / 2
        kernel = torch.exp(-(places**2) / (2 * SIGMA**2))
        kernel = (kernel / kernel.sum()).reshape([-1 if a == axis else 1 for a in range(4)])
        values = F.conv2d(values, kernel)
    return values
