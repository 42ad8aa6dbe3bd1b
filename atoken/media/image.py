"""Images through Pillow: one format picked by magic bytes, size checked before decoding, alpha kept.

Everything becomes 8-bit RGB, with alpha if the image has any transparency:

* palette, grey, 1-bit, CMYK and YCbCr as Pillow converts them; ICC profiles and gamma chunks are ignored;
* 16 bits a channel keep their high byte (65535 becomes 255);
* 32-bit integers ("I"): values that all lie in 0..255 are taken as they are, in 0..65535 as 16-bit, others are refused;
* floats ("F"): values that all lie in 0..1 are scaled to 0..255, in 0..255 rounded, others are refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from atoken.atomic import Target, atomic_path, called, suffix_of
from atoken.errors import AtokenWarning, MediaError
from atoken.media.formats import Format, begins, format_of
from atoken.media.limits import DEFAULT_LIMITS, Limits
from atoken.media.source import Source, name_of, opened, translated

if TYPE_CHECKING:
    from typing import IO

    import PIL.Image
    from PIL.ImageFile import ImageFile

# The opener of each format in Pillow. PIL.Image.open would add warnings and a fixed size limit of its own.
_OPENERS = {
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "JPEG": ("PIL.JpegImagePlugin", "jpeg_factory"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
}
_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    **dict.fromkeys((".jpg", ".jpeg"), ("JPEG", {"quality": 95, "subsampling": 0})),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: the colours of transparent pixels, too
    **dict.fromkeys((".tif", ".tiff"), ("TIFF", {"compression": "tiff_adobe_deflate"})),
}
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
FORMATS = (
    Format("PNG", (".png",), begins(b"\x89PNG\r\n\x1a\n")),
    Format("JPEG", (".jpg", ".jpeg"), begins(b"\xff\xd8\xff")),
    Format("WEBP", (".webp",), lambda head: head.start[:4] == b"RIFF" and head.start[8:12] == b"WEBP"),
    Format("TIFF", (".tif", ".tiff"), begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    Format("BMP", (".bmp",), lambda head: head.start[:2] == b"BM" and _bmp_header(head.start) in _BMP_HEADER_SIZES),
    Format("GIF", (".gif",), begins(b"GIF87a", b"GIF89a")),
)
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Image:
    """An image: ``pixels`` (H, W, 3) uint8 RGB, and ``alpha`` (H, W) uint8, not premultiplied, or None."""

    pixels: np.ndarray
    alpha: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_pixels(self.pixels, 3, "An image", "(H, W, 3)")
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != self.pixels.shape[:2]):
            raise MediaError(
                f"alpha must be uint8 of shape {self.pixels.shape[:2]}, got {self.alpha.dtype} {self.alpha.shape}."
            )

    def save(self, target: Target, *, format: str | None = None) -> None:
        """Write the image as ``write_image`` does. Raises: MediaError."""
        write_image(self, target, format=format)


def check_pixels(pixels: np.ndarray, axes: int, what: str, shape: str) -> None:
    """Refuse what is not uint8 RGB with so many axes and at least one pixel. Raises: MediaError."""
    if pixels.ndim != axes or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise MediaError(
            f"{what} must be a uint8 array of shape {shape} with at least one pixel, got {pixels.dtype} {pixels.shape}."
        )


def read_image(source: Source, *, name: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read a PNG, JPEG, WebP, TIFF, BMP or GIF as (H, W, 3) uint8 RGB, upright by its EXIF orientation, alpha kept.

    ``source``: a path, bytes, or a binary file; ``name`` is for messages. A file with several frames or pages gives its
    first one and an AtokenWarning. The size is checked against ``limits`` before any pixel is decoded. Raises:
    MediaError (missing, damaged, truncated, over a limit, not an image).
    """
    name = name_of(source, name)
    with opened(source, name) as file, translated(f"Cannot read {name}"):
        pil = _open(file, format_of(file, name, FORMATS, "an image"))
        limits.check_size(pil.height, pil.width, f"The image {name}")
        _scale_transparency(pil)
        pil.load()
        if getattr(pil, "is_animated", False):
            warnings.warn(f"Only the first of the frames or pages of {name} is used.", AtokenWarning, stacklevel=2)
        return _convert(_upright(pil, name))


def from_pil(pil: PIL.Image.Image, *, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Convert a Pillow image of any mode as ``read_image`` would: upright by its EXIF orientation, alpha kept.

    Raises: MediaError (over a limit, pixels that cannot be loaded or converted).
    """
    limits.check_size(pil.height, pil.width, "The image")
    with translated("Cannot use the image"):
        pil.load()
        return _convert(_upright(pil, "the image"))


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


def _bmp_header(start: bytes) -> int:
    return int.from_bytes(start[14:18], "little")


def _open(file: IO[bytes], format: str) -> ImageFile:
    module, opener = _OPENERS[format]
    pil: ImageFile = getattr(import_module(module), opener)(file)
    return pil


def _scale_transparency(pil: ImageFile) -> None:
    """Bring the transparent colour of a 16-bit RGB PNG to the 8 bits to which Pillow brings the pixels."""
    colour = pil.info.get("transparency")
    if isinstance(colour, tuple) and pil.tile and pil.tile[0].args == "RGB;16B":
        pil.info["transparency"] = tuple(value >> 8 for value in colour)


def _upright(pil: PIL.Image.Image, what: str) -> PIL.Image.Image:
    from PIL import ImageOps

    try:
        return pil if pil.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(pil)
    except Exception:  # noqa: BLE001 - damaged EXIF raises nearly any type, and the pixels are sound without it
        warnings.warn(f"The EXIF data of {what} is damaged; its orientation is ignored.", AtokenWarning, stacklevel=3)
        return pil


def _convert(pil: PIL.Image.Image) -> Image:
    if pil.mode.startswith("I;16"):
        return _from_16_bit(np.asarray(pil), pil.info.get("transparency"))
    if pil.mode in ("I", "F"):
        values = np.asarray(pil)
        return _grey(_from_integers(values) if pil.mode == "I" else _from_floats(values))
    if pil.mode in ("La", "PA"):
        pil = pil.convert("LA" if pil.mode == "La" else "RGBA")
    if pil.has_transparency_data:
        rgba = _pixels(pil, "RGBA")
        return Image(rgba[..., :3].copy(), rgba[..., 3].copy())
    return Image(_pixels(pil, "RGB").copy())


def _pixels(pil: PIL.Image.Image, mode: str) -> np.ndarray:
    return np.asarray(pil if pil.mode == mode else pil.convert(mode))  # convert copies even where nothing changes


def _from_16_bit(values: np.ndarray, transparent: int | None) -> Image:
    alpha = None if transparent is None else np.where(values == transparent, 0, 255).astype(np.uint8)
    return _grey((values >> 8).astype(np.uint8), alpha)


def _from_integers(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise MediaError(f"The image has 32-bit values from {low} to {high}; scale it to 8 or 16 bits first.")
    return (values >> 8 if high > 255 else values).astype(np.uint8)


def _from_floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):
        raise MediaError(f"The image has float values from {low:g} to {high:g}; scale it to 0..1 or 0..255 first.")
    return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)


def _grey(grey: np.ndarray, alpha: np.ndarray | None = None) -> Image:
    return Image(np.repeat(grey[..., None], 3, axis=2), alpha)
