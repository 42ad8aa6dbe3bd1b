"""The tables of a glTF file: indices, views and accessors, each checked to lie inside what it points into.

Source: the glTF 2.0 specification, Khronos, section 3.6 (binary data); KHR_mesh_quantization for integers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from atoken.errors import MediaError
from atoken.media.mesh_folder import Folder

Table = dict[str, Any]

_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
UNSIGNED, ANY = (5121, 5123, 5125), (5120, 5121, 5122, 5123, 5126)  # types of indices, and of attributes
_COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_MESHOPT = "EXT_meshopt_compression", "KHR_meshopt_compression"


class Column(NamedTuple):
    """``values`` (count, columns) as they are stored, and whether integers are ``normalized`` to fractions of 1."""

    values: np.ndarray
    normalized: bool

    def floats(self, rows: Any) -> np.ndarray:
        """Give some rows as float64."""
        values = self.values[rows]
        if self.normalized and values.dtype.kind != "f":
            return np.maximum(values / np.iinfo(values.dtype).max, -1)
        return values.astype(np.float64)


class Tables:
    """The header ``tree`` of a glTF file and the bytes it points to; ``chunk`` is the binary chunk of a GLB.

    Raises, from every method: MediaError; where a value has an odd type, what Python raises.
    """

    def __init__(self, folder: Folder, tree: Table, chunk: bytes | None) -> None:
        self.folder, self.tree, self._chunk = folder, tree, chunk
        self._buffers: dict[int, bytes] = {}
        self._columns: dict[int, np.ndarray] = {}

    def bad(self, what: str, remedy: str = "export it again") -> MediaError:
        """An error: why the file cannot be read, and what to do."""
        return MediaError(f"Cannot read {self.folder.name}: {what}; {remedy}.")

    def item(self, table: str, index: Any) -> Table:
        """Give an entry of a table of the file."""
        entries = self.tree.get(table, [])
        if type(index) is not int or not 0 <= index < len(entries):
            raise self.bad(f"it refers to number {str(index)[:20]} of its {len(entries)} {table}")
        entry: Table = entries[index]
        return entry

    def view(self, index: Any) -> bytes:
        """Give the bytes of a buffer view."""
        return bytes(self._view(index)[0])

    def column(
        self, index: Any, shapes: Collection[str], types: Collection[int] = ANY, given: np.ndarray | None = None
    ) -> Column:
        """Give the values of an accessor, or check those that were ``given`` by compression against it."""
        stated = self.item("accessors", index)
        shape, type_ = stated["type"], stated["componentType"]
        if shape not in shapes or type_ not in types:
            raise self.bad(
                f"it has {str(shape)[:20]} of type {str(type_)[:20]} where {' or '.join(shapes)} is expected"
            )
        if given is not None and given.shape != (self._whole(stated["count"]), _COLUMNS[shape]):
            raise self.bad(f"its compressed data has {given.shape} values where {stated['count']} {shape} are expected")
        if given is None and index not in self._columns:
            self._columns[index] = self._read(stated, np.dtype(_TYPES[type_]), _COLUMNS[shape])
        return Column(self._columns[index] if given is None else given, stated.get("normalized") is True)

    def _read(self, stated: Table, dtype: np.dtype[Any], columns: int) -> np.ndarray:
        """The values (count, columns) of an accessor: zeros without a view, and its sparse values put in."""
        count, width = self._whole(stated["count"]), columns * dtype.itemsize
        if count < 1:
            raise self.bad("it declares 0 values")
        if "bufferView" in stated:
            values = self._strided(stated, count, dtype, columns)
            self.folder.count(count * width, "its numbers")
        else:
            self.folder.count(count * width, "its numbers")  # before memory is taken for them
            values = np.zeros((count, columns), dtype)
        if "sparse" not in stated:
            return values
        sparse = stated["sparse"]
        number, where = self._whole(sparse["count"]), sparse["indices"]
        if not 1 <= number <= count or where["componentType"] not in UNSIGNED:
            raise self.bad(f"it replaces {number:,} of {count:,} values")
        rows = self._strided(where, number, np.dtype(_TYPES[where["componentType"]]), 1)[:, 0]
        if rows.max() >= count:
            raise self.bad(f"it replaces value {rows.max():,} of {count:,}")
        self.folder.count(count * width, "its numbers")
        values = values.copy()
        values[rows] = self._strided(sparse["values"], number, dtype, columns)
        return values

    def _strided(self, stated: Table, count: int, dtype: np.dtype[Any], columns: int) -> np.ndarray:
        """Values (count, columns) inside a buffer view, not copied."""
        data, stride = self._view(stated["bufferView"])
        offset, width = self._whole(stated.get("byteOffset", 0)), columns * dtype.itemsize
        stride = stride or width
        if stride < width or offset + (count - 1) * stride + width > len(data):
            raise self.bad(f"it declares {count:,} values but has bytes for fewer", "it is truncated or damaged")
        return np.ndarray((count, columns), dtype, data, offset, (stride, dtype.itemsize))

    def _view(self, index: Any) -> tuple[memoryview, int]:
        """The bytes of a buffer view, and its stride (0: none)."""
        stated = self.item("bufferViews", index)
        data = self._buffer(stated["buffer"], stated.get("extensions", {}))
        start, length = self._whole(stated.get("byteOffset", 0)), self._whole(stated["byteLength"])
        if start + length > len(data):
            raise self.bad(f"a buffer ends before bytes {start:,} to {start + length:,}", "it is truncated")
        return memoryview(data)[start : start + length], self._whole(stated.get("byteStride", 0))

    def _buffer(self, index: Any, extensions: Table) -> bytes:
        """Read a buffer on its first use; ``extensions`` are those of the view."""
        stated = self.item("buffers", index)
        if index not in self._buffers:
            data = self.folder.read_uri(stated["uri"]) if "uri" in stated else self._chunk if index == 0 else None
            if data is None and (packed := next((name for name in _MESHOPT if name in extensions), None)):
                raise self.bad(f"it needs the extension {packed}", "export it without compression")
            if data is None:
                if "uri" not in stated:
                    raise self.bad(f"its buffer {index} has no data")
                raise self.bad(f"the file {stated['uri'][:80]!r} that it needs is missing", "put it into its folder")
            self._buffers[index] = data
        return self._buffers[index]

    def _whole(self, value: Any) -> int:
        if type(value) is not int or value < 0:
            raise self.bad(f"it has {str(value)[:20]!r} where a count is expected")
        return value
