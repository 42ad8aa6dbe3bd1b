"""Pieces of a file to one ``Mesh``: with a colour at each corner, joined, z up, fitted into the box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoken.errors import MediaError
from atoken.media.limits import Limits
from atoken.mesh import Mesh, fitted

WHITE = np.full(4, 255, np.uint8)


@dataclass(frozen=True)
class Part:
    """A piece with one texture, placed in the world.

    vertices (V, 3) float64; faces (F, 3) int64; colors: anything that spreads to (F, 3, 4) uint8; uv (F, 3, 2), and
    texture (H, W, 4) uint8, which another part may share, or both None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None


def joined(parts: Sequence[Part], name: str, limits: Limits, *, y_up: bool) -> Mesh:
    """One mesh of all parts, z up, in [-0.5, 0.5]^3. Raises: MediaError (no face, over a limit, all vertices equal)."""
    faces = sum(len(part.faces) for part in parts)
    if not faces:
        raise MediaError(f"Cannot read {name}: it has no faces; point clouds and empty scenes are not supported.")
    limits.check_faces(faces, 0, name)
    compact = [compacted(part.faces, len(part.vertices)) for part in parts]
    starts = np.cumsum([0, *(len(used) for used, _ in compact)])
    vertices = np.concatenate([part.vertices[used] for part, (used, _) in zip(parts, compact, strict=True)])
    images = {id(part.texture): part.texture for part in parts if part.texture is not None}
    position = {key: index for index, key in enumerate(images)}
    return Mesh(
        fitted(vertices[:, [0, 2, 1]] * [1, -1, 1] if y_up else vertices, name),
        np.concatenate([part + start for (_, part), start in zip(compact, starts, strict=False)]).astype(np.int32),
        np.concatenate([np.broadcast_to(part.colors, (len(part.faces), 3, 4)) for part in parts]),
        np.concatenate([_uv(part) for part in parts]),
        np.concatenate([np.full(len(part.faces), position.get(id(part.texture), -1), np.int32) for part in parts]),
        tuple(images.values()),
    )


def checked(faces: np.ndarray, count: int, name: str) -> np.ndarray:
    """The same faces. Raises: MediaError (a face refers to a vertex beyond the ``count`` that there are)."""
    if faces.min() < 0 or faces.max() >= count:
        wrong = faces[(faces < 0) | (faces >= count)][0]
        raise MediaError(
            f"Cannot read {name}: a face refers to vertex {wrong}, but there are only {count} vertices; "
            "export it again."
        )
    return faces


def compacted(faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (V,) of the vertices, of ``count``, that faces use, and the faces as indices of these."""
    used = np.zeros(count, bool)
    used[faces] = True
    return np.flatnonzero(used), (np.cumsum(used) - 1)[faces]


def _uv(part: Part) -> np.ndarray:
    if part.uv is None or part.texture is None:
        return np.zeros((len(part.faces), 3, 2), np.float32)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which Mesh refuses
        return part.uv.astype(np.float32)
