"""GLB and glTF 2.0: the faces of the default scene, each mesh placed by its nodes and their instances.

Every count, index and offset is checked to lie inside the file before memory is taken for it. Colours and textures are
read as ``atoken.media.mesh`` says. Source: the glTF 2.0 specification, Khronos; EXT_mesh_gpu_instancing,
KHR_draco_mesh_compression.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import NoReturn

import numpy as np

from atoken.errors import MediaError, MissingExtraError
from atoken.media.mesh_accessor import UNSIGNED, Column, Table, Tables
from atoken.media.mesh_folder import Folder
from atoken.media.mesh_material import Materials, Surface
from atoken.media.mesh_parts import Part, checked, compacted, joined
from atoken.mesh import Mesh

_JSON, _BIN = 0x4E4F534A, 0x004E4942
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_DEPTH = 256  # of nodes
_PIECES = 16_384
_INSTANCING, _DRACO = "EXT_mesh_gpu_instancing", "KHR_draco_mesh_compression"
_UNDERSTOOD = (  # beginnings of extensions that are read, or change nothing but light and shading
    "KHR_materials_", "KHR_lights_", "EXT_lights_", "KHR_xmp", "KHR_texture_transform", "EXT_texture_webp",
    "EXT_texture_avif", "KHR_mesh_quantization", _INSTANCING, _DRACO,
)  # fmt: skip


def read_gltf(folder: Folder, *, binary: bool) -> Mesh:
    """Read the default scene of ``folder.data``. Raises: MediaError; what Python raises on values of odd types."""
    text, chunk = _chunks(folder.data, folder.name) if binary else (folder.data, None)
    tree = json.loads(text.decode("utf-8-sig"), parse_constant=_not_finite)
    tables = Tables(folder, tree, chunk)
    _check_version(tables)
    return joined(list(_Scene(tables).read()), folder.name, folder.limits, y_up=True)


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


def _check_version(tables: Tables) -> None:
    tree = tables.tree
    if not str(tree["asset"]["version"]).startswith("2."):
        raise tables.bad("it is not glTF 2.0", "export it as glTF 2.0")
    for name in tree.get("extensionsRequired", ()):
        if not str(name).startswith(_UNDERSTOOD):
            remedy = "export it without " + ("compression" if "compression" in str(name) else "it")
            raise tables.bad(f"it needs the extension {str(name)[:60]}, which is not supported", remedy)
    unread = sorted(name for name in tree.get("extensionsUsed", ()) if not name.startswith(_UNDERSTOOD))
    if unread:
        tables.folder.note(f"it uses extensions that are not read ({', '.join(unread)[:200]}); it may look different.")


class _Scene:
    """The default scene of a file."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._folder, self._materials = tables, tables.folder, Materials(tables)
        self._pieces = self._places = self._faces = 0

    def read(self) -> Iterator[Part]:
        """Give each piece of the scene once, with all its instances. Raises: MediaError."""
        for index, places in self._placements().items():
            mesh, matrices = self._tables.item("meshes", index), np.concatenate(places)
            self._note_morphs(mesh)
            for primitive in mesh["primitives"]:
                if primitive.get("mode", _TRIANGLES) in (_TRIANGLES, _STRIP, _FAN):
                    yield self._part(primitive, matrices)
                else:
                    self._folder.note("its points and lines are not read, only faces.")

    def _note_morphs(self, table: Table) -> None:
        if any(table.get("weights", ())):
            self._folder.note("its morph targets are not read; it has its basic shape.")

    def _placements(self) -> dict[int, list[np.ndarray]]:
        """For each mesh the matrices (n, 4, 4) that place it in the world."""
        places, visited = defaultdict[int, list[np.ndarray]](list), set[int]()
        level = [(index, np.eye(4)) for index in self._roots()]
        for _ in range(_DEPTH):
            below = []
            for index, parent in level:
                if index in visited:
                    raise self._tables.bad("its nodes form a cycle, or one has two parents")
                visited.add(index)
                node = self._tables.item("nodes", index)
                world = parent @ _local(node)
                below += [(child, world) for child in node.get("children", ())]
                self._note_morphs(node)
                if "skin" in node:
                    self._folder.note("its skeleton is not read; it has the pose in which its vertices are stored.")
                if "mesh" in node:
                    places[node["mesh"]].append(world @ self._instances(node))
            level = below
        if level:
            raise self._tables.bad(f"its nodes are nested more than {_DEPTH} deep", "flatten its hierarchy")
        return places

    def _roots(self) -> list[int]:
        """The root nodes of the default scene; of a file without scenes, all without a parent."""
        tree = self._tables.tree
        if scenes := tree.get("scenes"):
            if len(scenes) > 1:
                self._folder.note(f"it has {len(scenes)} scenes, of which only the default one is read.")
            roots: list[int] = self._tables.item("scenes", tree.get("scene", 0)).get("nodes", [])
            return roots
        nodes = tree.get("nodes", [])
        children = set(chain.from_iterable(node.get("children", ()) for node in nodes))
        return [index for index in range(len(nodes)) if index not in children]

    def _instances(self, node: Table) -> np.ndarray:
        """The matrices (n, 4, 4) of the instances of a node's mesh in the node; without the extension one, of 1."""
        stated = node.get("extensions", {}).get(_INSTANCING)
        found = {}
        if stated is not None:
            shapes = {"TRANSLATION": "VEC3", "ROTATION": "VEC4", "SCALE": "VEC3"}
            given = {key: index for key, index in stated["attributes"].items() if key in shapes}
            found = {key: self._tables.column(index, (shapes[key],)) for key, index in given.items()}
        counts = {len(column.values) for column in found.values()} or {1}
        if len(counts) > 1:
            raise self._tables.bad("its instances have different numbers of places, rotations and sizes")
        self._places += max(counts)
        # Each instance has a face or more.
        self._folder.limits.check_faces(self._places, 0, self._folder.name)
        values = {key: column.floats(slice(None)) for key, column in found.items()}
        return transforms(values.get("TRANSLATION"), values.get("ROTATION"), values.get("SCALE"))

    def _part(self, primitive: Table, matrices: np.ndarray) -> Part:
        """A piece, put at each of its places."""
        self._pieces += 1
        if self._pieces > _PIECES:
            raise self._tables.bad(f"it has more than {_PIECES:,} pieces", "join its meshes")
        surface = self._materials.get(primitive.get("material"))
        columns, faces = self._geometry(primitive, surface, len(matrices))
        vertices = len(columns["POSITION"].values)
        used, faces = compacted(checked(faces, vertices, self._folder.name), vertices)
        points = columns["POSITION"].floats(used)
        with np.errstate(over="ignore", invalid="ignore"):
            placed = points @ matrices[:, :3, :3].mT + matrices[:, None, :3, 3]
            mirrored = np.linalg.det(matrices[:, :3, :3]) < 0
        own = np.where(mirrored[:, None, None], faces[:, ::-1], faces)
        light, uv = (columns[key].floats(used) if key in columns else None for key in ("COLOR_0", surface.coordinates))
        looks = surface.corners(own.reshape(-1, 3), light, uv)
        if not surface.repeats and looks[1] is not None and (looks[1].min() < 0 or looks[1].max() > 1):
            self._folder.note("a texture of it does not repeat beyond its edges in the file; here it does.")
        shifted = own + len(used) * np.arange(len(own))[:, None, None]
        return Part(placed.reshape(-1, 3), shifted.reshape(-1, 3), *looks)

    def _geometry(self, primitive: Table, surface: Surface, uses: int) -> tuple[dict[str, Column], np.ndarray]:
        """The attributes of a primitive's vertices by their names, and its faces (F, 3)."""
        wanted = {"POSITION": ("VEC3",), surface.coordinates: ("VEC2",), "COLOR_0": ("VEC3", "VEC4")}
        stated, packed = primitive["attributes"], self._unpacked(primitive)
        columns = {key: self._tables.column(stated[key], shapes, given=packed.get(key))
                   for key, shapes in wanted.items() if key in stated}  # fmt: skip
        count = len(columns["POSITION"].values)
        for key, column in columns.items():
            if len(column.values) != count:
                raise self._tables.bad(f"it has {len(column.values):,} values of {key} for {count:,} vertices")
        if "COLOR_0" in columns:  # whole numbers always stand for fractions of 1
            columns["COLOR_0"] = columns["COLOR_0"]._replace(normalized=True)
        if "indices" in packed:
            corners, mode = packed["indices"], _TRIANGLES
        else:
            corners, mode = np.arange(count), primitive.get("mode", _TRIANGLES)
            if "indices" in primitive:
                corners = self._tables.column(primitive["indices"], ("SCALAR",), UNSIGNED).values[:, 0]
        if (mode == _TRIANGLES and len(corners) % 3) or len(corners) < 3:
            raise self._tables.bad(f"{len(corners):,} corners are not a multiple of three")
        self._faces += uses * (len(corners) // 3 if mode == _TRIANGLES else len(corners) - 2)
        self._folder.limits.check_faces(self._faces, 0, self._folder.name)
        return columns, _triangles(corners.astype(np.int64), mode)

    def _unpacked(self, primitive: Table) -> dict[str, np.ndarray]:
        """What a primitive has as Draco data: its attributes, and "indices" of triangles; empty if it has none."""
        stated = primitive.get("extensions", {}).get(_DRACO)
        if stated is None:
            return {}
        if importlib.util.find_spec("DracoPy") is None:
            if "bufferView" in self._tables.item("accessors", primitive["attributes"]["POSITION"]):
                return {}  # it has the same without compression
            raise MissingExtraError("DracoPy", "draco", f"Reading the Draco data of {self._folder.name}")
        import DracoPy

        mesh = DracoPy.decode(self._tables.view(stated["bufferView"]))
        arrays = {key: mesh.get_attribute_by_unique_id(number)["data"] for key, number in stated["attributes"].items()}
        arrays["indices"] = mesh.faces.reshape(-1)
        self._folder.count(sum(array.nbytes for array in arrays.values()), "its numbers")
        return arrays


def _local(node: Table) -> np.ndarray:
    """The matrix (4, 4) of a node."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    return transforms(
        *(np.array([node[key]]) if key in node else None for key in ("translation", "rotation", "scale"))
    )[0]


def transforms(shifts: np.ndarray | None, turns: np.ndarray | None, scales: np.ndarray | None) -> np.ndarray:
    """Matrices (n, 4, 4) of shifts (n, 3), quaternions (n, 4) with w last and of any length, and scales (n, 3)."""
    count = max(len(values) for values in (shifts, turns, scales, [0]) if values is not None)
    matrices = np.tile(np.eye(4), (count, 1, 1))
    if turns is not None:
        lengths = np.linalg.norm(turns, axis=1, keepdims=True)
        x, y, z, w = np.where(lengths > 0, turns / np.where(lengths > 0, lengths, 1), [0, 0, 0, 1]).T
        rows = [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]  # fmt: skip
        matrices[:, :3, :3] = np.moveaxis(np.array(rows), -1, 0)
    if scales is not None:
        matrices[:, :3, :3] *= scales[:, None]
    if shifts is not None:
        matrices[:, :3, 3] = shifts
    return matrices


def _triangles(corners: np.ndarray, mode: int) -> np.ndarray:
    """Faces (F, 3) of the corners of triangles, a strip or a fan. Source: glTF 2.0 section 3.7.2.1."""
    if mode == _TRIANGLES:
        return corners.reshape(-1, 3)
    first = np.arange(len(corners) - 2)
    odd = first % 2
    order = (first + 1, first + 2, 0 * first) if mode == _FAN else (first, first + 1 + odd, first + 2 - odd)
    return corners[np.stack(order, 1)]
