"""A mesh -> images with depth, by ray casting: what voxels are packed from (paper section 3.2).

Colours are the material's own (albedo): no light, no shadow. Back faces are seen as front faces are. A surface whose
alpha is below one half is a hole: the ray goes on behind it. Letters: ``V`` views, ``R`` rays.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from atoken.cameras import Cameras
from atoken.errors import MediaError, MissingExtraError
from atoken.media.views import Views
from atoken.mesh import Mesh

SIZE = 256  # pixels a side of a view
_LAYERS = 8  # of transparent surface that a ray may pass; it sees nothing behind them
_STEP = 1e-5  # depth by which a ray goes on behind a transparent surface


def render_views(mesh: Mesh, views: int | Cameras = 16, size: int = SIZE) -> Views:
    """See a mesh from ``views`` cameras on a sphere (``Cameras.sphere``), or from given ones, in squares of ``size``.

    One ray a pixel, through its centre; textures are sampled bilinearly. Depths are exact to fp32 rounding.
    Raises: MissingExtraError without the extra ``3d``; MediaError (no views, no pixels).
    """
    cameras = _cameras(views, size)
    rgb, depth = _seen(mesh, cameras, np.ones((len(cameras), size, size), np.bool_))
    return Views(rgb, depth, cameras)


def render_depths(mesh: Mesh, views: int | Cameras = 16, size: int = SIZE) -> Views:
    """As ``render_views``, but all in black, which takes less time where nothing is transparent."""
    cameras = _cameras(views, size)
    rgb, depth = _seen(mesh, cameras, np.ones((len(cameras), size, size), np.bool_), colored=False)
    return Views(rgb, depth, cameras)


def render_patches(mesh: Mesh, cameras: Cameras, wanted_Vhw: np.ndarray, patch: int) -> np.ndarray:
    """(V, h * patch, w * patch, 3) uint8: as ``render_views`` sees a mesh, but black where a patch is not wanted.

    wanted_Vhw: bool, by view, row and column of patches. Raises: MissingExtraError without the extra ``3d``.
    """
    return _seen(mesh, cameras, wanted_Vhw.repeat(patch, axis=1).repeat(patch, axis=2))[0]


def _cameras(views: int | Cameras, size: int) -> Cameras:
    count = views if isinstance(views, int) else len(views)
    if count < 1 or size < 1:
        raise MediaError(f"Views need at least one camera and one pixel, got {count} cameras and size {size}.")
    return Cameras.sphere(views) if isinstance(views, int) else views


def _seen(mesh: Mesh, cameras: Cameras, wanted_Vhw: np.ndarray, colored: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Colours (V, h, w, 3) and depths (V, h, w) of the pixels that are wanted; black and -1 elsewhere."""
    caster, (_, height, width) = _Caster(mesh), wanted_Vhw.shape
    rgb, depth = np.zeros((*wanted_Vhw.shape, 3), np.uint8), np.full(wanted_Vhw.shape, -1, np.float32)
    for view in np.flatnonzero(wanted_Vhw.any((1, 2))):
        pixels = wanted_Vhw[view] & _frame(mesh, cameras, int(view), height, width)
        origin, directions = cameras.rays(int(view), height, width, only=pixels)
        index = np.flatnonzero(pixels)
        rgb[view].reshape(-1, 3)[index], depth[view].reshape(-1)[index] = caster.cast(origin, directions, colored)
    return rgb, depth


def _frame(mesh: Mesh, cameras: Cameras, view: int, height: int, width: int) -> np.ndarray:
    """(h, w) bool: a rectangle with all rays that hit the mesh; everything if some of it is behind the camera."""
    inside = np.zeros((height, width), np.bool_)
    positions, depths = cameras.project(view, mesh.vertices)
    if depths.min() <= 0:
        return ~inside
    pixels = positions * (width, height) - 0.5
    # One pixel more on each side, for the rounding of Embree.
    corners = np.clip([pixels.min(0) - 1, pixels.max(0) + 3], 0, (width, height))
    (left, top), (right, bottom) = corners.astype(np.int64)
    inside[top:bottom, left:right] = True
    return inside


class _Caster:
    """A mesh, ready for rays."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.scene = _scene(mesh)
        self.is_opaque = all((rgba[..., 3] == 255).all() for rgba in (mesh.colors, *mesh.textures))

    def cast(self, origin_3: np.ndarray, directions_R3: np.ndarray, colored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Colour (R, 3) and depth (R,) of the first solid surface on each ray; black and -1 where there is none."""
        rgb_R3, depth_R = np.zeros(directions_R3.shape, np.uint8), np.full(len(directions_R3), -1, np.float32)
        rays, directions = np.arange(len(directions_R3)), directions_R3
        starts = origin_3.astype(np.float32)[:, None].repeat(len(rays), axis=1).T
        for _ in range(_LAYERS):
            face = self.scene.run(starts, directions.astype(np.float32))
            met = np.flatnonzero(face >= 0)
            if not len(met):
                break
            rays, face, directions = rays.take(met), face.take(met), directions.T.take(met, axis=1).T
            weights, depth = _meet(self.mesh, face, origin_3, directions)
            if self.is_opaque and not colored:
                depth_R[rays] = depth
                break
            rgba = _albedo(self.mesh, face, weights)
            solid = rgba[3] >= 127.5
            if colored:
                rgb_R3[rays[solid]] = np.rint(rgba[:3, solid]).T
            depth_R[rays[solid]] = depth[solid]
            if solid.all():
                break
            rays, directions = rays[~solid], directions[~solid]
            starts = (origin_3 + (depth[~solid, None] + _STEP) * directions).astype(np.float32)
        return rgb_R3, depth_R


