"""What each stage of a curriculum brings: reconstruction and naming of what no training saw (as the paper's Table 4).

``python -m benchmarks.stages RUNS/1/model RUNS/2/model ...`` prints a row for each model folder.

| column | of |
| --- | --- |
| photographs | PSNR of the seven of ``benchmarks/nano.py``, mean over images |
| videos | PSNR of 20 procedural videos of 16 frames of 128x128, mean over videos |
| voxels | PSNR of the patches of 20 procedural assets as in ``benchmarks/assets.py``, mean over assets |
| named | zero-shot top-1 as in ``benchmarks/zero_shot.py``, of images, videos and assets on two grids |
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from atoken.data.synthetic.procedural import SyntheticFrames, make_asset, make_video
from atoken.io import Video
from atoken.metrics.pixels import psnr
from atoken.modalities.views import render_views
from atoken.modalities.voxels import unvoxelize, voxelize
from atoken.tokenizer import Tokenizer, load
from atoken.tokens import SparseTokens
from benchmarks import zero_shot
from benchmarks.nano import photographs

HELD_OUT_SEED, COUNT, FRAMES, SIDE = 1_000_003, 20, 16, 128


def of_photographs(tokenizer: Tokenizer) -> float:
    """Mean PSNR, dB."""
    return float(np.mean([psnr(tokenizer.decode(tokenizer.encode(x)).pixels, x) for x in photographs().values()]))


def of_videos(tokenizer: Tokenizer, videos: Sequence[SyntheticFrames]) -> float:
    """Mean PSNR, dB."""
    pairs = [(tokenizer.decode(tokenizer.encode(Video(made.frames))).frames, made.frames) for made in videos]
    return float(np.mean([psnr(ours, theirs) for ours, theirs in pairs]))


@torch.inference_mode()
def of_voxels(tokenizer: Tokenizer, assets: Sequence[SparseTokens]) -> float:
    """Mean PSNR, dB."""
    return float(np.mean([psnr(unvoxelize(tokenizer.model(one)[1]), unvoxelize(one)) for one in assets]))


def named(tokenizer: Tokenizer, samples: Sequence[SparseTokens], prompts: Sequence[str]) -> float:
    """Share that is named right."""
    return float(zero_shot.zero_shot(tokenizer, samples, prompts).float().mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders")
    models = parser.parse_args().models
    videos = [make_video(HELD_OUT_SEED, index, FRAMES, SIDE, SIDE) for index in range(COUNT)]
    assets = [voxelize(render_views(make_asset(HELD_OUT_SEED, index).mesh)).tokens for index in range(COUNT)]
    labelled = {name: (list(make()), prompts) for name, (make, prompts) in zero_shot.LABELLED.items()}
    head = ("model", "photographs dB", "videos dB", "voxels dB", *(f"{name}: named" for name in labelled))
    print(f"| {' | '.join(head)} |\n|" + " --- |" * len(head))
    for folder in models:
        tokenizer = load(str(folder))
        decibels = of_photographs(tokenizer), of_videos(tokenizer, videos), of_voxels(tokenizer, assets)
        shares = [named(tokenizer, *one) for one in labelled.values()]
        figures = [f"{number:.2f}" for number in decibels] + [f"{share:.1%}" for share in shares]
        print(f"| {folder} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()
