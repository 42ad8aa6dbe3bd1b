"""Small 3D files for the tests of reading meshes: PLY, and hostile files of every format."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.media.gltf_file import COMPONENTS, DRACO, HALVES, SQUARE, Gltf, png


def ply(vertices: Sequence[str], faces: Sequence[str], *properties: str, comment: str = "") -> str:
    """A text PLY of these rows; ``properties`` are those of a vertex beside x, y, z."""
    lines = ["ply", "format ascii 1.0", *([f"comment {comment}"] if comment else []), f"element vertex {len(vertices)}"]
    lines += [f"property float {axis}" for axis in "xyz"] + [f"property {text}" for text in properties]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", *vertices, *faces]
    return "\n".join(lines) + "\n"


def secrets(folder: Path) -> list[Path]:
    """Make sound files beside ``folder``, which hostile files in it name, and links to them in it."""
    folder.mkdir(exist_ok=True)
    contents = {"secret.bin": bytes(400), "secret.png": png(), "secret.mtl": b"newmtl m\nKd 1 0 0\n"}
    for name, data in contents.items():
        (folder.parent / name).write_bytes(data)
        (folder / name.replace("secret", "link")).symlink_to(f"../{name}")
    (folder / "zero.bin").symlink_to("/dev/zero")
    (folder / "inside.mtl").write_bytes(b"newmtl m\nmap_Kd ../secret.png\n")
    (folder / "linked.mtl").write_bytes(b"newmtl m\nmap_Kd link.png\n")
    (folder / "bomb.mtl").write_bytes(b"newmtl m\nmap_Kd bomb.png\n")
    (folder / "bomb.png").write_bytes(bomb(60_000))
    return [folder.parent / name for name in contents]


def bomb(side: int) -> bytes:
    """Give a PNG that states this size, and has no pixels."""
    data = bytearray(png())
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def hostile(folder: Path, port: int = 9) -> dict[str, tuple[bytes, str]]:
    """Give files for ``folder`` (see ``secrets``) that must be refused, with a part of our sentence ("": any)."""
    gltf = _hostile_gltf(folder, port) | _hostile_nodes() | _hostile_packed() | _hostile_textures(port)
    return gltf | _hostile_plain(folder, port)


def _changed(**entry: Any) -> bytes:
    """A sound GLB but for these fields of the accessor of its points."""
    file = Gltf()
    file.node(mesh=file.mesh())
    file.tree["accessors"][0].update(entry)
    return file.glb()


def _hostile_gltf(folder: Path, port: int) -> dict[str, tuple[bytes, str]]:
    names = {
        "up": "../secret.bin", "quoted": "%2e%2e/secret.bin", "windows": "..\\secret.bin", "link": "link.bin",
        "device": "zero.bin", "absolute": f"{folder.parent}/secret.bin", "drive": "C:\\secret.bin",
        "file": f"file://{folder.parent}/secret.bin", "web": f"http://127.0.0.1:{port}/a.bin", "net": "//127.0.0.1/a",
    }  # fmt: skip
    data = {f"buffer-{name}.gltf": (_referring(uri), "its own folder|outside") for name, uri in names.items()}
    sound = _changed()
    views = {"byteLength": 1 << 40}, {"byteOffset": 1 << 40}, {"byteStride": 4}, {"byteStride": 1 << 40}
    for number, entry in enumerate(views):
        data[f"view-{number}.glb"] = _with("bufferViews", 0, **entry), ""
    return data | {
        "points-1e8.glb": (_changed(count=10**8), "100,000,000 values but has bytes for fewer"),
        "faces-1e8.glb": (_with("accessors", 1, count=3 * 10**8), "but has bytes for fewer"),
        "points-minus.glb": (_changed(count=-4), "where a count is expected"),
        "points-1e308.glb": (_changed(count=1e308), "where a count is expected"),
        "points-text.glb": (_changed(count="4"), "where a count is expected"),
        "offset.glb": (_changed(byteOffset=44), "bytes for fewer"),
        "matrices.glb": (_changed(type="MAT4"), "VEC3 is expected"),
        "no-values.glb": (_changed(count=0), "declares 0 values"),
        "no-bytes-1e9.glb": (_without_bytes(10**9), "over the limit of 300 MB"),
        "not-there.glb": (_changed(bufferView=99), "number 99 of its 2 bufferViews"),
        "from-the-end.glb": (_changed(bufferView=-1), "number -1"),
        "missing.gltf": (_referring("absent.bin"), "missing"),
        "data-damaged.gltf": (_referring("data:application/octet-stream;base64,!!!!"), "data URI"),
        "meshopt.glb": (_tree(extensionsRequired=["EXT_meshopt_compression"]), "EXT_meshopt.*without compression"),
        "private.glb": (_tree(extensionsRequired=["ACME_gizmo"]), "the extension ACME_gizmo.*without it"),
        "old.glb": (_tree(asset={"version": "1.0"}), "glTF 2.0"),
        "half.glb": (sound[: len(sound) // 2], "truncated"),
        "chunk.glb": (sound[:12] + b"\xff\xff\xff\xff" + sound[16:], "truncated"),
        "head.glb": (sound[:12], "GLB file"),
        "deep.gltf": (b'{"asset":' + b"[" * 100_000, ""),
        "list.gltf": (b"[]", ""),
        "nan.gltf": (_referring("link.bin").replace(b'"byteOffset": 0', b'"byteOffset": NaN'), ""),
    }


def _referring(uri: str) -> bytes:
    """A glTF file that is sound but for the place of its buffer."""
    file = Gltf()
    file.node(mesh=file.mesh())
    file.tree["buffers"] = [{"uri": uri, "byteLength": len(file.data)}]
    return json.dumps(file.tree).encode()


def _with(table: str, number: int, **entry: Any) -> bytes:
    file = Gltf()
    file.node(mesh=file.mesh())
    file.tree[table][number].update(entry)
    return file.glb()


def _tree(**entries: Any) -> bytes:
    file = Gltf()
    file.node(mesh=file.mesh())
    file.tree |= entries
    return file.glb()


def _points(*rows: Sequence[float], mode: int = 4) -> bytes:
    file = Gltf()
    file.node(mesh=file.mesh(np.array(rows, np.float32), HALVES[:1] if mode == 4 else HALVES[0, :2]))
    file.tree["meshes"][0]["primitives"][0]["mode"] = mode
    return file.glb()


def _nodes(*children: Sequence[int], **entry: Any) -> bytes:
    """A GLB file whose nodes have these children, the first of them the root, with the mesh at the last."""
    file = Gltf()
    mesh = file.mesh()
    for number, below in enumerate(children):
        file.node(root=not number, children=list(below), **({"mesh": mesh} | entry if below == children[-1] else {}))
    return file.glb()


def _hostile_nodes() -> dict[str, tuple[bytes, str]]:
    many = Gltf()
    mesh = many.mesh(faces=np.tile(HALVES, (1000, 1)))
    for _ in range(1500):
        many.node(mesh=mesh)
    nan, inf = float("nan"), float("inf")
    return {
        "ring.glb": (_nodes([1], [2], [0]), "cycle"),
        "own-child.glb": (_nodes([0]), "cycle"),
        "two-parents.glb": (_nodes([1, 2], [3], [3], []), "two parents"),
        "doubling.glb": (_nodes(*([number + 1] * 2 for number in range(60)), []), "two parents"),
        "nested.glb": (_nodes(*([number + 1] for number in range(10_000)), []), "256 deep"),
        "no-node.glb": (_nodes([7]), "number 7"),
        "infinite-node.glb": (_nodes([], scale=[1e308] * 3, translation=[1e308] * 3), "infinite"),
        "flat-node.glb": (_nodes([], scale=[0, 0, 0]), "same position"),
        "instances.glb": (many.glb(), "over the limit of 2,000,000"),
        "nan.glb": (_points([0, 0, 0], [1, 0, 0], [0, nan, 0]), "infinite or NaN"),
        "infinite.glb": (_points([0, 0, 0], [1, 0, 0], [0, inf, 0]), "infinite or NaN"),
        "one-place.glb": (_points([1, 1, 1], [1, 1, 1], [1, 1, 1]), "same position"),
        "no-such-point.glb": (_points([0, 0, 0], [1, 0, 0]), "refers to vertex"),
        "empty.glb": (Gltf().glb(), "no faces"),
        "points.glb": (_tree(meshes=[{"primitives": [{"mode": 0, "attributes": {"POSITION": 0}}]}]), "no faces"),
        "fan.glb": (_points([0, 0, 0], [1, 0, 0], mode=6), "2 corners"),
    }


def _instanced(count: int, **accessor: Any) -> bytes:
    """A GLB file with two instances of a square that states so many, in an accessor with these fields besides."""
    file = Gltf()
    number = file.array(np.zeros((2, 3), np.float32), **accessor | {"count": count})
    if "bufferView" in accessor:
        del file.tree["accessors"][number]["bufferView"]
    file.instances(file.mesh(), TRANSLATION=number)
    return file.glb()


def _sparse(rows: np.ndarray, values: np.ndarray, **sparse: Any) -> bytes:
    """A GLB file whose positions are replaced at ``rows`` by ``values``, with these fields of "sparse" besides."""
    file = Gltf()
    file.node(mesh=file.mesh())
    indices = {"bufferView": file.bytes(rows.tobytes()), "componentType": COMPONENTS[rows.dtype.str[1:]]}
    stated = {"count": len(rows), "indices": indices, "values": {"bufferView": file.bytes(values.tobytes())}}
    file.tree["accessors"][0]["sparse"] = stated | sparse
    return file.glb()


def _draco(data: bytes, **primitive: Any) -> bytes:
    file = Gltf()
    file.node(mesh=file.draco(data, **primitive))
    return file.glb()


def _hostile_packed() -> dict[str, tuple[bytes, str]]:
    """Instances, sparse values and Draco data that claim more than there is."""
    row, value = np.array([1], np.uint8), np.zeros((1, 3), np.float32)
    other = {"extensions": {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 9}}}}
    # Byte 11 on, of edgebreaker data: its kind, then the numbers of vertices, faces, ...
    many = [DRACO[:at] + b"\xff\xff\xff\xff\x07" + DRACO[at + 1 :] for at in range(12, 17)]
    file = Gltf()
    places, turns = (file.array(np.zeros((n, k), np.float32)) for n, k in ((2, 3), (3, 4)))
    file.instances(file.mesh(), TRANSLATION=places, ROTATION=turns)
    return {
        "instances-1e9.glb": (_instanced(10**9), "but has bytes for fewer"),
        "instances-1e9-no-bytes.glb": (_instanced(10**9, bufferView=None), "over the limit of 300 MB"),
        "instances-3e6.glb": (_instanced(3 * 10**6, bufferView=None), "over the limit of 2,000,000"),
        "instances-differ.glb": (file.glb(), "different numbers"),
        "sparse-count.glb": (_sparse(row, value, count=1 << 30), "replaces 1,073,741,824 of 4"),
        "sparse-outside.glb": (_sparse(row + 3, value), "replaces value 4 of 4"),
        "sparse-short.glb": (_sparse(row, value[:, :1]), "bytes for fewer"),
        "sparse-floats.glb": (_sparse(row.astype(np.float32), value), ""),
        **{f"draco-2e9-{number}.glb": (_draco(data), "") for number, data in enumerate(many)},
        "draco-half.glb": (_draco(DRACO[:60]), ""),
        "draco-other-id.glb": (_draco(DRACO, **other), ""),
        "draco-more.glb": (_draco(DRACO).replace(b'"count": 4', b'"count": 5'), "VEC. are expected"),
    }


def _without_bytes(count: int) -> bytes:
    """A GLB file whose accessor of positions has no view: all are zero."""
    file = Gltf()
    file.node(mesh=file.mesh())
    del file.tree["accessors"][0]["bufferView"]
    file.tree["accessors"][0]["count"] = count
    return file.glb()


def _hostile_textures(port: int) -> dict[str, tuple[bytes, str]]:
    images = {
        "up": ("../secret.png", "outside"),
        "link": ("link.png", "outside"),
        "web": (f"http://127.0.0.1:{port}/a.png", "its own folder"),
        "bomb": ("bomb.png", "60000x60000, over the limit"),
        "svg": (_data(b'<svg><image href="../secret.png"/></svg>'), "none of the formats"),
        "eps": (_data(b"%!PS-Adobe-3.0 EPSF-3.0\n(../secret.png) run\n"), "none of the formats"),
        "half": (_data(png(np.zeros((64, 64, 4), np.uint8))[:60]), ""),
    }
    data = {f"texture-{name}.glb": (_textured(uri), why) for name, (uri, why) in images.items()}
    many = _data(png(np.zeros((4000, 4000), np.uint8)))
    return data | {"textures.glb": (_textured(*[many] * 8), "over the limit of 300 MB")}


def _data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _textured(*uris: str) -> bytes:
    """A GLB file with a mesh for each texture."""
    file = Gltf()
    for uri in uris:
        texture = {"index": file.add("textures", source=file.add("images", uri=uri))}
        material = file.add("materials", pbrMetallicRoughness={"baseColorTexture": texture})
        file.node(mesh=file.mesh(material=material, TEXCOORD_0=SQUARE[:, :2].copy()))
    return file.glb()


def _obj(head: str = "", points: str = "v 0 0 0\nv 1 0 0\nv 0 1 0", faces: str = "f 1/1 2/1 3/1") -> bytes:
    return f"{head}\n{points}\nvt 0 0\nusemtl m\n{faces}\n".encode()


def _hostile_plain(folder: Path, port: int) -> dict[str, tuple[bytes, str]]:
    libraries = {
        "up": "../secret.mtl", "link": "link.mtl", "absolute": f"{folder.parent}/secret.mtl",
        "web": f"http://127.0.0.1:{port}/a.mtl", "texture": "inside.mtl", "texture-link": "linked.mtl",
    }  # fmt: skip
    data = {
        f"library-{name}.obj": (_obj(f"mtllib {where}"), "its own folder|outside") for name, where in libraries.items()
    }
    huge = "ply\nformat binary_little_endian 1.0\nelement vertex {}\nproperty float x\nproperty float y\n"
    huge += "property float z\nelement face {}\nproperty list uchar int vertex_indices\nend_header\n"
    mixed = huge.replace("uchar int", "uint int").format(4, 2).encode() + SQUARE.tobytes()
    mixed += struct.pack("<5i4i", 4, 0, 1, 2, 3, 3, 0, 1, 2)
    points, face = ["0 0 0", "1 0 0", "0 1 0"], ["3 0 1 2"]
    splat = ply(["0 0 0 1"], [], "float f_dc_0")
    texture = ply([f"{row} 0 0" for row in points], face, "float s", "float t", comment="TextureFile ../secret.png")
    solids = b"solid a\nfacet normal 0 0 1\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendsolid\n" * 30_000
    triangle = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, float("nan"), 0, 0)
    playlist = b"#EXTM3U\n#EXTINF:1,\n../secret.png\n"
    return data | {
        "bomb.obj": (_obj("mtllib bomb.mtl"), "60000x60000, over the limit"),
        "no-such-point.obj": (_obj(faces="f 1 2 9"), ""),
        "nan.obj": (_obj(points="v 0 0 0\nv 1 0 0\nv 0 nan 0"), "infinite or NaN"),
        "infinite.obj": (_obj(points="v 0 0 0\nv 1 0 0\nv 0 1e999 0"), "infinite or NaN"),
        "one-place.obj": (_obj(points="v 1 1 1\nv 1 1 1\nv 1 1 1"), "same position"),
        "points.obj": (_obj(faces=""), "no faces"),
        "playlist.obj": (playlist, "none of the supported"),
        "binary.obj": (b"v 0 0 0\n\0\0", "none of the supported"),
        "points-4e9.ply": (huge.format(4 * 10**9, 1).encode(), "over the limit|declares at least"),
        "faces-1e8.ply": (huge.format(3, 10**8).encode(), "over the limit"),
        "points-1e6.ply": (huge.format(10**6, 10**6).encode(), "declares at least"),
        "faces-minus.ply": (huge.format(3, -1).encode(), "line that cannot be read"),
        "long-list.ply": (
            huge.replace("uchar int", "uint int").format(3, 1).encode() + struct.pack("<9fI", *range(9), 2**31),
            "",
        ),
        "mixed-1e9.ply": (mixed.replace(b"\x03\0\0\0", struct.pack("<I", 10**9)), "truncated"),
        "mixed-half.ply": (mixed[:-3], "truncated|at least"),
        "endless.ply": (b"ply\nformat ascii 1.0\n" + b"comment \n" * 10_000, "header does not end"),
        "corners-1e9.ply": (ply(points, ["3 0 1 2", "1000000000 0 1 2"]).encode(), "fewer corners than it states"),
        "splat.ply": (splat.encode(), "3D Gaussians"),
        "cloud.ply": (ply(points, []).encode(), "no faces"),
        "texture-up.ply": (texture.encode(), "outside"),
        "no-such-point.ply": (ply(points, ["3 0 1 9"]).encode(), ""),
        "before-the-first.ply": (ply(points, ["3 0 1 -2"]).encode(), "refers to vertex"),
        "nan.ply": (ply([*points[:2], "nan nan nan"], face).encode(), "infinite or NaN"),
        "count.stl": (bytes(80) + struct.pack("<I", 10**8) + triangle, "none of the supported"),
        "nan.stl": (bytes(80) + struct.pack("<I", 1) + triangle, "infinite or NaN"),
        "none.stl": (bytes(84), "no faces"),
        "solids.stl": (solids, ""),
        "points-1e8.off": (b"OFF\n100000000 1 0\n0 0 0\n", ""),
        "no-such-point.off": (b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", ""),
        "text.off": (b"OFF\nsecret.png\n", ""),
        "zip.glb": (b"PK\3\4" + bytes(40), "none of the supported"),
    }
