"""Views of an asset <-> voxel tokens (paper section 3.2; scripts/pack_multiview_feat.py of the published code).

A token is a cell of a grid over [-0.5, 0.5]^3 that some view saw a surface in; coordinates are t = 0 and the cell's
position along the world's x, y and z. Its feature is the 16x16 patch of pixels around the cell, in the view whose
camera is nearest by depth; flattened as an image's patch is (row, column, channel), values in [-1, 1], zero-padded to
3072. Letters: ``N`` tokens, ``V`` views.
"""

from __future__ import annotations

import warnings
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange

from atoken.errors import AtokenWarning, MediaError
from atoken.media.views import Views
from atoken.mesh import Mesh
from atoken.modalities.pixels import to_uint8, to_values
from atoken.modalities.views import SIZE, render_depths, render_patches
from atoken.patches import PATCH
from atoken.tokens import SparseTokens

MAX_TOKENS = 32_768  # of an asset, as TRELLIS has it
RESOLUTION = 64  # cells a side of the grid
_DEPTHS_A_CELL = 4  # pixels of a small depth map for a cell and a side
VALUES = PATCH[1] * PATCH[2] * 3  # of a voxel's patch; the rest of a token, the further frames of a video, is zero
_BORDER = 2.0**-22  # half the width of the border between cells: the rounding of an fp32 depth
_HIDDEN = 1e6  # added to the depth of a cell in views that do not see it


class Voxels(NamedTuple):
    """One sample of tokens (N, 3072), ordered by x, y, z, and the cells a side of the grid that they lie in."""

    tokens: SparseTokens
    resolution: int


def voxelize(
    views: Views,
    resolution: int = RESOLUTION,
    *,
    occlusion: bool = False,
    max_tokens: int = MAX_TOKENS,
    over: Literal["refuse", "coarsen"] = "refuse",
) -> Voxels:
    """Pack views into tokens on a grid of ``resolution`` cells a side.

    With ``occlusion``, a cell takes its patch from a view whose depth map shows it, wherever there is one; without, as
    in the published code, from any. An asset of more than ``max_tokens`` cells is refused, or its resolution is halved
    until it fits, with an AtokenWarning. Raises: MediaError (over the limit, no surface in the box, sizes).
    """
    _check(views, resolution, over)
    cells_N3, resolution = _fitting(views, resolution, max_tokens, over == "coarsen")
    return voxelize_cells(views, cells_N3, resolution, occlusion=occlusion)


def voxelize_cells(views: Views, cells_N3: np.ndarray, resolution: int, *, occlusion: bool = False) -> Voxels:
    """As ``voxelize``, of some of the cells that are ``occupied``."""
    nearest = _nearest(views, _centres(cells_N3, resolution), 3**0.5 / resolution if occlusion else None)
    return voxels(cells_N3, resolution, _patches(views, *nearest))


