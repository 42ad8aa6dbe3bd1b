"""Image formats that Pillow reads: how each is recognised, and opened without decoding a pixel."""

from __future__ import annotations

import re
import struct
import warnings
from functools import partial
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any

from atoken.errors import AtokenWarning, MissingExtraError
from atoken.media.formats import Format, Head, begins

if TYPE_CHECKING:
    import PIL.Image

# The opener of each format in Pillow. PIL.Image.open would add warnings and a fixed size limit of its own.
_OPENERS = {
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "JPEG": ("PIL.JpegImagePlugin", "jpeg_factory"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "JPEG2000": ("PIL.Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "PPM": ("PIL.PpmImagePlugin", "PpmImageFile"),
    "TGA": ("PIL.TgaImagePlugin", "TgaImageFile"),
}
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_ORIENTATION = 0x0112  # the EXIF tag
Turn = tuple[bool, bool, bool]  # swap rows and columns, then flip the rows, flip the columns
_TURNS = {2: (False, False, True), 3: (False, True, True), 4: (False, True, False), 5: (True, False, False),
          6: (True, False, True), 7: (True, True, True), 8: (True, True, False)}  # fmt: skip
_ICON_SIDE = 256  # pixels; what the directory of an icon can state


def _bmp_header(head: Head) -> int:
    return int.from_bytes(head.start[14:18], "little")


def _brands(head: Head) -> set[bytes]:
    """What a file in boxes (MP4, HEIF, AVIF) says that it is."""
    if head.start[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head.start[:4], "big"), len(head.start))
    return {head.start[at : at + 4] for at in (8, *range(16, end, 4))}


def _is_tga(head: Head) -> bool:
    """By its footer or else its suffix, and by a header that a TGA file can have: it has no magic bytes."""
    if len(head.start) < 18 or not (head.suffix == ".tga" or head.end.endswith(b"TRUEVISION-XFILE.\0")):
        return False
    colour_map, image_type, depth = head.start[1], head.start[2], head.start[16]
    types = {0: (2, 3, 10, 11), 1: (1, 2, 3, 9, 10, 11)}.get(colour_map, ())
    return image_type in types and depth in (1, 8, 16, 24, 32)


def _is_animation(format: Format, head: Head) -> bool:
    """Whether a file has more than one frame; one for programs that show no animations (of APNG) is not counted."""
    try:
        if not format.matches(head):
            return False
        pil: Any = open_image(head.file, format.name)
        return bool(pil.is_animated) and not (getattr(pil, "default_image", False) and pil.n_frames == 2)
    except Exception:  # noqa: BLE001 - Pillow raises nearly any type on damaged input; whoever reads it says so
        return False
    finally:
        head.file.seek(0)


FORMATS = (
    Format("PNG", (".png", ".apng"), begins(b"\x89PNG\r\n\x1a\n")),
    Format("JPEG", (".jpg", ".jpeg"), begins(b"\xff\xd8\xff")),
    Format("WEBP", (".webp",), lambda head: head.start[:4] == b"RIFF" and head.start[8:12] == b"WEBP"),
    Format("TIFF", (".tif", ".tiff"), begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    Format("BMP", (".bmp",), lambda head: head.start[:2] == b"BM" and _bmp_header(head) in _BMP_HEADER_SIZES),
    Format("GIF", (".gif",), begins(b"GIF87a", b"GIF89a")),
    Format("AVIF", (".avif",), lambda head: bool(_brands(head) & _AVIF_BRANDS)),
    Format("HEIF", (".heic", ".heif"), lambda head: bool(_brands(head) & _HEIF_BRANDS)),
    Format("JPEG2000", (".jp2", ".j2k", ".jpx"), begins(b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")),
    Format("PPM", (".ppm", ".pgm", ".pbm", ".pnm"), lambda head: bool(re.match(rb"P[1-6][\s#]", head.start))),
    Format("ICO", (".ico",), begins(b"\0\0\1\0")),
    Format("TGA", (".tga",), _is_tga),
)


# Formats of several frames that are shown one after another; the files are told by their content alone.
ANIMATIONS = tuple(
    Format(format.name, (), partial(_is_animation, format)) for format in FORMATS if format.name in _ANIMATED
)


def open_image(file: IO[bytes], format: str) -> PIL.Image.Image:
    """Open a file, from its start, by the name of a format. Raises: MissingExtraError, and whatever Pillow raises."""
    file.seek(0)
    if format == "HEIF":
        return _heif(file)
    if format == "ICO":
        return _icon(file)
    module, opener = _OPENERS[format]
    pil: PIL.Image.Image = getattr(import_module(module), opener)(file)
    return pil


def turn_of(pil: PIL.Image.Image, what: str) -> Turn:
    """How to make a loaded image upright, by its EXIF orientation; an AtokenWarning where that cannot be read."""
    try:
        return _TURNS.get(int(pil.getexif().get(_ORIENTATION, 1)), (False, False, False))
    except Exception:  # noqa: BLE001 - damaged EXIF raises nearly any type, and the pixels are sound without it
        warnings.warn(f"The EXIF data of {what} is damaged; its orientation is ignored.", AtokenWarning, stacklevel=3)
        return False, False, False


def _heif(file: IO[bytes]) -> PIL.Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise MissingExtraError("pillow-heif", "heic", "Reading HEIC") from error
    pil: PIL.Image.Image = HeifImageFile(file)
    return pil


def _icon(file: IO[bytes]) -> PIL.Image.Image:
    """The largest image of an icon. Pillow's own class would decode it here, of whatever size it is."""
    from PIL.IcoImagePlugin import IcoFile
    from PIL.PngImagePlugin import PngImageFile

    icon = IcoFile(file)
    file.seek(icon.entry[0].offset)
    start = file.read(12)
    file.seek(icon.entry[0].offset)
    if start.startswith(b"\x89PNG"):
        return PngImageFile(file)
    width, height = struct.unpack_from("<ii", start, 4)  # of a bitmap and, below it, of its mask
    if not (0 < width <= _ICON_SIDE and 0 < height <= 2 * _ICON_SIDE):
        raise ValueError(f"a bitmap of an icon cannot be {width}x{height // 2}")
    return icon.frame(0)
