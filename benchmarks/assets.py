"""How the colours of voxels come back from the bundled models, on held-out procedural assets.

``python -m benchmarks.assets`` prints the PSNR of decode(encode(patches)) over the 768 values of each voxel's patch:
20 assets of a seed that training never uses, each seen from 16 sides at 256x256 and packed into 64^3 voxels.
"""

from __future__ import annotations

import numpy as np
import torch

from atoken.data.procedural import asset
from atoken.metrics import psnr
from atoken.modalities.views import render_views
from atoken.modalities.voxels import unvoxelize, voxelize
from atoken.tokenizer import load

HELD_OUT_SEED, ASSETS = 1_000_003, 20
MODELS = ("nano", "nano-d")


def main() -> None:
    """Print the table."""
    models = [load(name).model for name in MODELS]
    print(f"| asset | voxels | {' dB | '.join(MODELS)} dB |\n|" + " --- |" * (2 + len(MODELS)))
    rows = []
    for index in range(ASSETS):
        made = asset(HELD_OUT_SEED, index)
        voxels = voxelize(render_views(made.mesh)).tokens
        with torch.inference_mode():
            back = [unvoxelize(model.decode(model.encode(voxels).latents)) for model in models]
        rows.append([psnr(ours, unvoxelize(voxels)) for ours in back])
        print(f"| {made.caption} | {len(voxels.feats):,} | " + " | ".join(f"{value:.2f}" for value in rows[-1]) + " |")
    print("| mean | | " + " | ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()