def voxelize_mesh(mesh: Mesh, max_tokens: int) -> Voxels:
    """As ``voxelize(render_views(mesh), max_tokens=max_tokens, over="coarsen")``, from few rays.

    Cells are looked for in depth maps that are as small as a grid of that many cells allows, which miss some that are
    seen at a grazing angle; and only the patches that tokens take are coloured. Raises: as ``voxelize``,
    MissingExtraError without the extra ``3d``.
    """
    side = _DEPTHS_A_CELL * min(RESOLUTION, ceil((max_tokens / 2) ** 0.5))  # a closed surface: 2 cells a column or more
    seen = render_depths(mesh, size=side)
    cells_N3, resolution = _fitting(seen, RESOLUTION, max_tokens, coarsen=True)
    view_N, position_N2 = _nearest(seen, _centres(cells_N3, resolution), None)
    wanted_Vhw = np.zeros((len(seen), SIZE // PATCH[1], SIZE // PATCH[2]), np.bool_)
    shape = np.array(wanted_Vhw.shape[:0:-1])
    row_N, column_N, inside_N = _indices(position_N2 * (shape - 1), shape)
    wanted_Vhw[view_N[inside_N], row_N[inside_N], column_N[inside_N]] = True
    rgb = render_patches(mesh, seen.cameras, wanted_Vhw, PATCH[1])
    return voxels(cells_N3, resolution, _patches(Views(rgb, seen.depth, seen.cameras), view_N, position_N2))


def unvoxelize(tokens: SparseTokens) -> np.ndarray:
    """The patches of voxel tokens, of any width from 768 on: (N, 16, 16, 3) uint8."""
    return to_uint8(tokens.feats[:, :VALUES]).reshape(-1, *PATCH[1:], 3)


def occupied(views: Views, resolution: int) -> np.ndarray:
    """Cells (N, 3) int64 that hold a point of some depth map, ordered by x, y, z; linear in the number of pixels.

    Cells are closed: a point on a border is in the cells on both sides of it.
    """
    grid = np.zeros((resolution,) * 3, np.bool_)
    slack = _BORDER * resolution
    for view in range(len(views)):
        points = (views.points(view) + 0.5) * resolution
        first, last = np.ceil(points - slack).astype(np.int64) - 1, np.floor(points + slack).astype(np.int64)
        grid[tuple(_cells(first, last, resolution).T)] = True
    return np.argwhere(grid)


def _centres(cells_N3: np.ndarray, resolution: int) -> np.ndarray:
    return (cells_N3 + 0.5) / resolution - 0.5


def voxels(cells_N3: np.ndarray, resolution: int, patches_NP: np.ndarray) -> Voxels:
    """Cells (N, 3) and their patches (N, 768) uint8 as tokens."""
    # NumPy's zeros take no memory before they are written or read, and three quarters are not written.
    feats = torch.from_numpy(np.zeros((len(cells_N3), PATCH[0] * VALUES), np.float32))
    feats[:, :VALUES] = to_values(patches_NP)
    coords = torch.from_numpy(np.pad(cells_N3.astype(np.int32), ((0, 0), (1, 0))))
    return Voxels(SparseTokens(feats, coords, (len(coords),)), resolution)


def _fitting(views: Views, asked: int, max_tokens: int, coarsen: bool) -> tuple[np.ndarray, int]:
    """Occupied cells (N, 3), at least one and at most ``max_tokens``, and the resolution of their grid."""
    resolution, cells_N3 = asked, occupied(views, asked)
    while coarsen and len(cells_N3) > max_tokens and resolution > 1:
        # Two cells and their border make one of half the resolution, unless an odd one is left over.
        cells_N3 = occupied(views, resolution // 2) if resolution % 2 else _halved(cells_N3, resolution // 2)
        resolution //= 2
    if not len(cells_N3):
        raise MediaError("The views show no surface in [-0.5, 0.5]^3; centre the asset and scale it to that box.")
    if len(cells_N3) > max_tokens:
        raise MediaError(
            f"The asset fills {len(cells_N3):,} voxels at resolution {resolution}, over the limit of {max_tokens:,}; "
            "pass coarsen=True (--coarsen) to pack it at a lower resolution."
        )
    if resolution != asked:
        message = f"The asset is packed at resolution {resolution}, not {asked}, to keep within {max_tokens:,} tokens."
        warnings.warn(message, AtokenWarning, stacklevel=3)
    return cells_N3, resolution


def _halved(cells_N3: np.ndarray, resolution: int) -> np.ndarray:
    """The cells of a grid of ``resolution`` that hold cells of one twice as fine."""
    grid = np.zeros((resolution,) * 3, np.bool_)
    grid[tuple((cells_N3 // 2).T)] = True
    return np.argwhere(grid)


def _cells(first: np.ndarray, last: np.ndarray, resolution: int) -> np.ndarray:
    """Every cell of the grid from ``first`` (points, 3) to ``last``: the same cell or, on an axis, the next one."""
    for axis in range(3):
        border = last[:, axis] > first[:, axis]
        other = first[border]
        other[:, axis] = last[border, axis]
        first, last = np.concatenate([first, other]), np.concatenate([last, last[border]])
    return first[((first >= 0) & (first < resolution)).all(1)]


def _nearest(views: Views, centres_N3: np.ndarray, margin: float | None) -> tuple[np.ndarray, np.ndarray]:
    """For each point the view of the smallest positive depth, (N,), and its relative position there, (N, 2).

    With a ``margin``, views whose depth map shows something nearer by more than that, or nothing, come last.
    """
    best_N, view_N = np.full(len(centres_N3), np.inf), np.zeros(len(centres_N3), np.int64)
    position_N2 = np.full((len(centres_N3), 2), np.nan)
    for view in range(len(views)):
        position, depth = views.cameras.project(view, centres_N3)
        depth = np.where(depth > 0, depth, np.inf)
        if margin is not None:
            depth = np.where(_shown(views, view, position, depth - margin), depth, depth + _HIDDEN)
        nearer = depth < best_N
        best_N[nearer], view_N[nearer], position_N2[nearer] = depth[nearer], view, position[nearer]
    return view_N, position_N2


def _shown(views: Views, view: int, position_N2: np.ndarray, depth_N: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the depth map, at a position in the image, shows a surface no nearer than ``depth_N``."""
    depth_map = views.depth[view]
    size = np.array(depth_map.shape[::-1])
    row_N, column_N, inside_N = _indices(position_N2 * size - views.pixel_offset, size)
    surface_N = depth_map[row_N, column_N]
    return inside_N & (surface_N >= depth_N)


def _patches(views: Views, view_N: np.ndarray, position_N2: np.ndarray) -> np.ndarray:
    """(N, 768) uint8: the patch at a position of a view; black outside the image.

    The first patch's centre is at 0 and the last one's at 1 (``align_corners=True`` of the published code), so that a
    position u is in patch round((grid - 1) u).
    """
    patches = rearrange(views.rgb, "v (h ph) (w pw) c -> v h w (ph pw c)", ph=PATCH[1], pw=PATCH[2])
    size = np.array(patches.shape[2:0:-1])
    row_N, column_N, inside_N = _indices(position_N2 * (size - 1), size)
    found_NP = patches[view_N, row_N, column_N]
    found_NP[~inside_N] = 0
    return found_NP


def _indices(positions_N2: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns (N,) nearest to positions (x, y) in a grid of ``size`` (width, height), and which are in it."""
    index_N2 = np.rint(positions_N2)
    inside_N = ((index_N2 >= 0) & (index_N2 < size)).all(1)
    column_N, row_N = np.where(inside_N[:, None], index_N2, 0).astype(np.int64).T
    return row_N, column_N, inside_N


def _check(views: Views, resolution: int, over: str) -> None:
    height, width = views.rgb.shape[1:3]
    if height % PATCH[1] or width % PATCH[2]:
        raise MediaError(f"Views are cut into patches of {PATCH[1]} pixels a side; {width}x{height} is not a multiple.")
    if not 1 <= resolution <= 512:
        raise MediaError(f"resolution must be from 1 to 512 voxels a side, got {resolution}.")
    if over not in ("refuse", "coarsen"):
        raise MediaError(f"over must be 'refuse' or 'coarsen', got {over!r}.")
