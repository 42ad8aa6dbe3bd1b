"""How 3D assets come back from the bundled models: colours of voxels, and views of the Gaussians.

``python -m benchmarks.assets`` prints a table for each: 20 procedural assets of a seed that training never uses, each
seen from 16 sides at 256x256 and packed into 64^3 voxels. Voxel colours: PSNR of decode(encode(patches)) over the 768
values of each patch. Views: 8 cameras once around that packing does not use, 256x256, on black; PSNR inside the mask of
the original, IoU of alpha above one half with that mask, and PSNR of whole images. The baseline is untrained: one
round opaque splat of scale 0.5 / 64 a voxel, in the colour at the centre of its (original) patch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from atoken.cameras import Cameras
from atoken.data.synthetic.procedural import make_asset
from atoken.gaussians import Gaussians
from atoken.media.views import Views
from atoken.metrics.pixels import psnr, psnr_of
from atoken.modalities.views import render_views
from atoken.modalities.voxels import unvoxelize, voxelize
from atoken.rasterize import ALPHA_MAX, rasterize
from atoken.tokenizer import load
from atoken.tokens import SparseTokens

HELD_OUT_SEED, ASSETS, VIEWS, SIZE = 1_000_003, 20, 8, 256
MODELS = ("nano", "nano-d")


class Score(NamedTuple):
    """Of all views of one asset."""

    inside: float  # PSNR dB
    iou: float
    whole: float  # PSNR dB


def baseline(voxels: SparseTokens) -> Gaussians:
    """One splat a voxel."""
    count = len(voxels.feats)
    colors = torch.from_numpy(unvoxelize(voxels)[:, 7:9, 7:9]).float().mean((1, 2)) / 255
    means = (voxels.coords[:, 1:] + 0.5) / 64 - 0.5
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4)
    return Gaussians(means, torch.full((count, 3), 0.5 / 64), quats, torch.full((count,), ALPHA_MAX), colors)


def score(gaussians: Gaussians, views: Views) -> Score:
    """Compare what the views' cameras see of the Gaussians with the views."""
    with torch.inference_mode():
        seen = [rasterize(gaussians.splats, views.cameras[v : v + 1], (SIZE, SIZE)) for v in range(len(views))]
    rgb = torch.cat([one.rgb for one in seen]).clamp(0, 1).mul(255).round().numpy()
    solid = torch.cat([one.alpha for one in seen]).numpy() > 0.5
    error = np.square(rgb - views.rgb.astype(np.float32)).mean(-1, dtype=np.float64)
    iou = (solid & views.mask).sum() / (solid | views.mask).sum()
    return Score(psnr_of(float(error[views.mask].mean())), float(iou), psnr_of(float(error.mean())))


def main() -> None:
    """Print both tables."""
    tokenizers = [load(name) for name in MODELS]
    colours, rows, names = [], [], []
    for index in range(ASSETS):
        made = make_asset(HELD_OUT_SEED, index)
        voxels = voxelize(render_views(made.mesh)).tokens
        unseen = render_views(made.mesh, Cameras.turntable(VIEWS), SIZE)
        names.append(f"{made.caption} | {len(voxels.feats):,}")
        colours.append([])
        scores = [score(baseline(voxels), unseen)]
        for model in (tokenizer.model for tokenizer in tokenizers):
            with torch.inference_mode():
                patches = model.decode(model.encode(voxels).latents)
                gaussians = model.gaussian_decoder(patches.with_feats(patches.feats[:, : model.config.frame_values]))
            colours[-1].append(psnr(unvoxelize(patches), unvoxelize(voxels)))
            scores.append(score(gaussians[0], unseen))
        rows.append(scores)
    _print(["asset", "voxels", *(f"{name} dB" for name in MODELS)], names, np.array(colours), ".2f")
    kinds = ("baseline", *MODELS)
    for field, what in enumerate(("PSNR inside the mask, dB", "IoU of alpha", "PSNR of whole images, dB")):
        print(f"\n{what}\n")
        table = np.array([[one[field] for one in scores] for scores in rows])
        _print(["asset", "voxels", *kinds], names, table, ".3f" if field == 1 else ".2f")


def _print(head: list[str], names: list[str], table: np.ndarray, form: str) -> None:
    print(f"| {' | '.join(head)} |\n|" + " --- |" * len(head))
    for name, values in zip([*names, "mean |", "median |"], [*table, table.mean(0), np.median(table, 0)], strict=True):
        print(f"| {name} | " + " | ".join(f"{value:{form}}" for value in values) + " |")


if __name__ == "__main__":
    main()
