"""The child process of ``read_mesh``: reads one 3D asset and sends its arrays, within limits that it sets on itself.

Run as ``python -m atoken.media.mesh_worker`` by ``atoken.media.process``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import fields
from typing import Any

import numpy as np

from atoken.media.limits import Limits
from atoken.media.mesh_folder import Folder
from atoken.media.process import DATA, INFO
from atoken.media.worker import MEMORY, Channel, limit_memory, serve
from atoken.mesh import Mesh

_NOTES = 8  # warnings of one file


def read(request: dict[str, Any], channel: Channel) -> None:
    """Send the types and shapes of the arrays with notes for the user, then the arrays: those of ``Mesh`` in order."""
    limits = Limits(**request["limits"])
    limit_memory(MEMORY + 8 * limits.max_mesh_bytes)
    with os.fdopen(request["descriptor"], "rb") as file:
        folder = Folder(file, request["folder"], request["name"], limits)
    mesh = mesh_of(folder, request["format"])
    arrays = [getattr(mesh, field.name) for field in fields(Mesh)[:-1]] + list(mesh.textures)
    stated = {"arrays": [(array.dtype.str, array.shape) for array in arrays], "notes": list(folder.notes)[:_NOTES]}
    channel.send(INFO, json.dumps(stated).encode())
    for array in arrays:
        channel.send(DATA, np.ascontiguousarray(array))


def mesh_of(folder: Folder, format: str) -> Mesh:
    """Read an asset in this process. Raises: MediaError; on damaged input nearly any type."""
    if format in ("glb", "gltf"):
        from atoken.media.mesh_gltf import read_gltf

        return read_gltf(folder, binary=format == "glb")
    from atoken.media.mesh_plain import read_plain

    return read_plain(folder, format)


def main() -> None:
    """Serve one request."""
    # trimesh imports these two where they are installed, which takes five times as long as all else, and needs
    # neither for reading.
    sys.modules.update(dict.fromkeys(("scipy", "networkx")))  # type: ignore[arg-type]
    import trimesh  # noqa: F401 - before the time of the file begins

    logging.disable()
    serve(read)


if __name__ == "__main__":
    main()
