"""3D assets in GLB, glTF, OBJ, PLY, STL and OFF, read through trimesh in a child process.

A damaged or hostile file can at worst end the child, which has limits on memory and time. What a file names is read
only inside the file's own folder, and counts are checked before anything of that size is made.

**Axes.** glTF and OBJ are y up: (x, y, z) becomes (x, -z, y), so that their front (+z) looks to -y. PLY, STL and OFF
say nothing and are taken as z up. Every asset is then fitted into [-0.5, 0.5]^3 (``atoken.mesh.fitted``).

**Colours** are those of the surface without any light, as sRGB bytes; white where a file has none. Of glTF:
baseColorFactor x COLOR_0 x baseColorTexture, or diffuse of KHR_materials_pbrSpecularGlossiness. Textures are sRGB in
the file, the other two are linear; their product is encoded as sRGB, so that without a texture it is the byte that a
viewer shows. With one, whoever renders multiplies two encoded values, which differs from the linear product by at most
8 of 255. Alpha counts unless the material is opaque. Of OBJ: map_Kd, else vertex colours, else Kd, as stored (as
Blender does, Kd does not tint map_Kd). Of PLY: TextureFile with texture coordinates, else face or vertex colours.
STL and OFF give no colours.

Animations, morphing, skeletons, normals and all other maps are not read; samplers are taken to repeat.
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from atoken.errors import AtokenWarning, MediaError, MissingExtraError
from atoken.io.media import DEFAULT_LIMITS, Limits
from atoken.io.process import DATA, INFO, TEXT_BYTES, ReaderProcess
from atoken.io.sniff import kind_of_file
from atoken.io.source import Source, name_of, opened
from atoken.mesh import Mesh

_TIMEOUT = 7.0  # seconds, and
_BYTES_PER_SECOND = 2_000_000  # of the file for each second more


def read_mesh(
    source: Source, *, name: str | None = None, limits: Limits = DEFAULT_LIMITS, timeout: float | None = None
) -> Mesh:
    """Read a GLB, glTF, OBJ, PLY, STL or OFF file, z up and in [-0.5, 0.5]^3; axes and colours as the module says.

    All meshes of the file are joined, each where its nodes place it, and points that no face uses are left out.
    ``source``: a path, bytes, or a binary file; of the last two, other files that it names are not found. ``name`` is
    for messages; its suffix tells glTF, OBJ and binary STL, which have no magic bytes. ``timeout``: seconds to read it,
    by default 7 and one more for each 2 MB. Raises: MediaError (missing, damaged, no faces, over a limit, too slow, or
    naming what is not in its folder), MissingExtraError. Warns of what is not read.
    """
    name = name_of(source, name)
    with opened(source, name, for_child=True) as file:
        kind = kind_of_file(file, name)
        if kind.media != "mesh":
            raise MediaError(f"Cannot read {name} as a 3D asset: its modality is {kind.media}; load_media reads it.")
        if importlib.util.find_spec("trimesh") is None:
            raise MissingExtraError("trimesh", "3d", f"Reading the 3D asset {name}")
        if timeout is None:
            timeout = _TIMEOUT + os.fstat(file.fileno()).st_size / _BYTES_PER_SECOND
        folder = str(Path(source).absolute().parent) if isinstance(source, str | Path) else None
        request = {"folder": folder, "format": kind.format, "limits": asdict(limits)}
        process = ReaderProcess("atoken.io.mesh_worker", name, file, request, timeout)
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
