"""JPEG, WebP and AVIF, as Pillow writes them: at a quality, or at the bytes of another model."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import PIL
import PIL.Image
from PIL import features

from atoken.errors import AtokenError
from eval.contract import Item, Output
from eval.models.pixels import PixelModel, frames_of

T = TypeVar("T")


@dataclass(frozen=True)
class AtMost:
    """Bytes that the file of an item may take: one number for all, or a number by key. ``like``: whose bytes they are.

    An item whose smallest file takes more fails with one sentence.
    """

    size: int | Mapping[str, int]
    like: str = ""

    def __str__(self) -> str:
        most = "those of " + self.like if self.like else "given" if isinstance(self.size, Mapping) else f"{self.size:,}"
        return f"at most {most}"

    def of(self, key: str) -> int:
        """The bytes of one item. Raises: AtokenError where there is no number for it."""
        if isinstance(self.size, int):
            return self.size
        if key not in self.size:
            raise AtokenError(f"There is no number of bytes for {key}; measure {self.like or 'it'} on the same items.")
        return self.size[key]


def file_at(quality: T | AtMost, model: str, key: str, levels: Sequence[T], encoded: Callable[[T], bytes]) -> bytes:
    """The file of an item at a quality, or at the highest of ``levels`` that is small enough. Raises: AtokenError."""
    if not isinstance(quality, AtMost):
        return encoded(quality)
    most = quality.of(key)
    found = largest(levels, encoded, most)
    if found is None:
        raise AtokenError(
            f"{model} takes {len(encoded(levels[0])):,} bytes for {key} at its lowest quality, over the {most:,} asked "
            "for; ask for more bytes, or leave it out of the comparison."
        )
    return found[1]


def largest(levels: Sequence[T], encoded: Callable[[T], bytes], most: int) -> tuple[T, bytes] | None:
    """The highest of ``levels`` whose file has at most ``most`` bytes, and that file; None where none has.

    By bisection, which assumes that files grow from level to level. Where some do not (entropy coders), at least the
    file of the next level is over ``most``.
    """
    low, high, best = 0, len(levels), None
    while low < high:
        middle = (low + high) // 2
        data = encoded(levels[middle])
        if len(data) <= most:
            low, best = middle + 1, (levels[middle], data)
        else:
            high = middle
    return best


@dataclass(frozen=True)
class ImageFormat:
    """A format of Pillow: its name in ``features``, its qualities from worst to best, its other options."""

    name: str
    feature: str
    qualities: range
    options: Mapping[str, Any] = field(default_factory=dict)


FORMATS = {
    # Optimal Huffman tables and the smaller of JPEG's two orders; subsampling 2 is 4:2:0, which the other two have.
    "jpeg": ImageFormat("JPEG", "jpg", range(1, 101), {"optimize": True, "progressive": True, "subsampling": 2}),
    "webp": ImageFormat("WebP", "webp", range(101), {"method": 4}),
    # Threads do not change what is written, but cost more than they bring where the cores are busy.
    "avif": ImageFormat("AVIF", "avif", range(101), {"speed": 6, "subsampling": "4:2:0", "max_threads": 1}),
}


class ImageCodec(PixelModel):
    """A codec of images. ``size`` is the whole file, header included; alpha is left out; chroma is halved (4:2:0).

    quality: as Pillow counts it, from 1 (JPEG) or 0 to 100; or ``AtMost``, for each item the highest quality whose file
    is not larger. Raises: AtokenError for another format or quality, or where this Pillow was built without it.
    """

    def __init__(self, format: str, quality: int | AtMost) -> None:
        if format not in FORMATS:
            raise AtokenError(f"There is no image codec {format!r}; choose from {', '.join(FORMATS)}.")
        self.format, self.quality = FORMATS[format], quality
        if not features.check(self.format.feature):
            raise AtokenError(f"This Pillow ({PIL.__version__}) was built without {self.format.name}; install another.")
        if isinstance(quality, int) and quality not in self.format.qualities:
            low, high = self.format.qualities[0], self.format.qualities[-1]
            raise AtokenError(f"The quality of {self.format.name} is from {low} to {high}, got {quality}.")
        self.name = f"{self.format.name}, {'bytes' if isinstance(quality, AtMost) else 'quality'} {quality}"
        self.record = {
            "codec": f"{self.format.name}, 4:2:0",
            "options": ", ".join(f"{name}={value}" for name, value in self.format.options.items()),
            "encoder": f"Pillow {PIL.__version__}, {self.format.feature} {features.version(self.format.feature)}",
            "quality": str(quality),
            "bytes": "whole file",
        }

    def _output(self, item: Item) -> Output:
        frames = frames_of(item, self.format.name)
        if len(frames) != 1:
            raise AtokenError(f"{self.format.name} stores images and {item.key} is a video; take h264 or h265.")
        encoded = partial(self.encoded, frames[0])
        data = file_at(self.quality, self.format.name, item.key, self.format.qualities, encoded)
        prediction = np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
        return Output(item, frames, prediction[None], size=len(data))

    def encoded(self, image: np.ndarray, quality: int) -> bytes:
        """The file of an image (H, W, 3). Raises: AtokenError where the format has no such size."""
        file = io.BytesIO()
        try:
            PIL.Image.fromarray(image).save(file, self.format.name, quality=quality, **self.format.options)
        except (OSError, ValueError) as error:
            height, width, _ = image.shape
            raise AtokenError(f"{self.format.name} cannot hold an image of {width}x{height} ({error}).") from error
        return file.getvalue()
