"""Make the picture of README: originals above, below what their tokens of nano become; and print what it shows.

From left to right: ``examples/leaves.png``; the first photograph of clothing-dataset (CC0), at most 4 : 3, in a
shard of the test split; the middle frame of a video, of which nano has seen the 16 frames around it. The picture's
comment is the fingerprint of the weights, by which a test knows that it is theirs.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import PIL.Image

import atoken
from atoken.data.sources import ShardSource
from atoken.errors import AtokenWarning
from atoken.io import Video, VideoReader, read_image, read_video
from atoken.metrics.pixels import psnr

GAP = 8  # pixels between pictures
FRAMES = 16


def middle(path: Path, most: int) -> Video:
    """The frames in the middle of a video, scaled to at most so many pixels a side."""
    with VideoReader(path) as video:
        start = ((video.info.declared_frames or FRAMES) - FRAMES) // 2
    clip = read_video(path, frames=(start, start + FRAMES))
    frames = [PIL.Image.fromarray(frame) for frame in clip.frames]
    for frame in frames:
        frame.thumbnail((most, most), PIL.Image.Resampling.LANCZOS)
    return Video(np.stack([np.asarray(frame) for frame in frames]), clip.fps)


def framed(images: list[np.ndarray]) -> np.ndarray:
    """Images beside one another on white."""
    height = max(len(image) for image in images)
    row = [np.pad(image, ((0, height - len(image)), (0, GAP), (0, 0)), constant_values=255) for image in images]
    return np.hstack(row)[:, :-GAP]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shard", type=Path, help="of photographs, with a source in the .json of each")
    parser.add_argument("video", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/before-after.jpg"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", AtokenWarning)  # the video's sound is not shown
    tokenizer = atoken.load("nano", device="cpu")
    shard = ShardSource(options.shard)
    photograph, shown = next(
        (sample, pixels)
        for sample in map(shard.__getitem__, range(len(shard)))
        if sample.record["source"] == "clothing-dataset"
        and 3 * max((pixels := read_image(sample.media, name=sample.name).pixels).shape[:2])
        <= 4 * min(pixels.shape[:2])
    )
    clip = middle(options.video, 384)
    pixels = [read_image("examples/leaves.png").pixels, shown]
    decoded = [tokenizer.decode(tokenizer.encode(image)).pixels for image in pixels]
    pixels.append(clip.frames[FRAMES // 2])
    decoded.append(tokenizer.decode(tokenizer.encode(clip)).frames[FRAMES // 2])
    names = ["examples/leaves.png", f"{photograph.key} ({photograph.record['label']})", options.video.name]
    for name, before, after in zip(names, pixels, decoded, strict=True):
        print(f"{name}: {before.shape[1]}x{before.shape[0]}, PSNR {psnr(after, before):.2f} dB")
    above, below = framed(pixels), framed(decoded)
    picture = PIL.Image.fromarray(np.vstack([np.pad(above, ((0, GAP), (0, 0), (0, 0)), constant_values=255), below]))
    picture.save(options.out, quality=92, subsampling=0, optimize=True, comment=f"nano {tokenizer.fingerprint}")
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
