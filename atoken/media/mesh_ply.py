"""Checks of what the header of a PLY file declares, before it is read. Source: the PLY format, G. Turk, 1994."""

from __future__ import annotations

from dataclasses import dataclass, field

from atoken.errors import MediaError
from atoken.media.mesh_folder import Folder

_BYTES = {
    "char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8,
    "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8,
}  # fmt: skip
_COLOURS = ("uchar", "uint8", "float", "float32", "double", "float64")
_HEADER = 1 << 16  # bytes


@dataclass
class _Element:
    """``count`` rows, and the type of each property; of a list, that of its length."""

    count: int
    types: dict[str, str] = field(default_factory=dict)


def check_ply(folder: Folder) -> None:
    """Refuse what has no faces, is a 3D Gaussian splat, or declares more than the file holds. Raises: MediaError."""
    text, elements = _header(folder)
    vertices, faces = (elements.get(name, _Element(0)) for name in ("vertex", "face"))
    if not faces.count and "f_dc_0" in vertices.types:
        raise _bad(folder, "it holds 3D Gaussians, not a mesh; use the images or the mesh that they come from")
    if not faces.count:
        raise _bad(folder, "it has no faces; point clouds and strips of triangles are not supported, export a mesh")
    folder.limits.check_faces(faces.count, vertices.count, folder.name)
    ascii_file = b"format ascii" in text
    least = sum(element.count * _least(element, ascii_file) for element in elements.values()) - ascii_file
    rest = len(folder.data) - len(text)
    if least > rest:
        raise _bad(folder, f"it declares at least {least:,} bytes of data and has {rest:,}; it is truncated or damaged")
    if any(element.types.get("red", "uchar") not in _COLOURS for element in (vertices, faces)):
        raise _bad(folder, "its colours have an unsupported type; export them as uchar")


def _header(folder: Folder) -> tuple[bytes, dict[str, _Element]]:
    """The header's bytes, and its elements by name."""
    end = folder.data.find(b"end_header", 0, _HEADER)
    if end < 0:
        raise _bad(folder, "its header does not end; it is truncated or damaged")
    elements: dict[str, _Element] = {}
    for line in folder.data[:end].decode("latin-1").splitlines():
        match line.split():
            case ["element", name, count] if count.isdecimal():
                elements[name] = _Element(int(count))
            case ["property", "list", length, _, name] if elements and length in _BYTES:
                elements[list(elements)[-1]].types[name] = length
            case ["property", type_, name] if elements and type_ in _BYTES:
                elements[list(elements)[-1]].types[name] = type_
            case ["element" | "property", *_]:
                raise _bad(folder, f"its header has the unknown line {line[:60]!r}; export it again")
    return folder.data[: end + len(b"end_header\n")], elements


def _least(element: _Element, ascii_file: bool) -> int:
    """Bytes of one row with empty lists; as text, a digit and a space for each property."""
    return 2 * len(element.types) if ascii_file else sum(map(_BYTES.__getitem__, element.types.values()))


def _bad(folder: Folder, what: str) -> MediaError:
    return MediaError(f"Cannot read {folder.name}: {what}.")
