"""GLB and glTF 2.0: checked first, then given to trimesh as a new header of what was checked.

That header holds only the nodes of the default scene, their meshes and the accessors these use: no image, name,
animation or extension. So every count, index and offset that trimesh sees lies inside the file.
Colours and textures are read here (``atoken.media.mesh`` says how). Source: the glTF 2.0 specification, Khronos.
"""

from __future__ import annotations

import io
import json
import struct
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any, NoReturn

from atoken.errors import MediaError
from atoken.media.mesh_accessor import BYTE, FLOAT, INT, SHORT, Table, Tables
from atoken.media.mesh_folder import Folder
from atoken.media.mesh_material import Materials, Surface
from atoken.media.mesh_parts import Part, joined, placed
from atoken.mesh import Mesh

_JSON, _BIN = 0x4E4F534A, 0x004E4942
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_DEPTH = 256  # of nodes
_PIECES = 16_384
# Required extensions that change nothing but light and shading, or are read.
_UNDERSTOOD = ("KHR_materials_", "KHR_texture_transform", "KHR_lights_punctual", "EXT_texture_webp", "KHR_xmp")


def read_gltf(folder: Folder, *, binary: bool) -> Mesh:
    """Read the default scene of ``folder.data``. Raises: MediaError; what Python raises on values of odd types."""
    import trimesh

    text, chunk = _chunks(folder.data, folder.name) if binary else (folder.data, None)
    tree = json.loads(text.decode("utf-8-sig"), parse_constant=_not_finite)
    tables = Tables(folder, tree, chunk)
    header, surfaces = _Header(tables, tree).checked()
    scene = trimesh.load_scene(io.BytesIO(json.dumps(header).encode()), "gltf", resolver=tables.buffers, process=False)
    parts = []
    for mesh, vertices, faces in placed(scene, folder.name):
        surface, attributes = surfaces[int(mesh.visual.material.name)], mesh.vertex_attributes
        parts.append(Part(vertices, faces, *surface.corners(faces, attributes.get("_COLOR"), attributes.get("_UV"))))
    return joined(parts, folder.name, folder.limits, y_up=True)


