"""The header of a PLY file, and its faces as triangles. Source: the PLY format, G. Turk, 1994."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from atoken.errors import MediaError
from atoken.media.limits import Limits

HEADER_BYTES = 1 << 16
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip


class Property(NamedTuple):
    """A property and its NumPy type; of a list that of its length, and ``items``, that of its values."""

    name: str
    type: str
    items: str = ""


class Element(NamedTuple):
    """A table of the file."""

    name: str
    rows: int
    properties: list[Property]


class Header(NamedTuple):
    """``size`` in bytes, ``format`` such as "ascii", the elements in order, and how lines end."""

    size: int
    format: str
    elements: list[Element]
    newline: bytes


def read_header(start: bytes, failed: str) -> Header:
    """Parse the header in the first ``HEADER_BYTES`` of a file. Raises: MediaError that begins with ``failed``."""
    begins = re.match(rb"ply[ \t]*(\r?\n|\r)", start)
    if not begins:
        raise MediaError(f"{failed}: it does not begin with 'ply'; use a .ply file.")
    format, elements, size, newline = "", list[Element](), begins.end(), begins[1]
    for line in start[size:HEADER_BYTES].split(newline)[:-1]:
        size += len(line) + len(newline)
        match line.decode("latin-1").split():
            case ["end_header"]:
                return Header(size, format, elements, newline)
            case ["format", name, *_]:
                format = name
            case ["element", name, count] if count.isascii() and count.isdecimal() and len(count) < 16:
                elements.append(Element(name, int(count), []))
            case ["property", "list", length, items, name] if elements and length in TYPES and items in TYPES:
                elements[-1].properties.append(Property(name, TYPES[length], TYPES[items]))
            case ["property", type, name] if elements and type in TYPES:
                elements[-1].properties.append(Property(name, TYPES[type]))
            case ["element" | "property", *_]:
                shown = line.decode("latin-1").strip()[:60]
                raise MediaError(f"{failed}: its header has a line that cannot be read: {shown!r}; export it again.")
    raise MediaError(f"{failed}: its header does not end within {HEADER_BYTES:,} bytes; it is damaged or truncated.")


def for_trimesh(data: bytes, header: Header, limits: Limits, failed: str) -> bytes:
    """The same file as trimesh reads it: lines end in newlines, and faces are all triangles or all quads.

    Other polygons become fans of triangles, where a face has just one list: trimesh refuses them in binary files, and
    mixes up the colours of faces in text. Raises: MediaError (truncated, over the limit).
    """
    is_text = header.format == "ascii"
    head, body = data[: header.size].replace(header.newline, b"\n"), data[header.size :]
    body = body.replace(header.newline, b"\n") if is_text else body
    names = [element.name for element in header.elements]
    before, face = header.elements[: names.index("face")], header.elements[names.index("face")]
    lists = [index for index, property in enumerate(face.properties) if property.items]
    if len(lists) != 1 or any(property.items for element in before for property in element.properties):
        return head + body
    if is_text:
        lines, first = body.split(b"\n"), sum(element.rows for element in before)
        rows = _text_fans(lines[first : first + face.rows], lists[0], failed)
        limits.check_faces(len(rows), 0, failed.removeprefix("Cannot read "))
        return _stated(head, len(rows)) + b"\n".join([*lines[:first], *rows, *lines[first + face.rows :]])
    start = sum(element.rows * _width(element.properties) for element in before)
    triangles, stop = _fans(body, start, face, lists[0], "big" if "big" in header.format else "little", limits, failed)
    if triangles is None:
        return head + body
    return _stated(head, len(triangles)) + body[:start] + b"".join(triangles) + body[stop:]


def _stated(head: bytes, faces: int) -> bytes:
    """A header that states so many faces."""
    return re.sub(rb"(element\s+face\s+)\d+", lambda found: found[1] + str(faces).encode(), head)


def _text_fans(lines: list[bytes], at: int, failed: str) -> list[bytes]:
    """Lines of triangles in place of faces, whose list is their property number ``at``, unless all are alike."""
    rows = [line.split() for line in lines]
    if {row[at] for row in rows} in ({b"3"}, {b"4"}):
        return lines
    if any(at + int(row[at]) >= len(row) for row in rows):
        raise MediaError(f"{failed}: a face has fewer corners than it states; it is truncated or damaged.")
    return [
        b" ".join([*row[:at], b"3", row[at + 1], *row[corner : corner + 2], *row[at + 1 + int(row[at]) :]])
        for row in rows
        for corner in range(at + 2, at + int(row[at]))
    ]


def _fans(
    body: bytes, at: int, face: Element, index: int, order: Literal["little", "big"], limits: Limits, failed: str
) -> tuple[list[bytes] | None, int]:
    """Rows of triangles in place of the faces from byte ``at``, None if all are triangles or quads; and their end."""
    (_, length, items), width = face.properties[index], _width(face.properties)
    lead, size, item = _width(face.properties[:index]), np.dtype(length).itemsize, np.dtype(items).itemsize
    corners = body[at + lead : at + lead + size]
    stride = width + int.from_bytes(corners, order) * item
    if int.from_bytes(corners, order) in (3, 4) and at + face.rows * stride <= len(body):
        lengths = np.ndarray((face.rows, size), np.uint8, body, at + lead, (stride, 1))
        if (lengths == np.frombuffer(corners, np.uint8)).all():
            return None, at + face.rows * stride
    triangles, total, three = list[bytes](), 0, (3).to_bytes(size, order)
    for _ in range(face.rows):
        first = at + lead + size
        count = int.from_bytes(body[at + lead : first], order)
        end = at + width + count * item
        if end > len(body):
            raise MediaError(f"{failed}: its faces end after its last byte; it is truncated or damaged.")
        total += max(count - 2, 0)
        limits.check_faces(total, 0, failed.removeprefix("Cannot read "))
        start, rest = body[at : at + lead] + three + body[first : first + item], body[first + count * item : end]
        for corner in range(first + item, first + (count - 1) * item, item):
            triangles.append(start + body[corner : corner + 2 * item] + rest)
        at = end
    return triangles, at


def _width(properties: Sequence[Property]) -> int:
    """Bytes of properties in a row of a binary file, lists taken as empty."""
    return sum(np.dtype(property.type).itemsize for property in properties)
