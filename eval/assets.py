"""What is compared of 3D assets: views of Gaussians against those of the asset, or patches of voxels."""

from __future__ import annotations

import numpy as np
import torch

from atoken.gaussians import Gaussians
from atoken.modalities.views import Views
from atoken.modalities.voxels import voxelize
from atoken.tokens import SparseTokens


@torch.inference_mode()
def rendered(gaussians: Gaussians, views: Views) -> np.ndarray:
    """(V, H, W, 3) uint8: Gaussians on black, from the cameras and at the size of ``views``."""
    pixels = np.empty_like(views.rgb)
    for view in range(len(views)):  # one at a time, to save memory
        rgb = gaussians.render(views.cameras[view : view + 1], views.rgb.shape[1:3])[0]
        pixels[view] = rgb.mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
    return pixels


def mask_of(views: Views) -> np.ndarray:
    """(V, H, W) bool: pixels of ``rgb`` that show a surface, by the depth nearest to their centre."""
    height, width = views.rgb.shape[1:3]
    rows, columns = (
        np.clip(np.ceil((np.arange(side) + 0.5) / side * there - views.pixel_offset - 0.5), 0, there - 1).astype(int)
        for side, there in zip((height, width), views.depth.shape[1:], strict=True)
    )
    return views.mask[:, rows[:, None], columns]


def voxel_tokens(views: Views, most: int | None) -> SparseTokens:
    """An asset's voxels as tokens; coarsened, with an AtokenWarning, until at most ``most``. Raises: MediaError."""
    return (voxelize(views) if most is None else voxelize(views, max_tokens=most, over="coarsen")).tokens
