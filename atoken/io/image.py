"""Images through Pillow: one format picked by magic bytes, size checked before decoding, alpha kept.

Everything becomes 8-bit RGB, with alpha where the image has transparency in any form:

* palette, grey, 1-bit, CMYK and YCbCr as Pillow converts them; ICC profiles and gamma chunks are ignored;
* 16 bits a channel keep their high byte (65535 becomes 255);
* 32-bit integers ("I"): values that all lie in 0..255 are taken as they are, in 0..65535 as 16-bit, others are refused;
* floats ("F"): values that all lie in 0..1 are scaled to 0..255, in 0..255 rounded, others are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from atoken.errors import AtokenError, AtokenWarning, MediaError
from atoken.io.atomic import atomic_path
from atoken.io.media import DEFAULT_LIMITS, Image, Limits
from atoken.io.sniff import kind_of_file
from atoken.io.source import Source, name_of, opened

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
_ORIENTATION = 0x0112  # the EXIF tag


def read_image(source: Source, *, name: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Read a PNG, JPEG, WebP, TIFF, BMP or GIF as (H, W, 3) uint8 RGB, upright by its EXIF orientation, alpha kept.

    ``source``: a path, bytes, or a binary file; ``name`` is for messages. A file with several frames or pages gives its
    first one and an AtokenWarning. The size is checked against ``limits`` before any pixel is decoded. Raises:
    MediaError (missing, damaged, truncated, over a limit, not an image).
    """
    name = name_of(source, name)
    with opened(source, name) as file, translated(f"Cannot read {name}"):
        kind = kind_of_file(file, name)
        if kind.media != "image":
            raise MediaError(f"Cannot read {name} as an image: its modality is {kind.media}; load_media reads it.")
        pil = _open(file, kind.format)
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


def write_image(image: Image, path: str | Path) -> None:
    """Write a PNG (lossless, with alpha), whole or not at all. Raises: MediaError."""
    import PIL.Image

    if Path(path).suffix.lower() != ".png":
        raise MediaError(f"Cannot write {path}: images are written as PNG; choose a name that ends in .png.")
    pixels = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    with atomic_path(path, MediaError) as temporary:
        PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")


@contextmanager
def translated(failed: str) -> Iterator[None]:
    """Make one sentence, a MediaError that begins with ``failed``, of whatever a parser raises."""
    try:
        yield
    except AtokenError:
        raise
    except MemoryError as error:
        raise MediaError(f"{failed}: there is not enough memory for it.") from error
    except Exception as error:  # parsers raise nearly any type on damaged input
        reason = str(error).strip().rstrip(".") or type(error).__name__
        damage = "it is damaged, truncated, malformed or of an unsupported variant"
        raise MediaError(f"{failed}: {damage} ({reason}).") from error


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
