"""The tables of a glTF file: indices, views and accessors, each checked to lie inside what it points into.

Source: the glTF 2.0 specification, Khronos, sections 3.6 (binary data) and 3.7.2 (meshes).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from atoken.errors import MediaError
from atoken.media.mesh_folder import Folder

Table = dict[str, Any]

BYTE, SHORT, INT, FLOAT = 5121, 5123, 5125, 5126  # unsigned, but for the last
_WIDTHS = {BYTE: 1, SHORT: 2, INT: 4, FLOAT: 4}
_COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Tables:
    """The header ``tree`` of a glTF file and the bytes it points to; ``chunk`` is the binary chunk of a GLB.

    ``accessors`` and ``views`` are those for trimesh, one view for each accessor; ``buffers`` maps a name to bytes.
    Raises, from every method: MediaError; where a value has an odd type, what Python raises.
    """

    def __init__(self, folder: Folder, tree: Table, chunk: bytes | None) -> None:
        self.folder, self._tree, self._chunk = folder, tree, chunk
        self.accessors: list[Table] = []
        self.views: list[Table] = []
        self.buffers: dict[str, bytes] = {}
        self._made: dict[int, tuple[int, int]] = {}

    def bad(self, what: str, remedy: str = "export it again") -> MediaError:
        """An error: why the file cannot be read, and what to do."""
        return MediaError(f"Cannot read {self.folder.name}: {what}; {remedy}.")

    def item(self, table: str, index: Any) -> Table:
        """Give an entry of a table of the file."""
        entries = self._tree.get(table, [])
        if type(index) is not int or not 0 <= index < len(entries):
            raise self.bad(f"it refers to number {str(index)[:20]} of its {len(entries)} {table}")
        entry: Table = entries[index]
        return entry

    def view(self, index: Any) -> bytes:
        """Give the bytes of a buffer view."""
        buffer, start, length, _ = self._view(index)
        return self.buffers[buffer][start : start + length]

    def accessor(self, index: Any, shapes: Collection[str], components: Collection[int]) -> tuple[int, int]:
        """Admit an accessor: its number among ``accessors``, and how many values it has."""
        stated = self.item("accessors", index)
        shape, component = stated["type"], stated["componentType"]
        if shape not in shapes or component not in components:
            raise self.bad(
                f"it has {str(shape)[:20]} of type {str(component)[:20]} where {' or '.join(shapes)} is expected"
            )
        if index not in self._made:
            self._made[index] = self._admit(stated, _COLUMNS[shape] * _WIDTHS[component])
        return self._made[index]

    def _admit(self, stated: Table, width: int) -> tuple[int, int]:
        if "sparse" in stated or "bufferView" not in stated:
            raise self.bad("it has compressed or sparse numbers", "export it without compression")
        buffer, start, length, stride = self._view(stated["bufferView"])
        count, offset = self._whole(stated["count"]), self._whole(stated.get("byteOffset", 0))
        needed = (count - 1) * (stride or width) + width
        if count < 1 or 0 < stride < width or offset + needed > length:
            raise self.bad(f"it declares {count:,} values but has bytes for fewer", "it is truncated or damaged")
        self.folder.count(count * width, "its numbers")
        view = {"buffer": list(self.buffers).index(buffer), "byteOffset": start + offset, "byteLength": needed}
        self.views.append(view | ({"byteStride": stride} if stride else {}))
        kept = {key: stated[key] for key in ("type", "componentType", "count")}
        self.accessors.append(kept | {"bufferView": len(self.views) - 1})
        return len(self.accessors) - 1, count

    def _view(self, index: Any) -> tuple[str, int, int, int]:
        """Buffer, first byte, length and stride (0: none) of a buffer view."""
        stated = self.item("bufferViews", index)
        buffer = self._buffer(stated["buffer"])
        start, length = self._whole(stated.get("byteOffset", 0)), self._whole(stated["byteLength"])
        if start + length > len(self.buffers[buffer]):
            raise self.bad(f"a buffer ends before bytes {start:,} to {start + length:,}", "it is truncated")
        return buffer, start, length, self._whole(stated.get("byteStride", 0))

    def _buffer(self, index: Any) -> str:
        """Read a buffer on its first use, and give its name."""
        stated, name = self.item("buffers", index), str(index)
        if name not in self.buffers:
            data = self.folder.read_uri(stated["uri"]) if "uri" in stated else self._chunk if index == 0 else None
            if data is None:
                raise self.bad(
                    f"the file {str(stated.get('uri'))[:80]!r} that it needs is missing", "put it into its folder"
                )
            self.buffers[name] = data
        return name

    def _whole(self, value: Any) -> int:
        if type(value) is not int or value < 0:
            raise self.bad(f"it has {str(value)[:20]!r} where a count is expected")
        return value
