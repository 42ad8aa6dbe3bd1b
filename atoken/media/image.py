"""Images through Pillow: one format picked by magic bytes, size checked before decoding, alpha kept.

Everything becomes 8-bit RGB, with alpha if the image has any transparency:

* palette, grey, 1-bit, CMYK and YCbCr as Pillow converts them; ICC profiles and gamma chunks are ignored;
* integers of 16 and 32 bits: the top 8 of the fewest of 8, 10, 12, 14 or 16 bits that hold the largest value; the
  alpha of 16-bit images keeps its high byte, as do colours of CMYK and of premultiplied or planar TIFF files;
* floats ("F"): values that all lie in 0..1 are scaled to 0..255, in 0..255 rounded, others are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atoken.atomic import Target, atomic_path, called, suffix_of
from atoken.errors import AtokenWarning, MediaError
from atoken.media.formats import format_of
from atoken.media.image_formats import FORMATS, Turn, open_image, turn_of
from atoken.media.image_values import floats_to_8_bits, is_wide, low_bytes, raw_mode, to_8_bits
from atoken.media.limits import DEFAULT_LIMITS, Limits
from atoken.media.source import Source, name_of, opened, translated
from atoken.summary import Summary

if TYPE_CHECKING:
    import PIL.Image

_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    **dict.fromkeys((".jpg", ".jpeg"), ("JPEG", {"quality": 95, "subsampling": 0})),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: the colours of transparent pixels, too
    **dict.fromkeys((".tif", ".tiff"), ("TIFF", {"compression": "tiff_adobe_deflate"})),
}


@dataclass(frozen=True, repr=False)
class Image(Summary):
    """An image: ``pixels`` (H, W, 3) uint8 RGB, and ``alpha`` (H, W) uint8, not premultiplied, or None."""

    pixels: np.ndarray
    alpha: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_pixels(self.pixels, 3, "An image", "(H, W, 3)")
        check_alpha(self.alpha, self.pixels.shape[:-1])

    def save(self, target: Target, *, format: str | None = None) -> None:
        """Write the image as ``write_image`` does. Raises: MediaError."""
        write_image(self, target, format=format)


def check_pixels(pixels: np.ndarray, axes: int, what: str, shape: str) -> None:
    """Refuse what is not uint8 RGB with so many axes and at least one pixel. Raises: MediaError."""
    if pixels.ndim != axes or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise MediaError(
            f"{what} must be a uint8 array of shape {shape} with at least one pixel, got {pixels.dtype} {pixels.shape}."
        )


def check_alpha(alpha: np.ndarray | None, shape: tuple[int, ...]) -> None:
    """Refuse an alpha channel that is not uint8 of this shape. Raises: MediaError."""
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != shape):
        raise MediaError(f"alpha must be uint8 of shape {shape}, got {alpha.dtype} {alpha.shape}.")


def read_image(source: Source, *, name: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read an image of one of ``FORMATS`` as (H, W, 3) uint8 RGB, upright by its EXIF orientation, alpha kept.

    ``source``: a path, bytes, or a binary file; ``name`` is for messages. A file with several frames or pages gives its
    first one and an AtokenWarning. The size is checked against ``limits`` before any pixel is decoded. Raises:
    MediaError (missing, damaged, truncated, over a limit, not an image), MissingExtraError (HEIC without its package).
    """
    name = name_of(source, name)
    with opened(source, name) as file, translated(f"Cannot read {name}"):
        format = format_of(file, name, FORMATS, "an image")
        pil = open_image(file, format)
        limits.check_size(pil.height, pil.width, f"The image {name}")
        stored = raw_mode(pil)
        pil.load()
        limits.check_size(pil.height, pil.width, f"The image {name}")  # decoding may change it
        if getattr(pil, "is_animated", False):
            warnings.warn(f"Only the first of the frames or pages of {name} is used.", AtokenWarning, stacklevel=2)
        low = (lambda: low_bytes(open_image(file, format))) if is_wide(stored) else None
        return _upright(_convert(pil, f"The image {name}", stored, low), turn_of(pil, name))


