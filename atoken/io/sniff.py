"""What a file is, by its first bytes. The name of a file says nothing: a playlist called clip.mp4 is not a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from atoken.errors import MediaError

SUPPORTED = "pictures in PNG, JPEG, WebP, TIFF, BMP or GIF and clips in MP4/MOV, MKV/WebM or AVI"

_PICTURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
# Still pictures in the same box structure (HEIF, AVIF), which FFmpeg's mov demuxer would take for clips.
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")


class Kind(NamedTuple):
    """A kind of file: ``media`` and ``format``, Pillow's name of a picture format or FFmpeg's name of a demuxer."""

    media: Literal["picture", "clip"]
    format: str


def sniff(path: str | Path) -> Kind:
    """Tell a file's kind. Raises: MediaError if it is missing, not a plain file, empty, or of no supported kind."""
    path = Path(path)
    try:
        if not path.exists():
            raise MediaError(f"Cannot read {path}: there is no such file.")
        if not path.is_file():  # opening a pipe or a device could wait for ever
            raise MediaError(f"Cannot read {path}: it is not a file; name one of {SUPPORTED}.")
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise MediaError(f"Cannot read {path}: {error.strerror}.") from error
    if not head:
        raise MediaError(f"Cannot read {path}: the file is empty.")
    kind = _kind(head)
    if kind is None:
        raise MediaError(f"Cannot read {path}: its content is none of the supported {SUPPORTED}.")
    return kind


def _kind(head: bytes) -> Kind | None:
    for magic, name in _PICTURES.items():
        if head.startswith(magic):
            return Kind("picture", name)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind("picture", "WEBP")
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return Kind("picture", "BMP")
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Kind("clip", "avi")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return Kind("clip", "matroska")
    if head[4:8] in _MOV_ATOMS and not (head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS):
        return Kind("clip", "mov")
    return None
