"""Items prepared as a protocol says: cropped, scaled, cut to frames, rendered from cameras.

Images are scaled by Pillow on uint8. Alpha is left out: no metric here compares it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

Cropping = Literal["none", "adm", "centre", "naflex", "at most", "short side at most"]
Filter = Literal["bicubic", "bilinear"]
T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """What is done to an item before a model gets it.

    crop: "none" changes nothing; "adm" and "centre" cut a square of ``size`` pixels a side (``adm_crop``,
    ``centre_crop``); "naflex" scales to at most ``size`` tokens and keeps the aspect ratio (``naflex_size``); "at most"
    scales down to ``size`` squared pixels; "short side at most" scales down until one side has ``size`` pixels.
    frames: at most so many of a video; the first ones, or, with ``spread``, evenly over it. fps: the rate at which they
    are taken. stride: take every n-th one. views, view_size: cameras around a mesh (``Cameras.sphere``), None where
    items have their own views, and pixels of a side; black background.
    """

    crop: Cropping = "none"
    size: int = 0
    filter: Filter = "bicubic"
    frames: int | None = None
    fps: Fraction | None = None
    stride: int = 1
    spread: bool = False
    views: int | None = 16
    view_size: int = 512

    def record(self) -> dict[str, str]:
        """The fields of an ``EvalProtocol`` that this decides."""
        frames = "all" if self.frames is None else f"{self.frames} evenly" if self.spread else f"first {self.frames}"
        unit = "tokens" if self.crop == "naflex" else "pixels"
        return {
            "crop": self.crop,
            "filter": "none" if self.crop == "none" else f"{self.filter} (Pillow)",
            "size": "native" if self.crop == "none" else f"{self.size} {unit}",
            "frames": frames,
            "fps": "native" if self.fps is None else str(self.fps),
            "stride": str(self.stride),
            "cameras": self._cameras(),
            "background": "black",
        }

    def _cameras(self) -> str:
        if self.views is None:
            return f"those of the data, {self.view_size} pixels (Lanczos)"
        return f"{self.views} on a Hammersley sphere, radius {RADIUS:g}, {FOV:g} degrees, {self.view_size} pixels"

    def read(self, media: Path | Sequence[Path]) -> Media:
        """A file, a folder of views, or a video as a list of images: prepared. Raises MediaError, MissingExtraError."""
        if not isinstance(media, Path):
            frames = (read_image(path).pixels for path in self._cut(media[:: self.stride]))
            return self._video(frames, FRAME_RATE, chosen=True)
        modality, format = sniff(media)
        if format.folder_file:
            return read_views(media, self.view_size)
        if modality.read_frames:
            stop = None if self.frames is None or self.spread else self.frames * self.stride
            with VideoReader(media, frames=(0, stop), fps=self.fps) as reader:
                return self._video((frame for _, frame in reader), self.fps or reader.info.fps)
        return self(load_media(media))

    def __call__(self, media: Image | Video | Mesh | Views) -> Media:
        """What is in memory, prepared."""
        if isinstance(media, Image):
            return Image(self._pixels(media.pixels))
        if isinstance(media, Video):
            return self._video(media.frames, media.fps)
        return self._rendered(media) if isinstance(media, Mesh) else media

    def _rendered(self, mesh: Mesh) -> Views:
        if self.views is None:
            raise MediaError("A mesh has no views of its own; use a task that renders some.")
        return render_views(mesh, self.views, self.view_size)

    def _pixels(self, pixels: np.ndarray) -> np.ndarray:
        if self.crop == "none":
            return pixels
        done = _CROPS[self.crop](PIL.Image.fromarray(pixels), self.size, _FILTERS[self.filter])
        return np.array(done)  # a copy: Pillow's own pixels are read-only, and torch warns of that

    def _video(self, frames: Iterable[np.ndarray], fps: Fraction, *, chosen: bool = False) -> Video:
        """Frames are cropped one by one, so that only cropped ones are in memory."""
        kept: list[np.ndarray] = []
        for number, frame in enumerate(frames):
            if chosen or number % self.stride == 0:
                kept.append(self._pixels(frame))
                _check_memory(kept)
        if not kept:
            raise MediaError("The video has no frames; leave it out.")
        if len({frame.shape for frame in kept}) > 1:
            raise MediaError("The frames of the video differ in size; bring them to one size.")
        return Video(np.stack(kept if chosen else self._cut(kept)), fps / self.stride)

    def _cut(self, frames: Sequence[T]) -> Sequence[T]:
        if self.frames is None or len(frames) <= self.frames:
            return frames
        indices = evenly(len(frames), self.frames) if self.spread else range(self.frames)
        return [frames[index] for index in indices]


def evenly(count: int, wanted: int) -> list[int]:
    """``wanted`` numbers below ``count``, evenly from the first to the last, halves rounded down."""
    return [number * (count - 1) // max(wanted - 1, 1) for number in range(wanted)]


def _check_memory(kept: list[np.ndarray]) -> None:
    if len(kept) * kept[0].nbytes > DEFAULT_LIMITS.max_memory:
        raise MediaError(
            f"The video has over {DEFAULT_LIMITS.max_memory / 2**30:g} GiB of frames; use a task with fewer frames."
        )


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


def _naflex(image: PIL.Image.Image, tokens: int, filter: Resampling) -> PIL.Image.Image:
    rows, columns = naflex_size(image.height, image.width, tokens)
    return image.resize((columns * PATCH, rows * PATCH), filter)


def _at_most(image: PIL.Image.Image, side: int, filter: Resampling) -> PIL.Image.Image:
    return _scaled(image, side / (image.width * image.height) ** 0.5, filter)


def _short_side(image: PIL.Image.Image, side: int, filter: Resampling) -> PIL.Image.Image:
    return _scaled(image, side / min(image.size), filter)


def _scaled(image: PIL.Image.Image, scale: float, filter: Resampling) -> PIL.Image.Image:
    """Scaled down, never up."""
    if scale >= 1:
        return image
    width, height = (max(round(length * scale), 1) for length in image.size)
    return image.resize((width, height), filter)


_FILTERS = {"bicubic": Resampling.BICUBIC, "bilinear": Resampling.BILINEAR}
_CROPS: dict[str, Callable[[PIL.Image.Image, int, Resampling], PIL.Image.Image]] = {
    "adm": adm_crop,
    "centre": centre_crop,
    "naflex": _naflex,
    "at most": _at_most,
    "short side at most": _short_side,
}
