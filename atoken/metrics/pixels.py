"""How close a reconstruction is to its original: PSNR, SSIM and MS-SSIM of uint8 images and videos."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

SIGMA, WINDOW = 1.5, 11  # of SSIM's Gaussian
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM's scales, finest first (Wang et al. 2003)
MS_SSIM_SIDE = WINDOW * 2 ** (len(SCALES) - 1)  # pixels of a side that leave a whole window at the coarsest scale
BLOCK = 32  # positions along an axis that one matrix product blurs


def psnr(prediction: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 arrays of one shape; infinite where they are equal."""
    return psnr_of(squared_error(prediction, target))


def squared_error(prediction: np.ndarray, target: np.ndarray) -> float:
    """Mean squared difference of uint8 arrays of one shape. Raises ValueError where the shapes differ."""
    if prediction.shape != target.shape:
        raise ValueError(f"the shapes differ: {prediction.shape} and {target.shape}.")
    difference = prediction.astype(np.int32) - target.astype(np.int32)
    return float(np.square(difference, out=difference).mean(dtype=np.float64))


def psnr_of(error: float) -> float:
    """PSNR in dB of a mean squared error of 8-bit values."""
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(prediction: np.ndarray, target: np.ndarray) -> float:
    """Structural similarity of (..., H, W, 3) uint8 arrays, mean over colours and positions (Wang et al. 2004).

    The window is a Gaussian of 11 x 11 pixels and sigma 1.5, at every position where it lies inside the image; along a
    side shorter than 11 it shrinks to the side. Raises ValueError where the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"the shapes differ: {prediction.shape} and {target.shape}.")
    x, y = (torch.from_numpy(a).float() for a in (prediction, target))
    return float(similarity(x, y, 255).mean(dtype=torch.float64))


def ms_ssim(prediction: np.ndarray, target: np.ndarray) -> float:
    """MS-SSIM of (H, W, 3) uint8 images whose sides are ``MS_SSIM_SIDE`` pixels or more (Wang et al. 2003).

    Contrast and structure count at each scale, luminance at the coarsest alone; each factor is the mean over colours
    and positions, and a negative one, whose power would not be real, counts as 0. The next scale is the means of 2 x 2
    pixels; an odd last row or column is left out.
    """
    x, y = (torch.from_numpy(a).float()[None] for a in (prediction, target))
    result = 1.0
    for scale, weight in enumerate(SCALES, 1):
        luminance, structure = similarities(x, y, 255)
        factor = structure if scale < len(SCALES) else luminance * structure
        result *= max(float(factor.mean(dtype=torch.float64)), 0.0) ** weight
        x, y = (F.avg_pool2d(a.movedim(-1, 1), 2).movedim(1, -1) for a in (x, y))
    return result


def similarity(prediction: torch.Tensor, target: torch.Tensor, peak: float) -> torch.Tensor:
    """SSIM, as of ``ssim``, at every position and colour of (..., H, W, 3) values in 0..``peak``; differentiable."""
    luminance, structure = similarities(prediction, target, peak)
    return luminance * structure


def similarities(prediction: torch.Tensor, target: torch.Tensor, peak: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of ``similarity``: of luminance, and of contrast and structure."""
    x, y = (a.reshape(-1, *a.shape[-3:]).movedim(-1, 1).flatten(0, 1).contiguous() for a in (prediction, target))
    mean_x, mean_y = (a.detach().mean((1, 2), keepdim=True) for a in (x, y))
    x, y = x - mean_x, y - mean_y
    # The variances are those of the sum and the difference, without the mean: in float32 the variances of x and y
    # themselves would lose 1e-4 of SSIM where an image is flat.
    total, change = x + y, x - y
    total, change, squares, changes = _blur(torch.cat([total, change, total**2, change**2])).chunk(4)
    variance, noise = squares - total**2, changes - change**2
    means, apart = (total + (mean_x + mean_y)) ** 2, (change + (mean_x - mean_y)) ** 2
    c1, c2 = 2 * (0.01 * peak) ** 2, 2 * (0.03 * peak) ** 2
    return 1 - 2 * apart / (means + apart + c1), 1 - 2 * noise / (variance + noise + c2)


def _blur(values: torch.Tensor) -> torch.Tensor:
    """(P, H, W) averaged in windows inside the image, by products with a band matrix: faster than a convolution."""
    for axis in (1, 2):
        size = min(WINDOW, values.shape[axis])
        band, positions = _band(size, values), values.shape[axis] - size + 1
        pieces = []
        for first in range(0, positions, BLOCK):
            count = min(BLOCK, positions - first)
            seen, weights = values.narrow(axis, first, count + size - 1), band[:count, : count + size - 1]
            pieces.append(weights @ seen if axis == 1 else seen @ weights.T)
        values = torch.cat(pieces, axis)
    return values


def _band(size: int, like: torch.Tensor) -> torch.Tensor:
    """(BLOCK, BLOCK + size - 1): row i holds the window at i."""
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    rows = F.pad((window / window.sum()).expand(BLOCK, size), (0, BLOCK))  # one too wide, so each row starts one later
    return rows.flatten()[:-BLOCK].reshape(BLOCK, BLOCK + size - 1).to(like)
