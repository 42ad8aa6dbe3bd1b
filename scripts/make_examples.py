"""Make the media in ``examples/`` from the procedural generator: pictures (PNG, JPEG, alpha) and clips (MP4)."""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from atoken.data import procedural
from atoken.data.drawing import figure_outline
from atoken.io import Clip, Image

SEED = 2
CLIPS = {  # name: (index in the series, frames, height, width, frames a second)
    "pan.mp4": (14, 20, 96, 128, 12),
    "flight.mp4": (12, 37, 64, 64, 24),
}


def star_mask(height: int, width: int) -> np.ndarray:
    """The opacity (height, width) uint8 of a star in the middle, its edge smooth."""
    enlarged = PIL.Image.new("L", (4 * width, 4 * height))
    corners = figure_outline("star") * 1.92 * min(height, width) + (2 * width, 2 * height)
    PIL.ImageDraw.Draw(enlarged).polygon(corners.ravel().tolist(), fill=255)
    return np.asarray(enlarged.reduce(4))


def main() -> None:
    """Write every example into the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("examples"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    Image(procedural.picture(SEED, 3, 256, 256).frames[0]).save(folder / "leaves.png")
    PIL.Image.fromarray(procedural.picture(SEED, 13, 157, 211).frames[0]).save(folder / "odd.jpg", quality=90)
    Image(procedural.picture(SEED, 19, 96, 128).frames[0], star_mask(96, 128)).save(folder / "star.png")
    for name, (index, frames, height, width, fps) in CLIPS.items():
        Clip(procedural.clip(SEED, index, frames, height, width).frames, fps).save(folder / name)


if __name__ == "__main__":
    main()
