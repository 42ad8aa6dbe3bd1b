"""3D assets in GLB, glTF, OBJ, PLY, STL and OFF, read in a child process (all but glTF through trimesh).

A damaged or hostile file can at worst end the child, which has limits on memory and time. What a file names is read
only inside the file's own folder, a texture with an absolute path by its name there, and counts are checked before
memory is taken for them.

**Axes.** glTF and OBJ are y up: (x, y, z) becomes (x, -z, y), so that their front (+z) faces -y. PLY, STL and OFF do
not state an axis and are taken as z up. Every asset is then fitted into [-0.5, 0.5]^3 (``atoken.mesh.fitted``).

**Colours** are those of the surface without lighting, as sRGB bytes; white if a file has none. Of glTF:
baseColorFactor x COLOR_0 x baseColorTexture, or diffuse of KHR_materials_pbrSpecularGlossiness. Textures are sRGB in
the file, the other two are linear; their product is encoded as sRGB, so that without a texture it is the byte that a
viewer shows. With a texture, the renderer multiplies two encoded values, which differs from the linear product by at
most 8 of 255. Alpha counts unless the material is opaque, with the cutoff of a mask. Of OBJ: map_Kd, else vertex
colours, else Kd, as stored (as Blender does, Kd does not tint map_Kd). Of PLY: TextureFile with texture coordinates,
else face or vertex colours. STL and OFF give no colours.

glTF is read with instances (EXT_mesh_gpu_instancing), KHR_mesh_quantization, sparse accessors, strips and fans,
KHR_texture_transform, WebP and AVIF textures, and with the extra ``draco`` KHR_draco_mesh_compression. A required
extension beyond these and those of light and shading is refused by name; others that are not read give one warning.
Animations, morphing, skeletons, normals and all other maps are not read; textures always repeat, with a warning where
that shows.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from atoken.errors import AtokenWarning, MissingExtraError
from atoken.media.formats import Format, Head, begins, format_of
from atoken.media.limits import DEFAULT_LIMITS, Limits
from atoken.media.process import DATA, INFO, TEXT_BYTES, ReaderProcess
from atoken.media.source import Source, name_of, opened
from atoken.mesh import Mesh

_STL_HEAD = 84  # bytes of a binary STL before its faces of 50 bytes, their number last
_TEXT_STL = re.compile(rb"\s*solid\b[^\r\n]*[\r\n]\s*(facet\s+normal\s|endsolid)", re.IGNORECASE)
_OFF = re.compile(rb"(\s|#[^\r\n]*[\r\n])*C?OFF\s")
_OBJ_LINE = re.compile(rb"(v|vt|vn|vp|f|l|p|o|g|s|mtllib|usemtl)\s")


def _text(head: Head) -> bytes:
    return head.start.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put before UTF-8


def _is_stl(head: Head) -> bool:
    faces = int.from_bytes(head.start[80:84], "little")
    binary = head.suffix == ".stl" and head.size == _STL_HEAD + 50 * faces
    return binary or bool(_TEXT_STL.match(_text(head)))


def _is_obj(head: Head) -> bool:
    """Whether the first line that is neither empty nor a comment is one of an OBJ file."""
    lines = (line for line in map(bytes.strip, _text(head).splitlines()) if line and not line.startswith(b"#"))
    found = b"\0" not in head.start and _OBJ_LINE.match(next(lines, b"") + b"\n")
    return head.suffix == ".obj" and bool(found)


FORMATS = (
    Format("glb", (".glb",), begins(b"glTF")),
    Format("gltf", (".gltf",), lambda head: head.suffix == ".gltf" and _text(head).lstrip()[:1] == b"{"),
    Format("obj", (".obj",), _is_obj),
    Format("ply", (".ply",), begins(b"ply\n", b"ply\r")),
    Format("stl", (".stl",), _is_stl),
    Format("off", (".off",), lambda head: bool(_OFF.match(_text(head)))),
)

_TIMEOUT = 7.0  # seconds, and
_BYTES_PER_SECOND = 2_000_000  # of the file for each second more


def read_mesh(
    source: Source, *, name: str | None = None, limits: Limits = DEFAULT_LIMITS, timeout: float | None = None
) -> Mesh:
    """Read a GLB, glTF, OBJ, PLY, STL or OFF file, z up and in [-0.5, 0.5]^3; axes and colours as the module says.

    All meshes of the file are joined, each transformed by its nodes; unused vertices are left out.
    ``source``: a path, bytes, or a binary file; the last two cannot refer to other files. ``name`` is
    for messages; its suffix tells glTF, OBJ and binary STL, which have no magic bytes. ``timeout``: seconds to read it,
    by default 7 and one more for each 2 MB. Raises: MediaError (missing, damaged, no faces, over a limit, too slow, or
    naming what is not in its folder), MissingExtraError. Warns of what is not read.
    """
    name = name_of(source, name)
    with opened(source, name, for_child=True) as file:
        format = format_of(file, name, FORMATS, "a 3D asset")
        if importlib.util.find_spec("trimesh") is None:
            raise MissingExtraError("trimesh", "3d", f"Reading the 3D asset {name}")
        if timeout is None:
            timeout = _TIMEOUT + os.fstat(file.fileno()).st_size / _BYTES_PER_SECOND
        folder = str(Path(source).absolute().parent) if isinstance(source, str | Path) else None
        request = {"folder": folder, "format": format, "limits": asdict(limits)}
        process = ReaderProcess("atoken.media.mesh_worker", name, file, request, timeout)
    try:
        return _received(process, name, limits)
    finally:
        process.close()


def _received(process: ReaderProcess, name: str, limits: Limits) -> Mesh:
    message = process.receive(TEXT_BYTES)
    if message.kind != INFO:
        raise process.broken()
    stated = json.loads(bytes(message.payload))
    shapes = [(np.dtype(dtype), tuple(shape)) for dtype, shape in stated["arrays"]]
    limits.check_mesh_bytes(sum(_bytes(*shape) for shape in shapes), f"The mesh of {name}")
    for note in stated["notes"]:
        warnings.warn(f"{name}: {note}", AtokenWarning, stacklevel=4)
    vertices, faces, colors, uv, texture, *textures = [_array(process, *shape) for shape in shapes]
    return Mesh(vertices, faces, colors, uv, texture, tuple(textures))


def _bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=object)) * dtype.itemsize


def _array(process: ReaderProcess, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    message = process.receive(_bytes(dtype, shape))
    if message.kind != DATA or len(message.payload) != _bytes(dtype, shape):
        raise process.broken()
    return message.payload.view(dtype).reshape(shape)
