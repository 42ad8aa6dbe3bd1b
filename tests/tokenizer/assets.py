"""3D assets through the bundled models: ``python -m tests.tokenizer.assets`` prints a table of 20 procedural assets.

Their seed is never used in training; each is seen from 16 sides at 256x256 and packed into 64^3 voxels. Voxels: PSNR of
decode(encode(patches)) over the 768 values of each patch. Views: from 8 cameras around the asset that packing does not
use, 256x256, on black; PSNR inside the mask of the original, IoU of alpha above one half with that mask, and PSNR of
whole images. The baseline is untrained: one round opaque Gaussian of scale 0.5 / 64 a voxel, in the colour at the
centre of its original patch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from atoken.cameras import Cameras
from atoken.data.synthetic.procedural import make_asset
from atoken.gaussians import Gaussians
from atoken.loading import load
from atoken.media.views import Views
from atoken.metrics.pixels import psnr, psnr_of
from atoken.modalities.views import render_views
from atoken.modalities.voxels import unvoxelize, voxelize
from atoken.rasterize import ALPHA_MAX, rasterize
from atoken.tokens import SparseTokens
from benchmarks.tables import head, row

HELD_OUT_SEED, ASSETS, VIEWS, SIZE = 1_000_003, 20, 8, 256
MODELS = ("nano", "nano-d")


class Score(NamedTuple):
    """Of all views of one asset."""

    inside: float  # PSNR dB
    iou: float
    whole: float  # PSNR dB


def baseline(voxels: SparseTokens) -> Gaussians:
    """One Gaussian for each voxel."""
    count = len(voxels.feats)
    colors = torch.from_numpy(unvoxelize(voxels)[:, 7:9, 7:9]).float().mean((1, 2)) / 255
    means = (voxels.coords[:, 1:] + 0.5) / 64 - 0.5
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4)
    return Gaussians(means, torch.full((count, 3), 0.5 / 64), quats, torch.full((count,), ALPHA_MAX), colors)


def score(gaussians: Gaussians, views: Views) -> Score:
    """Compare the Gaussians, seen from the cameras of the views, with the views."""
    with torch.inference_mode():
        seen = [rasterize(gaussians.splats, views.cameras[v : v + 1], (SIZE, SIZE)) for v in range(len(views))]
    rgb = torch.cat([one.rgb for one in seen]).clamp(0, 1).mul(255).round().numpy()
    solid = torch.cat([one.alpha for one in seen]).numpy() > 0.5
    error = np.square(rgb - views.rgb.astype(np.float32)).mean(-1, dtype=np.float64)
    iou = (solid & views.mask).sum() / (solid | views.mask).sum()
    return Score(psnr_of(float(error[views.mask].mean())), float(iou), psnr_of(float(error.mean())))


def main() -> None:
    """Print the table."""
    models = [load(name).model for name in MODELS]
    of_voxels = [f"{name}: voxels, PSNR dB" for name in MODELS]
    of_views = [f"{name}: {what}" for name in ("baseline", *MODELS) for what in ("inside, dB", "IoU", "whole, dB")]
    head("asset", "voxels", *of_voxels, *of_views)
    found = []
    for index in range(ASSETS):
        asset = make_asset(HELD_OUT_SEED, index)
        voxels = voxelize(render_views(asset.mesh)).tokens
        unseen = render_views(asset.mesh, Cameras.turntable(VIEWS), SIZE)
        colours, scores = [], [*score(baseline(voxels), unseen)]
        for model in models:
            with torch.inference_mode():
                patches = model.decode(model.encode(voxels).latents)
                gaussians = model.gaussian_decoder(patches.with_feats(patches.feats[:, : model.config.frame_values]))
            colours.append(psnr(unvoxelize(patches), unvoxelize(voxels)))
            scores += score(gaussians[0], unseen)
        found.append([*colours, *scores])
        row(asset.caption, f"{len(voxels.feats):,}", *map("{:.3f}".format, found[-1]))
    row("mean", "", *map("{:.3f}".format, np.mean(found, axis=0)))
    row("median", "", *map("{:.3f}".format, np.median(found, axis=0)))


if __name__ == "__main__":
    main()
