"""Crops of procedural assets: the voxels in a cube of the grid, and the surface that their Gaussians must show.

A whole asset has about ten thousand voxels, too many for a training step on a small machine. Both functions depend on
their arguments alone. Shape letters: as in ``atoken/modalities/voxels.py``; ``M`` are the Gaussians of the crop's
voxels, voxel after voxel, ``S`` are points of the surface, ``R`` the Gaussians of one voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from atoken.data.synthetic.procedural import make_asset
from atoken.errors import MissingExtraError
from atoken.gaussian_decoder import OUTPUTS, REACH, RESOLUTION, to_gaussians
from atoken.media.views import Views
from atoken.mesh import Mesh
from atoken.modalities.views import render_views
from atoken.modalities.voxels import occupied, voxelize_cells
from atoken.tokens import SparseTokens

SIZES = 0.6, 1.0  # smallest and largest longest side of an asset, as a share of the box
WHOLE = RESOLUTION**3  # voxels: enough for any asset
FEW = 8  # views, which miss 2 to 4 % of the voxels that 16 views see
MARGIN = 2  # voxels along the faces of the cube whose neighbourhoods the network sees only in part


@dataclass(frozen=True)
class Crop:
    """The voxels of ``views`` of ``mesh`` whose coordinates are at most ``reach`` from ``middle`` (3,)."""

    mesh: Mesh
    views: Views
    tokens: SparseTokens  # one sample, (N, 3072)
    middle: np.ndarray
    reach: int

    @property
    def inner(self) -> int:
        """How far from the middle a voxel may be to have all its neighbours in the crop."""
        return self.reach - MARGIN if self.reach < RESOLUTION else RESOLUTION


@dataclass(frozen=True)
class SurfaceTargets:
    """Where each of M Gaussians belongs on the surface, (M, 3), and the colour there, (M, 3) in 0..1.

    within: (M,) bool, whether the Gaussian can move that far. counts: (M,) bool, whether the losses count it.
    """

    points: Tensor
    colors: Tensor
    within: Tensor
    counts: Tensor

    def to(self, device: torch.device | str) -> SurfaceTargets:
        """The same on another device."""
        return SurfaceTargets(*(getattr(self, field.name).to(device) for field in fields(self)))


def crop(seed: int, index: int, most: int, views: int = 16) -> Crop:
    """A crop of at most ``most`` voxels of asset ``index``, which is first made smaller and moved in its box.

    views: number of views that the asset is voxelised from. Where only the patches are needed, ``FEW`` are enough.
    """
    rng = np.random.default_rng([seed, index])
    mesh = _shrunk(rng, make_asset(seed, index).mesh)
    seen = render_views(mesh, views)
    cells_N3 = occupied(seen, RESOLUTION)
    middle = cells_N3[rng.integers(len(cells_N3))]
    distance_N = np.abs(cells_N3 - middle).max(1)
    reach = RESOLUTION if len(distance_N) <= most else int(np.partition(distance_N, most)[most]) - 1
    return Crop(mesh, seen, voxelize_cells(seen, cells_N3[distance_N <= reach], RESOLUTION).tokens, middle, reach)


def _shrunk(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Smaller, somewhere in the box; the grain of its textures stays as large as it was."""
    size = np.exp(rng.uniform(*np.log(SIZES)))
    shift = rng.uniform(-0.5, 0.5, 3) * (1 - size)
    vertices = (mesh.vertices * size + shift).astype(np.float32)
    return replace(mesh, vertices=vertices, uv=mesh.uv * np.float32(size))


def surface(of: Crop) -> SurfaceTargets:
    """For each Gaussian of a crop, the point of the surface that is nearest to where the Gaussian starts.

    The surface is what the depth maps of the views show; ``within`` is false where a Gaussian cannot reach it.
    Raises: MissingExtraError without the extra ``train``.
    """
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise MissingExtraError("scipy", "train", "Training a Gaussian decoder") from error
    half = 0.5 * REACH / RESOLUTION
    centres_N3 = (of.tokens.coords[:, 1:].numpy() + 0.5) / RESOLUTION - 0.5
    starts = to_gaussians(torch.zeros(len(centres_N3), OUTPUTS), of.tokens.coords[:, 1:]).means
    points_S3, colors_S3 = _seen(of.views, centres_N3.min(0) - 2 * half, centres_N3.max(0) + 2 * half)
    found_NR = KDTree(points_S3).query(starts.numpy())[1].reshape(len(centres_N3), -1)
    points_NR3 = points_S3[found_NR]
    within_NR = (np.abs(points_NR3 - centres_N3[:, None]) < half).all(-1)
    counts_N = np.abs(of.tokens.coords[:, 1:].numpy() - of.middle).max(1) <= of.inner
    return SurfaceTargets(
        points=torch.from_numpy(points_NR3.reshape(-1, 3)).float(),
        colors=torch.from_numpy(colors_S3[found_NR].reshape(-1, 3)).float() / 255,
        within=torch.from_numpy(within_NR.reshape(-1)),
        counts=torch.from_numpy(counts_N.repeat(within_NR.shape[1])),
    )


def _seen(views: Views, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every surface point (S, 3) of the depth maps in a box, and the pixels there, (S, 3) uint8."""
    points, colors = [], []
    for view in range(len(views)):
        seen = views.points(view)
        inside = ((seen > low) & (seen < high)).all(1)
        points.append(seen[inside])
        colors.append(views.rgb[view][views.mask[view]][inside])
    return np.concatenate(points), np.concatenate(colors)
