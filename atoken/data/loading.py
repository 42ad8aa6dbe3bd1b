"""A sample of a source -> frames or voxels that fit a given budget. What is wrong with a sample is an AtokenError.

Warnings about what is not read (an audio track, a coarser grid) are left out here: a run would fill its log with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from math import ceil
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from PIL import Image

from atoken.data.sources.sample import Sample
from atoken.errors import AtokenWarning
from atoken.io import VideoReader, read_image, read_mesh
from atoken.io.image import translated
from atoken.io.media import exact_fps
from atoken.mesh import Mesh
from atoken.modalities.pixels import PATCH
from atoken.modalities.voxels import voxelize_mesh
from atoken.tokens import SparseTokens

_REDUCING_GAP = 3.0  # of Pillow: larger images are first reduced by whole numbers, to this many times the size


def load_image(sample: Sample, patches: int, least: int = 1) -> np.ndarray:
    """An image as one frame (1, H, W, 3) uint8 of at most ``patches`` patches, scaled as ``fitting`` says.

    It is made larger only where it has fewer than ``least`` patches. As everywhere, the colours below a transparent
    place count. Raises: AtokenError.
    """
    with _file(sample) as path:
        pixels = read_image(path).pixels
        height, width = pixels.shape[:2]
        return _scaled(pixels, *_grid(height, width, patches, least))[None]


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

    From a random start, every ``stride``-th frame is taken, which is drawn from one of the ranges, or ``fps`` frames a
    second by the video's mean rate. A video that is too short for that is taken closer and, where it has too few
    frames, its last one is repeated: the length never changes, because ranks must agree on it. Raises: AtokenError.
    """
    low, high = strides[int(rng.integers(len(strides)))]
    stride, place, count = Fraction(int(rng.integers(low, high, endpoint=True))), rng.random(), length * PATCH[0]
    with _file(sample) as path, VideoReader(path) as video:
        info = video.info
        stride = stride if fps is None else info.fps / exact_fps(fps)
        start, stride = _part(info.declared_frames or 1, count, stride, place)  # 1: it does not say how long it is
        grid, frames = _grid(info.height, info.width, patches, least), list[np.ndarray]()
        for number, (_, frame) in enumerate(video):
            while len(frames) < count and number >= start + len(frames) * stride:
                frames.append(_scaled(frame, *grid))
            if len(frames) == count:
                break
        return np.stack(frames + frames[-1:] * (count - len(frames)))


def load_asset(sample: Sample, most: int) -> SparseTokens:
    """A 3D asset as at most ``most`` voxels, on a coarser grid where need be. Raises: AtokenError."""
    with _file(sample) as path:
        return voxels_of(read_mesh(path), most)


def voxels_of(mesh: Mesh, most: int) -> SparseTokens:
    """At most ``most`` voxels of a mesh. Raises: AtokenError."""
    with _quiet():
        return voxelize_mesh(mesh, most).tokens


def fitting(patches: int, height: float, width: float) -> tuple[int, int]:
    """Rows and columns of patches that an image of this shape has at the largest scale at which ``patches`` hold them.

    What is no whole patch at that scale is cut off at the edges; but there is at least one row and one column, so that
    of a very long image only its middle stays.
    """
    counts = np.arange(1, patches + 1)
    columns, rows = np.maximum(1, counts * width // height), np.maximum(1, counts * height // width)
    tall, wide = (int((counts * others <= patches).sum()) for others in (columns, rows))  # more take more patches
    found = [(tall, int(columns[tall - 1])), (int(rows[wide - 1]), wide)]  # one of them may have none, but not both
    return max(found, key=np.prod)


def _grid(height: int, width: int, patches: int, least: int) -> tuple[int, int]:
    own = max(1, height // PATCH[1]) * max(1, width // PATCH[2])
    return fitting(min(patches, max(least, own)), height, width)


def _scaled(frame: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The middle of a frame in the shape of ``rows`` x ``columns`` patches, scaled to them without aliases."""
    (height, width), size = frame.shape[:2], (columns * PATCH[2], rows * PATCH[1])
    scale = max(size[0] / width, size[1] / height)
    left, top = max(0.0, (width - size[0] / scale) / 2), max(0.0, (height - size[1] / scale) / 2)
    box = (left, top, width - left, height - top)
    image = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, box, _REDUCING_GAP)
    return np.asarray(image)


def _part(total: int, count: int, stride: Fraction, place: float) -> tuple[int, Fraction]:
    """Number of the first of ``count`` frames out of ``total``, chosen by ``place`` in [0, 1), and their stride."""
    closer = Fraction((total - 1) // (count - 1))
    stride = max(min(stride, Fraction(1)), min(stride, closer))
    spare = max(0, total - 1 - ceil((count - 1) * stride))
    return int(place * (spare + 1)), stride


@contextmanager
def _file(sample: Sample) -> Iterator[Path]:
    """The sample as a file; whatever reading it raises is an AtokenError."""
    with translated(f"Cannot use {sample.key}"), _quiet():
        if isinstance(sample.media, Path):
            yield sample.media
            return
        with NamedTemporaryFile(suffix=sample.suffix) as file:
            file.write(sample.media)
            file.flush()
            yield Path(file.name)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AtokenWarning)
        yield
