"""Items prepared as a protocol says: cropped, scaled, cut to frames, rendered from cameras.

Images are scaled by Pillow on uint8. Alpha is left out: no metric here compares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import PIL.Image
from PIL.Image import Resampling

from atoken.cameras import FOV, RADIUS
from atoken.errors import MediaError
from atoken.io import Image, Mesh, Video, VideoReader, load_media, read_image, sniff
from atoken.media.limits import DEFAULT_LIMITS
from atoken.media.views import Views, read_views
from atoken.modalities.views import render_views
from eval.contract import Media

PATCH = 16  # pixels of a side of one token of NaFlex
FRAME_RATE = Fraction(24)  # of videos that come as folders of frames

_FILTERS = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR, "lanczos": Resampling.LANCZOS}

Cropping = Literal["none", "adm", "centre", "naflex", "at most", "short side at most"]
Filter = Literal["bicubic", "bilinear", "lanczos"]
T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """What is done to an item before a model gets it.

    crop: "none" changes nothing; "adm" and "centre" cut a square of ``size`` pixels a side (``adm_crop``,
    ``centre_crop``); "naflex" scales to at most ``size`` tokens and keeps the aspect ratio (``naflex_size``); "at most"
    scales down to ``size`` squared pixels; "short side at most" scales down until one side has ``size`` pixels.
    frames: at most so many of a video; the first ones, or, with ``spread``, evenly over it. fps: the rate at which they
    are taken. views, view_size: cameras around a mesh (``Cameras.sphere``), None where items have their own views, and
    pixels of a side; black background.
    """

    crop: Cropping = "none"
    size: int = 0
    filter: Filter = "bicubic"
    frames: int | None = None
    fps: Fraction | None = None
    spread: bool = False
    views: int | None = 16
    view_size: int = 512

    def record(self) -> dict[str, str]:
        """The fields of an ``EvalProtocol`` that this decides."""
        frames = "all" if self.frames is None else f"{self.frames} evenly" if self.spread else f"first {self.frames}"
        unit = "tokens" if self.crop == "naflex" else "pixels"
        cameras = f"{self.views} on a Hammersley sphere, radius {RADIUS:g}, {FOV:g} degrees, {self.view_size} pixels"
        return {
            "crop": self.crop,
            "filter": "none" if self.crop == "none" else f"{self.filter} (Pillow)",
            "size": "native" if self.crop == "none" else f"{self.size} {unit}",
            "frames": frames,
            "fps": "native" if self.fps is None else str(self.fps),
            "cameras": f"those of the data, {self.view_size} pixels (Lanczos)" if self.views is None else cameras,
            "background": "black",
        }

    def read(self, media: Path | Sequence[Path]) -> Media:
        """A file, a folder of views, or a video as a list of images: prepared. Raises MediaError, MissingExtraError."""
        if not isinstance(media, Path):
            return self._video((read_image(path).pixels for path in self._cut(media)), FRAME_RATE)
        modality, format = sniff(media, first_frame=True)
        if format.folder_file:
            return read_views(media, self.view_size)
        if modality.read_frames:
            stop = None if self.spread else self.frames
            with VideoReader(media, frames=(0, stop), fps=self.fps) as reader:
                return self._video((frame.pixels for frame in reader), self.fps or reader.info.fps)
        return self(load_media(media, first_frame=True))

    def __call__(self, media: Image | Video | Mesh | Views) -> Media:
        """What is in memory, prepared. Raises: MediaError, MissingExtraError."""
        if isinstance(media, Image):
            return Image(self.pixels(media.pixels))
        if isinstance(media, Video):
            return self._video(media.frames, media.fps)
        if isinstance(media, Views):
            return media
        if self.views is None:
            raise MediaError("A mesh has no views of its own; use a task that renders some.")
        return render_views(media, self.views, self.view_size)

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 of an image, cropped and scaled."""
        if self.crop == "none":
            return pixels
        image = cropped(PIL.Image.fromarray(pixels), self.crop, self.size, _FILTERS[self.filter])
        return np.array(image)  # a copy: Pillow's own pixels are read-only, and torch warns of that

    def _video(self, frames: Iterable[np.ndarray], fps: Fraction) -> Video:
        """Frames are cropped one by one, so that only cropped ones are in memory."""
        kept: list[np.ndarray] = []
        for frame in frames:
            kept.append(self.pixels(frame))
            if len(kept) * kept[0].nbytes > DEFAULT_LIMITS.max_memory:
                most = f"{DEFAULT_LIMITS.max_memory / 2**30:g} GiB"
                raise MediaError(f"The video has over {most} of frames; use a task with fewer frames.")
        if not kept:
            raise MediaError("The video has no frames; leave it out.")
        if len({frame.shape for frame in kept}) > 1:
            raise MediaError("The frames of the video differ in size; bring them to one size.")
        return Video(np.stack(self._cut(kept)), fps)

    def _cut(self, frames: Sequence[T]) -> Sequence[T]:
        if self.frames is None or len(frames) <= self.frames:
            return frames
        return [frames[index] for index in evenly(len(frames), self.frames)] if self.spread else frames[: self.frames]


def evenly(count: int, wanted: int) -> list[int]:
    """``wanted`` numbers below ``count``, evenly from the first to the last, halves rounded down."""
    return [number * (count - 1) // max(wanted - 1, 1) for number in range(wanted)]


def cropped(image: PIL.Image.Image, crop: Cropping, size: int, filter: Resampling) -> PIL.Image.Image:
    """An image as ``Preparation`` describes it, for any crop but "none"."""
    if crop == "adm":
        return adm_crop(image, size, filter)
    if crop == "centre":
        return centre_crop(image, size, filter)
    if crop == "naflex":
        rows, columns = naflex_size(image.height, image.width, size)
        return image.resize((columns * PATCH, rows * PATCH), filter)
    scale = size / ((image.width * image.height) ** 0.5 if crop == "at most" else min(image.size))
    if scale >= 1:  # only ever down
        return image
    width, height = (max(round(length * scale), 1) for length in image.size)
    return image.resize((width, height), filter)


def adm_crop(image: PIL.Image.Image, side: int, filter: Resampling) -> PIL.Image.Image:
    """The square of ADM (Dhariwal and Nichol 2021).

    Halved by box means while the shorter side is twice ``side`` or more, then as ``centre_crop``.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    return centre_crop(image, side, filter)


def centre_crop(image: PIL.Image.Image, side: int, filter: Resampling) -> PIL.Image.Image:
    """Scaled so that the shorter side is ``side``, then cut around the centre; an odd pixel goes right or below."""
    shorter = min(image.size)
    width, height = (max(round(length * side / shorter), side) for length in image.size)
    image = image.resize((width, height), filter)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def naflex_size(height: int, width: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of patches at the largest scale of an image that has at most ``tokens`` of them.

    A side is rounded up to whole patches (NaFlex, SigLIP 2, arXiv 2502.14786). As the scale grows, a count of patches
    rises just after a side is a whole number of them; so at the largest scale one of the sides is a whole number.
    """
    best = (0, 1, 1)
    for whole in range(1, tokens + 1):
        # The scale times height times width, over 16, which is a whole number; then rows and columns.
        by_rows = (whole * width, whole, -(-whole * width // height))
        by_columns = (whole * height, -(-whole * height // width), whole)
        fitting = (one for one in (by_rows, by_columns) if one[1] * one[2] <= tokens)
        best = max([best, *fitting], key=lambda one: one[0])
    return best[1:]
