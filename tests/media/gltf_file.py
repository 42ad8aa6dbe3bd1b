"""glTF files written by hand, for the tests of reading meshes."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

RED, GREEN, BLUE, GREY = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (128, 128, 128, 255)
CORNERS = np.array([[RED, GREEN], [BLUE, GREY]], np.uint8)  # of an image of 2x2: its upper left corner is red
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)  # counter-clockwise from the lower left
HALVES = np.array([[0, 1, 2], [0, 2, 3]], np.uint16)
COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
# SQUARE, its x and y as texture coordinates (attribute 0; positions are attribute 1) and HALVES, as DracoPy packs them.
DRACO = base64.b64decode(
    "RFJBQ08CAgEBAAAABAIAAgAAAR//AREB/wAAAgMJAgEAAAkDAAEAAgAAAAAAAAAAAACAPwAAgD8AAAAAAACAPwAAgD8AAAAAAAEBAAMDASABIAMA"
    "IISYkAAAAAAA/z8AAAAAAAAAAAAAAAAAAAAAgD8O"
)


def png(pixels: np.ndarray = CORNERS) -> bytes:
    """Give the pixels as a PNG file."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Gltf:
    """A glTF file in the making: ``tree`` is its header, ``data`` its buffer; tables are appended to."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}}
        self.data = b""

    def add(self, table: str, **entry: Any) -> int:
        """Append an entry to a table, and give its number."""
        self.tree.setdefault(table, []).append(entry)
        return len(self.tree[table]) - 1

    def bytes(self, data: bytes) -> int:
        """Append a buffer view."""
        self.data += bytes(-len(self.data) % 4)
        view = self.add("bufferViews", buffer=0, byteOffset=len(self.data), byteLength=len(data))
        self.data += data
        return view

    def array(self, values: np.ndarray, **entry: Any) -> int:
        """Append an accessor."""
        shape = SHAPES[values.shape[1] if values.ndim > 1 else 1]
        view = self.bytes(values.tobytes())
        stated = {"bufferView": view, "componentType": COMPONENTS[values.dtype.str[1:]], "type": shape}
        return self.add("accessors", **stated | {"count": len(values)} | entry)

    def mesh(
        self, points: np.ndarray = SQUARE, faces: np.ndarray = HALVES, material: int | None = None, **attributes: Any
    ) -> int:
        """Append a mesh of one primitive; ``attributes`` are arrays."""
        numbers = {name: self.array(values) for name, values in attributes.items()}
        primitive = {"attributes": {"POSITION": self.array(points)} | numbers, "indices": self.array(faces.reshape(-1))}
        return self.add("meshes", primitives=[primitive | ({} if material is None else {"material": material})])

    def textured(self, **material: Any) -> int:
        """Append a material with the image ``CORNERS``."""
        image = self.add("images", bufferView=self.bytes(png()), mimeType="image/png")
        texture = {"index": self.add("textures", source=image)}
        return self.add("materials", pbrMetallicRoughness={"baseColorTexture": texture} | material)

    def draco(self, data: bytes = DRACO, **primitive: Any) -> int:
        """Append a mesh whose only geometry is the square of ``DRACO``, or what ``data`` has in its place."""
        uv, points, corners = (
            self.add("accessors", componentType=type, type=shape, count=count)
            for type, shape, count in ((5126, "VEC2", 4), (5126, "VEC3", 4), (5123, "SCALAR", 6))
        )
        packed = {"bufferView": self.bytes(data), "attributes": {"POSITION": 1, "TEXCOORD_0": 0}}
        self.tree["extensionsRequired"] = ["KHR_draco_mesh_compression"]
        stated = {"attributes": {"POSITION": points, "TEXCOORD_0": uv}, "indices": corners}
        return self.add(
            "meshes", primitives=[stated | {"extensions": {"KHR_draco_mesh_compression": packed}} | primitive]
        )

    def instances(self, mesh: int, **attributes: int) -> int:
        """Append a node that shows a mesh once for each value of these accessors."""
        self.tree["extensionsUsed"] = ["EXT_mesh_gpu_instancing"]
        return self.node(mesh=mesh, extensions={"EXT_mesh_gpu_instancing": {"attributes": attributes}})

    def node(self, *, root: bool = True, **entry: Any) -> int:
        """Append a node, to the scene if it is a root."""
        number = self.add("nodes", **entry)
        scene = self.tree.setdefault("scenes", [{"nodes": []}])[0]
        scene["nodes"] += [number] if root else []
        return number

    def glb(self) -> bytes:
        """Give a GLB file."""
        self.data += bytes(-len(self.data) % 4)
        self.tree["buffers"] = self.tree.get("buffers", [{"byteLength": len(self.data)}])
        text = json.dumps(self.tree).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(self.data), 0x004E4942) + self.data
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def save(self, path: Path) -> Path:
        """Write a GLB file."""
        path.write_bytes(self.glb())
        return path