def _chunks(data: bytes, name: str) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a GLB file. Raises: MediaError."""
    if len(data) < 20 or struct.unpack_from("<I", data, 4)[0] != 2:
        raise MediaError(f"Cannot read {name}: it is not a GLB file of version 2; export it as glTF 2.0.")
    found: dict[int, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        length, kind = struct.unpack_from("<II", data, at)
        if at + 8 + length > len(data):
            raise MediaError(f"Cannot read {name}: it is truncated, at {len(data):,} bytes.")
        found.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 8 + length
    if _JSON not in found:
        raise MediaError(f"Cannot read {name}: it is a GLB file without a JSON chunk; export it again.")
    return found[_JSON], found.get(_BIN)


def _not_finite(value: str) -> NoReturn:
    raise ValueError(f"{value} is not a JSON number")


class _Header:
    """Builds the header for trimesh from a file's header."""

    def __init__(self, tables: Tables, tree: Table) -> None:
        self._tables, self._tree, self._materials = tables, tree, Materials(tables)
        self._surfaces: list[Surface] = []
        self._faces = 0

    def checked(self) -> tuple[Table, list[Surface]]:
        """Give the header for trimesh, and the materials that it names by number. Raises: MediaError."""
        self._check_version()
        nodes, roots = self._nodes()
        uses = Counter(node["mesh"] for node in nodes if "mesh" in node)
        meshes = {index: found for index, count in uses.items() if (found := self._pieces(index, count))}
        numbers = {index: number for number, index in enumerate(meshes)}
        for node in nodes:
            if (index := node.pop("mesh", None)) in numbers:
                node["mesh"] = numbers[index]
        tables = self._tables
        return {
            "asset": {"version": "2.0"},
            "scenes": [{"nodes": roots}],
            "nodes": nodes,
            "meshes": [{"primitives": pieces} for pieces in meshes.values()],
            "accessors": tables.accessors,
            "bufferViews": tables.views,
            "buffers": [{"uri": name} for name in tables.buffers],
            "materials": [{"name": str(number)} for number in range(len(self._surfaces))],
        }, self._surfaces

    def _check_version(self) -> None:
        if not str(self._tree["asset"]["version"]).startswith("2."):
            raise self._tables.bad("it is not glTF 2.0", "export it as glTF 2.0")
        for name in self._tree.get("extensionsRequired", ()):
            if not str(name).startswith(_UNDERSTOOD):
                raise self._tables.bad(f"it needs the extension {str(name)[:60]}", "export it without compression")

    def _nodes(self) -> tuple[list[Table], list[int]]:
        """The nodes of the default scene, renumbered, and the roots among them."""
        roots = self._roots()
        number: dict[int, int] = {}
        level: Iterable[int] = roots
        for _ in range(_DEPTH):
            for index in level:
                if index in number:
                    raise self._tables.bad("its nodes form a cycle, or one has two parents")
                number[index] = len(number)
            level = list(chain.from_iterable(self._children(index) for index in level))
        if level:
            raise self._tables.bad(f"its nodes are nested more than {_DEPTH} deep", "flatten its hierarchy")
        return [self._node(index, number) for index in number], [number[index] for index in roots]

    def _roots(self) -> list[int]:
        """The root nodes of the default scene; of a file without scenes, all without a parent."""
        if self._tree.get("scenes"):
            roots: list[int] = self._tables.item("scenes", self._tree.get("scene", 0)).get("nodes", [])
            return roots
        count = len(self._tree.get("nodes", []))
        children = set(chain.from_iterable(self._children(index) for index in range(count)))
        return [index for index in range(count) if index not in children]

    def _children(self, index: Any) -> list[int]:
        children: list[int] = self._tables.item("nodes", index).get("children", [])
        return children

    def _node(self, index: int, number: dict[int, int]) -> Table:
        node = self._tables.item("nodes", index)
        if "skin" in node:
            self._tables.folder.note("its skeleton is not read; it has the pose in which its vertices are stored.")
        kept = {key: node[key] for key in ("matrix", "translation", "rotation", "scale", "mesh") if key in node}
        return kept | {"children": [number[child] for child in self._children(index)]}

    def _pieces(self, index: int, uses: int) -> list[Table]:
        """The primitives of a mesh that have faces."""
        stated = self._tables.item("meshes", index)["primitives"]
        pieces = [piece for primitive in stated if (piece := self._piece(primitive, uses))]
        if len(self._surfaces) > _PIECES:
            raise self._tables.bad(f"it has more than {_PIECES:,} pieces", "join its meshes")
        return pieces

    def _piece(self, primitive: Table, uses: int) -> Table | None:
        mode = primitive.get("mode", _TRIANGLES)
        if mode == _FAN:
            raise self._tables.bad("it holds fans of triangles", "export it with plain triangles")
        if mode not in (_TRIANGLES, _STRIP):
            self._tables.folder.note("its points and lines are not read, only faces.")
            return None
        surface = self._materials.get(primitive.get("material"))
        attributes, corners = self._attributes(primitive["attributes"], surface)
        piece = {"attributes": attributes, "mode": mode, "material": len(self._surfaces)}
        if "indices" in primitive:
            piece["indices"], corners = self._tables.accessor(primitive["indices"], ("SCALAR",), (BYTE, SHORT, INT))
        if (mode == _TRIANGLES and corners % 3) or corners < 3:
            raise self._tables.bad(f"{corners:,} corners are not a multiple of three")
        self._faces += uses * (corners - 2 if mode == _STRIP else corners // 3)
        self._tables.folder.limits.check_faces(self._faces, 0, self._tables.folder.name)
        self._surfaces.append(surface)
        return piece

    def _attributes(self, stated: Table, surface: Surface) -> tuple[dict[str, int], int]:
        """Positions, texture coordinates and colours of vertices by trimesh's names for them, and how many vertices."""
        points, count = self._tables.accessor(stated["POSITION"], ("VEC3",), (FLOAT,))
        attributes = {"POSITION": points}
        wanted = {"_UV": (f"TEXCOORD_{surface.coordinates}", ("VEC2",)), "_COLOR": ("COLOR_0", ("VEC3", "VEC4"))}
        for name, (key, shapes) in wanted.items():
            if key in stated:
                attributes[name], values = self._tables.accessor(stated[key], shapes, (FLOAT, SHORT, BYTE))
                if values != count:
                    raise self._tables.bad(f"it has {values:,} values of {key} for {count:,} vertices")
        return attributes, count
