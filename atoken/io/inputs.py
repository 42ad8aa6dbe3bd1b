"""What people hand to a tokenizer, as media: paths, bytes, PIL images, arrays, frames one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from atoken.errors import MediaError
from atoken.io.contents import TILE
from atoken.io.load import load_media
from atoken.media.clock import exact_fps
from atoken.media.image import Image, from_pil
from atoken.media.source import Source
from atoken.media.video import Video, VideoReader, joined_alpha
from atoken.media.views import Views
from atoken.mesh import Mesh
from atoken.modalities import MODALITIES, Modality

# A path, bytes, a binary file, a PIL image, a uint8 array ([T,] H, W, 3 or 4), Image, Video, Mesh, or Views.
Media = Any


def modality_of(media: Media) -> Modality | None:
    """The modality of an Image, Video, Mesh or Views; None for anything else."""
    return next((modality for modality in MODALITIES.values() if isinstance(media, modality.types)), None)


def as_media(media: Media) -> Image | Video | Mesh | Views:
    """Whatever ``Tokenizer.encode`` takes, as one of four types. Raises: MediaError."""
    if modality_of(media):
        return media
    if isinstance(media, str | Path | bytes) or hasattr(media, "read"):
        return load_media(media)
    if isinstance(media, np.ndarray):
        return _from_array(media)
    if hasattr(media, "getbands"):  # a PIL image, without importing Pillow for those who have none in hand
        return from_pil(media)
    more = "; a tensor goes into encode_pixels" if hasattr(media, "is_floating_point") else ""
    raise MediaError(
        f"Cannot encode a {type(media).__name__}; pass a path, bytes, a PIL image, or a uint8 array (H, W, 3){more}."
    )


def _from_array(array: np.ndarray) -> Image | Video:
    if array.ndim == 4:
        return _video(array)
    if array.ndim == 3 and array.shape[-1] == 4:
        return Image(array[..., :3], np.ascontiguousarray(array[..., 3]))
    return Image(array)


def _video(array: np.ndarray, fps: Fraction = Fraction(24)) -> Video:
    """A video of frames (T, H, W, 3), or 4 with alpha."""
    alpha = np.ascontiguousarray(array[..., 3]) if array.shape[-1] == 4 else None
    return Video(array[..., :3] if array.shape[-1] == 4 else array, fps, alpha=alpha)


def file_name(source: Any) -> str:
    """The name of the file that an input is, or is read from; "" for others."""
    path = source.path if isinstance(source, VideoReader) else source
    return Path(path).name if isinstance(path, str | Path) else ""


Frames = Source | Video | VideoReader | Iterable[np.ndarray]


def tiles(frames: Frames, fps: Fraction | float | None = None) -> Iterator[Video]:
    """Videos of at most one tile, in order, from any source of frames. Raises: MediaError."""
    if isinstance(frames, Video):
        for first in range(0, len(frames.frames), TILE):
            stamps = None if frames.timestamps is None else frames.timestamps[first : first + TILE]
            alpha = None if frames.alpha is None else frames.alpha[first : first + TILE]
            yield Video(frames.frames[first : first + TILE], frames.fps, stamps, alpha)
        return
    if isinstance(frames, str | Path | bytes) or hasattr(frames, "read"):
        with VideoReader(cast(Source, frames)) as reader:
            yield from tiles(reader, fps)
        return
    if isinstance(frames, VideoReader):
        rate = frames.info.fps if fps is None else exact_fps(fps)
        start = None
        while tile := list(islice(frames, TILE)):
            times = np.array([frame.seconds for frame in tile])
            start = times[0] if start is None else start
            shape = (1, frames.info.height, frames.info.width)
            alpha = joined_alpha([frame.alpha for frame in tile], [shape] * len(tile))
            yield Video(np.stack([frame.pixels for frame in tile]), rate, times - start, alpha)
        return
    plain = _of_one_size(frames)
    while pixels := list(islice(plain, TILE)):
        yield _video(np.stack(pixels), exact_fps(24 if fps is None else fps))


def _of_one_size(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    if not isinstance(frames, Iterable):
        raise MediaError(f"Cannot read frames from a {type(frames).__name__}; pass a video, or arrays (H, W, 3).")
    shape = None
    for number, frame in enumerate(frames):
        if not isinstance(frame, np.ndarray):
            raise MediaError(f"Frame {number} must be a uint8 array (H, W, 3), got a {type(frame).__name__}.")
        shape = frame.shape if shape is None else shape
        if frame.shape != shape:
            raise MediaError(f"Frame {number} is {frame.shape}, those before it {shape}; all must have one size.")
        yield frame
