"""What a file is, by its first bytes. The name of a file says nothing: a playlist called video.mp4 is not a video.

Three 3D formats have no magic bytes. What looks like OBJ, glTF (JSON) or binary STL is taken for it only if the name
says so, too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from atoken.errors import MediaError
from atoken.io.source import Source, name_of, opened

SUPPORTED = (
    "images in PNG, JPEG, WebP, TIFF, BMP or GIF, videos in MP4/MOV, MKV/WebM or AVI, "
    "and 3D assets in GLB, glTF, OBJ, PLY, STL or OFF"
)

_IMAGES = {
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
# Still images in the same box structure (HEIF, AVIF), which FFmpeg's mov demuxer would take for videos.
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")

TRANSFORMS = "transforms.json"
_HEAD = 4096  # bytes that are looked at
_STL_HEAD = 84  # bytes of a binary STL before its faces of 50 bytes, their number last
_OBJ_LINE = re.compile(rb"(v|vt|vn|vp|f|l|p|o|g|s|mtllib|usemtl)\s")
_OFF = re.compile(rb"(\s|#[^\n]*\n)*C?OFF\s")
_TEXT_STL = re.compile(rb"\s*solid\b[^\n]*\n\s*(facet\s+normal\s|endsolid)", re.IGNORECASE)


class Kind(NamedTuple):
    """A kind of file: ``media`` and ``format``.

    The format is Pillow's name of an image format, FFmpeg's name of a demuxer, the usual suffix of a 3D format, or the
    file that a folder of views is known by.
    """

    media: Literal["image", "video", "mesh", "folder of views"]
    format: str


def sniff(source: Source, *, name: str | None = None) -> Kind:
    """Tell the kind of a file (a path, bytes, or a binary file), or of a folder of rendered views.

    ``name``: the file's name, for messages and for the 3D formats without magic bytes. A file object is read to its
    end. Raises: MediaError if it is missing, neither a plain file nor such a folder, empty, or of no supported kind.
    """
    name = name_of(source, name)
    if isinstance(source, str | Path) and is_folder_of_views(Path(source)):
        return Kind("folder of views", TRANSFORMS)
    with opened(source, name) as file:
        return kind_of_file(file, name)


def is_folder_of_views(path: Path) -> bool:
    """Whether ``path`` is a folder with a list of rendered views. Raises: MediaError."""
    try:
        return (path / TRANSFORMS).is_file()
    except OSError as error:
        raise MediaError(f"Cannot read {path}: {error.strerror}.") from error


def kind_of_file(file: BinaryIO, name: str) -> Kind:
    """Tell the kind of an open file, and rewind it. Raises: MediaError (empty, of no supported kind)."""
    head = file.read(_HEAD)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not head:
        raise MediaError(f"Cannot read {name}: the file is empty.")
    kind = kind_of(head) or _mesh_kind(head, size, Path(name).suffix.lower())
    if kind is None:
        raise MediaError(f"Cannot read {name}: its content is none of the supported {SUPPORTED}.")
    return kind


def kind_of(head: bytes) -> Kind | None:
    """Tell the kind of what starts with these bytes (32 or more), or None if they are no image and no video."""
    for magic, name in _IMAGES.items():
        if head.startswith(magic):
            return Kind("image", name)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind("image", "WEBP")
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return Kind("image", "BMP")
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return Kind("video", "avi")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return Kind("video", "matroska")
    if head[4:8] in _MOV_ATOMS and not (head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS):
        return Kind("video", "mov")
    return None


def _mesh_kind(head: bytes, size: int, suffix: str) -> Kind | None:
    text = head.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put before UTF-8
    if head[:4] == b"glTF":
        return Kind("mesh", "glb")
    if head[:4] in (b"ply\n", b"ply\r"):
        return Kind("mesh", "ply")
    if suffix == ".stl" and size == _STL_HEAD + 50 * int.from_bytes(head[80:84], "little"):
        return Kind("mesh", "stl")
    if _TEXT_STL.match(text):
        return Kind("mesh", "stl")
    if _OFF.match(text):
        return Kind("mesh", "off")
    if suffix == ".gltf" and text.lstrip()[:1] == b"{":
        return Kind("mesh", "gltf")
    if suffix == ".obj" and _is_obj(text):
        return Kind("mesh", "obj")
    return None


def _is_obj(text: bytes) -> bool:
    """Whether the first line that is not empty and no comment is one of an OBJ file."""
    lines = (line for line in map(bytes.strip, text.splitlines()) if line and not line.startswith(b"#"))
    return b"\0" not in text and bool(_OBJ_LINE.match(next(lines, b"") + b"\n"))
