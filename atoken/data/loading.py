"""A sample of a source -> frames or voxels that fit a given budget; an AtokenError says what is wrong with a sample."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np
from PIL import Image

from atoken.data.sources.sample import TIMEOUT, Sample, quiet, reading
from atoken.data.synthetic.motion import filmed
from atoken.io import VideoReader, read_image, read_mesh
from atoken.media.clock import exact_fps
from atoken.mesh import Mesh
from atoken.modalities.voxels import voxelize_mesh
from atoken.patches import PATCH
from atoken.tokens import SparseTokens

_MOST = 0.75  # of each side of an image: its object is still there
_NATIVE = 0.5  # share of the crops that are not scaled
_REDUCING_GAP = 3.0  # of Pillow: larger images are first reduced by a whole number, to about this many times the size


def load_image(sample: Sample, patches: int, least: int = 1, rng: np.random.Generator | None = None) -> np.ndarray:
    """An image as one frame (1, H, W, 3) uint8 of at most ``patches`` patches, scaled as ``fitting`` says.

    It is enlarged only if it has fewer than ``least`` patches. As everywhere, transparent pixels have their own
    colours. ``rng``: a random part of it, with at least ``_MOST`` of each side. Raises: AtokenError.
    """
    with reading(sample):
        pixels = read_image(sample.media, name=sample.name).pixels
        if rng is not None:
            pixels = _part(rng, pixels, np.ceil(rng.uniform(_MOST, 1, 2) * pixels.shape[:2]))
        height, width = pixels.shape[:2]
        return _scaled(pixels, *_grid(height, width, patches, least))[None]


def crop_image(sample: Sample, patches: int, aspect: float, rng: np.random.Generator) -> np.ndarray:
    """A random part of an image, (1, H, W, 3) uint8 of at most ``patches`` patches, and with them filled if it can be.

    Half of the parts are at the image's own resolution, the others are larger, up to the whole image, and made smaller.
    ``aspect``: longest side over shortest, at most. Raises: AtokenError.
    """
    with reading(sample):
        pixels = read_image(sample.media, name=sample.name).pixels
        most = np.maximum(np.array(pixels.shape[:2]) // PATCH[1:], 1)  # rows and columns
        patches = min(patches, int(most.prod()))
        limits = max(patches / most[1] ** 2, 1 / aspect), min(most[0] ** 2 / patches, aspect)
        shape = np.minimum(fitting(patches, np.exp(rng.uniform(*np.log(limits))), 1.0), most)
        scale = float(np.min(pixels.shape[:2] / (shape * PATCH[1:])))
        if scale > 1:
            scale = 1.0 if rng.random() < _NATIVE else scale ** rng.random()
        part = _part(rng, pixels, np.ceil(scale * shape * PATCH[1:]))
        return _scaled(part, *map(int, shape))[None]


def load_video(
    sample: Sample,
    length: int,
    patches: int,
    rng: np.random.Generator,
    *,
    least: int = 1,
    strides: Sequence[tuple[int, int]] = ((1, 1),),
    fps: float | None = None,
) -> np.ndarray:
    """``length`` time steps of a video, (T, H, W, 3) uint8, frames scaled as an image is.

    Frames are taken from a random start, with a random stride from a random one of the ranges, or with ``fps`` frames a
    second by the video's mean rate. If the video is too short, the stride is smaller; if it has too few frames, the
    last one is repeated. The length never changes, because ranks must agree on it. Raises: AtokenError.
    """
    low, high = strides[int(rng.integers(len(strides)))]
    stride, chosen, count = Fraction(int(rng.integers(low, high, endpoint=True))), rng.random(), length * PATCH[0]
    with reading(sample), VideoReader(sample.media, name=sample.name, timeout=TIMEOUT) as video:
        info = video.info
        stride = stride if fps is None else info.fps / exact_fps(fps)
        start, stride = _start(info.declared_frames or 1, count, stride, chosen)  # 1: its length is not declared
        grid, frames = _grid(info.height, info.width, patches, least), list[np.ndarray]()
        for number, (_, frame, _) in enumerate(video):
            while len(frames) < count and number >= start + len(frames) * stride:
                frames.append(_scaled(frame, *grid))
            if len(frames) == count:
                break
        return np.stack(frames + frames[-1:] * (count - len(frames)))


def film_image(sample: Sample, length: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """``length`` time steps of a camera that moves over an image, (T, H, W, 3) uint8; ``shape``: its patches.

    The camera sees a part of the image, which is enlarged only where it is smaller than what the camera moves over.
    Raises: AtokenError.
    """
    (rows, columns), count = shape, length * PATCH[0]
    height, width = rows * PATCH[1], columns * PATCH[2]
    with reading(sample):
        pixels = read_image(sample.media, name=sample.name).pixels
        return filmed(rng, Image.fromarray(pixels), count, height, width)


def load_asset(sample: Sample, most: int) -> SparseTokens:
    """A 3D asset as at most ``most`` voxels, if necessary on a coarser grid. Raises: AtokenError."""
    with reading(sample):
        return voxels_of(read_mesh(sample.media, name=sample.name, timeout=TIMEOUT), most)


def voxels_of(mesh: Mesh, most: int) -> SparseTokens:
    """At most ``most`` voxels of a mesh. Raises: AtokenError."""
    with quiet():
        return voxelize_mesh(mesh, most).tokens


def fitting(patches: int, height: float, width: float) -> tuple[int, int]:
    """Rows and columns of whole patches of an image of this shape, at the largest scale with at most ``patches``.

    What is less than a whole patch is cut off at the edges. There is at least one row and one column, so that of a very
    long image only the middle remains.
    """
    counts = np.arange(1, patches + 1)
    columns, rows = np.maximum(1, counts * width // height), np.maximum(1, counts * height // width)
    tall, wide = (int((counts * others <= patches).sum()) for others in (columns, rows))  # the first so many fit
    found = [(tall, int(columns[tall - 1])), (int(rows[wide - 1]), wide)]  # one of them may be empty, but not both
    return max(found, key=np.prod)


def _grid(height: int, width: int, patches: int, least: int) -> tuple[int, int]:
    own = max(1, height // PATCH[1]) * max(1, width // PATCH[2])
    return fitting(min(patches, max(least, own)), height, width)


def _part(rng: np.random.Generator, pixels: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A part of an image, of a height and width that are no larger than the image's, at a random place."""
    height, width = np.minimum(size, pixels.shape[:2]).astype(int)
    top, left = rng.integers(0, np.array(pixels.shape[:2]) - (height, width), endpoint=True)
    return pixels[top : top + height, left : left + width]


def _scaled(frame: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The middle of a frame in the shape of ``rows`` x ``columns`` patches, scaled to them with antialiasing."""
    (height, width), size = frame.shape[:2], (columns * PATCH[2], rows * PATCH[1])
    scale = max(size[0] / width, size[1] / height)
    left, top = max(0.0, (width - size[0] / scale) / 2), max(0.0, (height - size[1] / scale) / 2)
    box = (left, top, width - left, height - top)
    image = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, box, _REDUCING_GAP)
    return np.asarray(image)


def _start(total: int, count: int, stride: Fraction, chosen: float) -> tuple[int, Fraction]:
    """The first of ``count`` frames out of ``total``, by ``chosen`` in [0, 1), and their stride."""
    closer = Fraction((total - 1) // (count - 1))
    stride = max(min(stride, Fraction(1)), min(stride, closer))
    spare = max(0, total - 1 - ceil((count - 1) * stride))
    return int(chosen * (spare + 1)), stride
