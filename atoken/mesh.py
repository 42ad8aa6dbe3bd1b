"""A textured triangle mesh as plain arrays: a 3D file is read as one, and views are rendered from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoken.errors import MediaError
from atoken.summary import Summary


@dataclass(frozen=True, eq=False, repr=False)
class Mesh(Summary):
    """V vertices and F triangles; each corner has a colour and a position in a texture. Raises: MediaError.

    vertices: (V, 3) float32, finite; of an asset that was read from a file, in [-0.5, 0.5]^3 with z up. faces: (F, 3)
    int32. colors: (F, 3, 4) uint8 RGBA of the corners, multiplied with the texture. uv: (F, 3, 2) float32; (0, 0) is
    the lower left corner of the texture, and values outside [0, 1] repeat it. texture: (F,) int32, an index into
    ``textures``, or -1. textures: (H, W, 4) uint8 RGBA each, top row first.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    textures: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.faces)
        _check("vertices", self.vertices, np.float32, (len(self.vertices), 3))
        _check("faces", self.faces, np.int32, (count, 3))
        _check("colors", self.colors, np.uint8, (count, 3, 4))
        _check("uv", self.uv, np.float32, (count, 3, 2))
        _check("texture", self.texture, np.int32, (count,))
        if not count or not np.isfinite(self.vertices).all() or not np.isfinite(self.uv).all():
            raise MediaError("A mesh must have at least one face, and only finite vertices and texture coordinates.")
        if self.faces.min() < 0 or self.faces.max() >= len(self.vertices):
            raise MediaError(f"A face refers to a missing vertex; there are {len(self.vertices)} vertices.")
        if self.texture.min() < -1 or self.texture.max() >= len(self.textures):
            raise MediaError(f"A face refers to a missing texture; there are {len(self.textures)} textures.")
        for image in self.textures:
            _check("textures", image, np.uint8, (*image.shape[:2], 4))


def _check(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or 0 in shape[:2]:
        raise MediaError(f"{name} must be {np.dtype(dtype)} of shape {shape}, got {array.dtype} {array.shape}.")


def fitted(vertices: np.ndarray, name: str = "the asset") -> np.ndarray:
    """Move and scale points (V, 3) into [-0.5, 0.5]^3: their box centred at the origin, its longest side 1; float32.

    ``name`` is for messages. Raises: MediaError (points that are not finite, or all at the same position).
    """
    points = vertices.astype(np.float64)
    low, high = points.min(0), points.max(0)
    with np.errstate(over="ignore"):
        longest = float((high - low).max())
    if not np.isfinite(longest):  # also where one point is NaN
        raise MediaError(f"Cannot use {name}: some points are infinite or NaN; export it again.")
    if longest <= 1e-12 * float(np.abs([low, high]).max()):
        raise MediaError(f"Cannot use {name}: all its points are at the same position; export it again.")
    return ((points - low - (high - low) / 2) / longest).astype(np.float32)
