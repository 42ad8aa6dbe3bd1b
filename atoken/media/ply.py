"""The header of a PLY file: its format, and the elements that it declares. Source: the PLY format, G. Turk, 1994."""

from __future__ import annotations

from typing import NamedTuple

from atoken.errors import MediaError

HEADER_BYTES = 1 << 16
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip


class Property(NamedTuple):
    """A property and its NumPy type; of a list, that of its length."""

    name: str
    type: str
    is_list: bool = False


class Element(NamedTuple):
    """A table of the file."""

    name: str
    rows: int
    properties: list[Property]


class Header(NamedTuple):
    """``size`` in bytes, ``format`` such as "ascii", and the elements in order."""

    size: int
    format: str
    elements: list[Element]


def read_header(start: bytes, failed: str) -> Header:
    """Parse the header in the first ``HEADER_BYTES`` of a file. Raises: MediaError that begins with ``failed``."""
    first, *lines = start[:HEADER_BYTES].split(b"\n")
    if first.strip() != b"ply":
        raise MediaError(f"{failed}: it does not begin with 'ply'; use a .ply file.")
    format, elements, size = "", list[Element](), len(first) + 1
    for line in lines[:-1]:
        size += len(line) + 1
        match line.decode("latin-1").split():
            case ["end_header"]:
                return Header(size, format, elements)
            case ["format", name, *_]:
                format = name
            case ["element", name, count] if count.isascii() and count.isdecimal() and len(count) < 16:
                elements.append(Element(name, int(count), []))
            case ["property", "list", length, _, name] if elements and length in TYPES:
                elements[-1].properties.append(Property(name, TYPES[length], is_list=True))
            case ["property", type, name] if elements and type in TYPES:
                elements[-1].properties.append(Property(name, TYPES[type]))
            case ["element" | "property", *_]:
                shown = line.decode("latin-1").strip()[:60]
                raise MediaError(f"{failed}: its header has a line that cannot be read: {shown!r}; export it again.")
    raise MediaError(f"{failed}: its header does not end within {HEADER_BYTES:,} bytes; it is damaged or truncated.")