def from_pil(pil: PIL.Image.Image, *, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Convert a Pillow image of any mode as ``read_image`` would: upright by its EXIF orientation, alpha kept.

    Of colours of 16 bits it has the high byte only, as Pillow does; ``read_image`` reads the file better.
    Raises: MediaError (over a limit, pixels that cannot be loaded or converted).
    """
    limits.check_size(pil.height, pil.width, "The image")
    with translated("Cannot use the image"):
        stored = raw_mode(pil)
        pil.load()
        return _upright(_convert(pil, "The image", stored), turn_of(pil, "the image"))


def write_image(image: Image, target: Target, *, format: str | None = None) -> None:
    """Write an image: atomically to a path, or to a binary file object.

    The format is that of the target's suffix, or ``format``; a file object, a device or a pipe without one gets a PNG.
    .png, .webp and .tif are lossless, with alpha; .jpg is of quality 95 with full colour (4:4:4), without alpha.
    Raises: MediaError (another format, a JPEG of an image with transparent pixels, a failure to write).
    """
    import PIL.Image

    suffix = suffix_of(target, ".png", format)
    if suffix not in _WRITTEN:
        raise MediaError(
            f"Cannot write {called(target)}: images are written as {', '.join(_WRITTEN)}; use one of these."
        )
    kind, how = _WRITTEN[suffix]
    alpha = image.alpha
    if kind == "JPEG" and alpha is not None:
        if alpha.min() < 255:
            raise MediaError(f"Cannot write {called(target)}: a JPEG has no transparency; use .png, .webp or .tif.")
        alpha = None
    pixels = image.pixels if alpha is None else np.dstack([image.pixels, alpha])
    with atomic_path(target, MediaError) as temporary:
        try:
            PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, kind, **how)
        except ValueError as error:  # WebP has at most 16383 pixels a side
            raise MediaError(f"Cannot write {called(target)} as {kind}: {error}.") from error


def _upright(image: Image, turn: Turn) -> Image:
    swap, rows, columns = turn

    def turned(array: np.ndarray) -> np.ndarray:
        array = array.swapaxes(0, 1) if swap else array
        return np.ascontiguousarray(array[:: -1 if rows else 1, :: -1 if columns else 1])

    return Image(turned(image.pixels), None if image.alpha is None else turned(image.alpha))


def _convert(pil: PIL.Image.Image, what: str, stored: str, low: Callable[[], np.ndarray] | None = None) -> Image:
    """Convert a loaded image of the raw mode ``stored``; ``low`` gives the low bytes that Pillow leaves out."""
    hidden = pil.info.get("transparency")
    if pil.mode.startswith("I"):
        values = np.asarray(pil)
        alpha = None if hidden is None else _shown(values != hidden)
        return Image(_grey(to_8_bits(values, what)), alpha)
    if pil.mode == "F":
        return Image(_grey(floats_to_8_bits(np.asarray(pil), what)))
    if ";16" in stored:
        high = np.asarray(pil)
        small = int(high[..., :3].max()) < 64  # values of 14 bits or less
        if low is not None and (hidden is not None or small):
            return _wide(high, low(), hidden, what)
        if small:
            text = (
                f"Of {what[0].lower()}{what[1:]} only the high byte of 16 bits is read, which is at most {high.max()}."
            )
            warnings.warn(text, AtokenWarning, stacklevel=3)
    if isinstance(hidden, tuple) and max(hidden) > 255:  # a colour of 16 bits; Pillow keeps the high byte of pixels
        pil.info["transparency"] = tuple(value >> 8 for value in hidden)
    if pil.mode in ("La", "PA"):
        pil = pil.convert("LA" if pil.mode == "La" else "RGBA")
    if pil.has_transparency_data:
        rgba = _pixels(pil, "RGBA")
        return Image(rgba[..., :3].copy(), rgba[..., 3].copy())
    return Image(_pixels(pil, "RGB").copy())


def _pixels(pil: PIL.Image.Image, mode: str) -> np.ndarray:
    return np.asarray(pil if pil.mode == mode else pil.convert(mode))  # convert copies even where nothing changes


def _wide(high: np.ndarray, low: np.ndarray, hidden: tuple[int, ...] | None, what: str) -> Image:
    """An image from the high and the low bytes of its channels, RGB or RGBA; one colour may be hidden."""
    colours = (high.astype(np.uint16) << 8 | low)[..., :3]
    alpha = high[..., 3] if high.shape[2] == 4 else None if hidden is None else _shown((colours != hidden).any(-1))
    return Image(to_8_bits(colours, what), alpha)


def _shown(mask: np.ndarray) -> np.ndarray:
    return mask * np.uint8(255)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)
