"""Images and frames in another size, which happens only where a user asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from atoken.errors import MediaError
from atoken.media.image import Image
from atoken.media.video import Video

_REDUCING_GAP = 3.0  # of Pillow: a larger image is first reduced by a whole number, to about this many times the size


def at_most(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """Pixels (H, W, 3 or 4) uint8 whose longer side is ``side`` at most; the aspect is kept, Lanczos with antialiasing.

    Of four channels the last is alpha, by which the colours are weighted. What is small enough is given back as it is,
    and so is everything if ``side`` is None. Raises: MediaError for a side below 1.
    """
    return resized(pixels, *fitted(pixels.shape[0], pixels.shape[1], side))


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels as in ``at_most``, in another size: Lanczos with antialiasing."""
    if pixels.shape[:2] == (height, width):
        return pixels
    import PIL.Image

    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((width, height), PIL.Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP))


def fitted(height: int, width: int, side: int | None) -> tuple[int, int]:
    """Height and width as ``at_most`` makes them. Raises: MediaError for a side below 1."""
    if side is not None and side < 1:
        raise MediaError(f"max_side must be 1 pixel or more, got {side}.")
    scale = 1.0 if side is None else min(side / max(height, width), 1.0)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def smaller(media: Any, side: int | None) -> Any:
    """An image or video with sides of at most ``side``; other media, which have no pixels of their own, unchanged."""
    return media if side is None else changed(media, lambda pixels: at_most(pixels, side))


def changed(media: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """An image or video with ``change`` done to the pixels (H, W, 3 or 4) of each frame; other media as they are."""
    if isinstance(media, Image):
        if media.alpha is None:
            return Image(change(media.pixels))
        both = change(np.dstack([media.pixels, media.alpha]))
        return Image(both[..., :3].copy(), both[..., 3].copy())
    if isinstance(media, Video):
        if media.alpha is None:
            return replace(media, frames=np.stack([change(frame) for frame in media.frames]))
        both = np.stack([change(np.dstack(pair)) for pair in zip(media.frames, media.alpha, strict=True)])
        return replace(media, frames=both[..., :3].copy(), alpha=both[..., 3].copy())
    return media
