"""Make the picture of README: originals above, below what their tokens of nano become; and print what it shows.

From left to right: ``examples/leaves.png``; the first photograph of clothing-dataset (CC0), at most 4 : 3, in a
shard of the test split; the middle frame of a video, of which nano has seen the 16 frames around it. The picture's
comment is the fingerprint of the weights, by which a test knows that it is theirs.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL.Image

import atoken
from atoken.data.sources import Sample, ShardSource
from atoken.errors import AtokenError, AtokenWarning, MediaError
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


def first_free(path: Path) -> tuple[Sample, np.ndarray]:
    """The first photograph of clothing-dataset that is not too wide or high, and its pixels. Raises: MediaError."""
    shard = ShardSource(path)
    for sample in map(shard.__getitem__, range(len(shard))):
        if sample.record.get("source") == "clothing-dataset":
            pixels = read_image(sample.media, name=sample.name).pixels
            if 3 * max(pixels.shape[:2]) <= 4 * min(pixels.shape[:2]):
                return sample, pixels
    raise MediaError(f"{path} has no photograph of clothing-dataset of at most 4 : 3; name clothes.tar of a split.")


def framed(images: list[np.ndarray]) -> np.ndarray:
    """Images beside one another on white."""
    height = max(len(image) for image in images)
    row = [np.pad(image, ((0, height - len(image)), (0, GAP), (0, 0)), constant_values=255) for image in images]
    return np.hstack(row)[:, :-GAP]


def make(shard: Path, video: Path, out: Path) -> None:
    """Write the picture. Raises: AtokenError, OSError."""
    warnings.simplefilter("ignore", AtokenWarning)  # the video's sound is not shown
    photograph, shown = first_free(shard)
    clip = middle(video, 384)
    pixels = [read_image("examples/leaves.png").pixels, shown]
    tokenizer = atoken.load("nano", device="cpu")
    decoded = [tokenizer.decode(tokenizer.encode(image)).pixels for image in pixels]
    pixels.append(clip.frames[FRAMES // 2])
    decoded.append(tokenizer.decode(tokenizer.encode(clip)).frames[FRAMES // 2])
    names = ["examples/leaves.png", f"{photograph.key} ({photograph.record['label']})", video.name]
    for name, before, after in zip(names, pixels, decoded, strict=True):
        print(f"{name}: {before.shape[1]}x{before.shape[0]}, PSNR {psnr(after, before):.2f} dB")
    above, below = framed(pixels), framed(decoded)
    picture = PIL.Image.fromarray(np.vstack([np.pad(above, ((0, GAP), (0, 0), (0, 0)), constant_values=255), below]))
    picture.save(out, quality=92, subsampling=0, optimize=True, comment=f"nano {tokenizer.fingerprint}")
    print(f"{out}: {out.stat().st_size:,} bytes")


def main() -> None:
    """Write the picture; one sentence where a path is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shard", type=Path, help="of photographs, with a source in the .json of each")
    parser.add_argument("video", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/before-after.jpg"))
    options = parser.parse_args()
    try:
        make(options.shard, options.video, options.out)
    except (AtokenError, OSError) as error:
        sys.exit(f"{options.out} was not made: {error}")


if __name__ == "__main__":
    main()