def _scene(mesh: Mesh) -> Any:
    """Embree's search tree over the triangles. Through trimesh it would cast half as many rays a second."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError as error:
        raise MissingExtraError("embreex", "3d", "Rendering views of a mesh") from error
    scene = EmbreeScene()
    TriangleMesh(scene, mesh.vertices, mesh.faces)
    return scene


def _meet(
    mesh: Mesh, face_R: np.ndarray, origin_3: np.ndarray, directions_R3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (3, R) of the corners where a ray meets its triangle, and the depth (R,) there.

    In fp64, because Embree's fp32 answer is not exact enough for voxel borders. The triple products of Moeller and
    Trumbore are rearranged so that what depends on the triangle alone is computed once for all of its rays.
    """
    is_hit = np.zeros(len(mesh.faces), np.bool_)
    is_hit[face_R] = True
    own_R = (np.cumsum(is_hit) - 1)[face_R]  # the ray's triangle among those that are hit
    a, b, c = mesh.vertices[mesh.faces[is_hit]].astype(np.float64).swapaxes(0, 1)
    x_R, y_R, z_R = np.ascontiguousarray(directions_R3.T)

    def along(of_face: np.ndarray) -> np.ndarray:
        """(R,): product of the ray's direction and a vector of its triangle. By columns: half the time of rows."""
        x, y, z = np.ascontiguousarray(of_face.T)
        return x[own_R] * x_R + y[own_R] * y_R + z[own_R] * z_R

    with np.errstate(divide="ignore", invalid="ignore"):
        volume_R = along(np.cross(c - a, b - a))
        u, v = along(np.cross(c - a, origin_3 - a)) / volume_R, along(np.cross(origin_3 - a, b - a)) / volume_R
        shares = [np.fmin(np.fmax(share, 0), 1) for share in (1 - u - v, u, v)]  # 0 where a number is none
    total_R = shares[0] + shares[1] + shares[2]
    shares = [share / total_R for share in shares]
    corners = [share * along(corner - origin_3) for share, corner in zip(shares, (a, b, c), strict=True)]
    return np.stack(shares), (corners[0] + corners[1] + corners[2]) / (x_R**2 + y_R**2 + z_R**2)


def _albedo(mesh: Mesh, face_R: np.ndarray, weights_3R: np.ndarray) -> np.ndarray:
    """(4, R) RGBA in 0..255: corner colours, interpolated, times the texture, as stored bytes.

    Channel by channel, here and below: NumPy is slow at rows of four numbers.
    """
    rgba = _mixed(weights_3R, mesh.colors[face_R])
    texture = mesh.texture[face_R]
    for index in np.unique(texture[texture >= 0]):
        rays = np.flatnonzero(texture == index)
        uv = _mixed(weights_3R[:, rays], mesh.uv[face_R[rays]])
        rgba[:, rays] *= _bilinear(mesh.textures[index], uv) / 255
    return rgba


def _mixed(weights_3R: np.ndarray, corners_R3K: np.ndarray) -> np.ndarray:
    """(K, R) fp64: values at the corners, weighted; three products take less time than an einsum."""
    corners_3KR = np.ascontiguousarray(corners_R3K.transpose(1, 2, 0))
    mixed = weights_3R[0] * corners_3KR[0]
    mixed += weights_3R[1] * corners_3KR[1]
    mixed += weights_3R[2] * corners_3KR[2]
    return mixed


def _bilinear(image: np.ndarray, uv_2R: np.ndarray) -> np.ndarray:
    """(4, R): an image (H, W, 4) at uv, (0, 0) its lower left corner; it repeats in both directions."""
    height, width = image.shape[:2]
    u, v = uv_2R % 1  # before the next step: beyond 2^53 a float has no pixel
    x, y = u * width - 0.5, (1 - v) * height - 0.5
    left, top = np.floor(x), np.floor(y)
    columns = (left.astype(np.int64) % width, 1 - (x - left)), ((left.astype(np.int64) + 1) % width, x - left)
    rows = (top.astype(np.int64) % height, 1 - (y - top)), ((top.astype(np.int64) + 1) % height, y - top)
    mixed, texels = np.zeros((4, len(x))), image.reshape(-1, 4)
    for (row, of_row), (column, of_column) in product(rows, columns):
        mixed += of_row * of_column * np.ascontiguousarray(texels.take(row * width + column, axis=0).T)
    return mixed
