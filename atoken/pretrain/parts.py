"""Parts of procedural assets: voxel tokens, and what the Gaussians made of them must look like.

A whole asset has ten thousand voxels, too many for a step on a small machine. A part is what a cube of the grid holds
of them, at their full size. Every function is one of its arguments alone. Letters: as in
``atoken/modalities/voxels.py``; ``M`` the Gaussians of the part's voxels, voxel after voxel, ``S`` pixels a side
or points of the surface.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from atoken.cameras import RADIUS, Cameras
from atoken.data.synthetic.procedural import make_asset
from atoken.errors import MissingExtraError
from atoken.gaussian_decoder import OUTPUTS, REACH, RESOLUTION, to_gaussians
from atoken.mesh import Mesh
from atoken.modalities.views import Views, render_views
from atoken.modalities.voxels import voxelize
from atoken.tokens import SparseTokens

SIZES = 0.6, 1.0  # of an asset, as a share of the box
VIEW, WINDOW = 256, 128  # pixels a side: of a whole view, and of the piece of one that a step draws
FEW = 8  # views, in which 2 to 4 % of the voxels of 16 views are not seen
JITTER = 24  # pixels that a piece may lie away from the part's middle
MARGIN = 2  # voxels along the faces of a cut whose neighbours the network does not see whole


@dataclass(frozen=True)
class Part:
    """The voxels of ``views`` of ``mesh`` whose coordinates are at most ``reach`` from ``middle`` (3,)."""

    mesh: Mesh
    views: Views
    tokens: SparseTokens  # one sample, (N, 3072)
    middle: np.ndarray
    reach: int

    @property
    def inner(self) -> int:
        """How far from the middle voxels have all their neighbours in the part."""
        return self.reach - MARGIN if self.reach < RESOLUTION else RESOLUTION


@dataclass(frozen=True)
class Surface:
    """Where each of M Gaussians belongs on the surface, (M, 3), and the colour there, (M, 3) in 0..1.

    within: (M,) bool, whether it can get there. counts: (M,) bool, whether the part answers for it.
    """

    points: Tensor
    colors: Tensor
    within: Tensor
    counts: Tensor

    def to(self, device: torch.device | str) -> Surface:
        """The same on another device."""
        return Surface(*(tensor.to(device) for tensor in (self.points, self.colors, self.within, self.counts)))


@dataclass(frozen=True)
class Images:
    """V cameras, and what they see.

    rgb: (V, S, S, 3) in 0..1 on black. mask: (V, S, S) bool, where there is a surface. counts: (V, S, S) bool, the
    pixels that the part answers for.
    """

    cameras: Cameras
    rgb: Tensor
    mask: Tensor
    counts: Tensor

    def to(self, device: torch.device | str) -> Images:
        """The same on another device."""
        moved = (tensor.to(device) for tensor in (self.rgb, self.mask, self.counts))
        return Images(self.cameras.to(device), *moved)


def part(seed: int, index: int, most: int, views: int = 16) -> Part:
    """A part of at most ``most`` voxels of asset ``index``, which is made smaller and moved in its box.

    views: that the asset is seen in. For its patches alone, ``FEW`` are enough.
    """
    rng = np.random.default_rng([seed, index])
    mesh = _placed(rng, make_asset(seed, index).mesh)
    seen = render_views(mesh, views)
    tokens = voxelize(seen, max_tokens=RESOLUTION**3).tokens
    coords_N3 = tokens.coords[:, 1:].numpy()
    middle = coords_N3[rng.integers(len(coords_N3))]
    distance_N = np.abs(coords_N3 - middle).max(1)
    reach = RESOLUTION if len(distance_N) <= most else int(np.partition(distance_N, most)[most]) - 1
    kept = torch.from_numpy(np.flatnonzero(distance_N <= reach))
    return Part(mesh, seen, SparseTokens(tokens.feats[kept], tokens.coords[kept], (len(kept),)), middle, reach)


def _placed(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Smaller, somewhere in the box; the grain of its textures stays as large as it was."""
    size = np.exp(rng.uniform(*np.log(SIZES)))
    shift = rng.uniform(-0.5, 0.5, 3) * (1 - size)
    vertices = (mesh.vertices * size + shift).astype(np.float32)
    return replace(mesh, vertices=vertices, uv=mesh.uv * np.float32(size))


def surface(of: Part) -> Surface:
    """For each Gaussian of the part, the nearest point of the surface to where it starts.

    The surface is what the depth maps of the views hold; a Gaussian is left out where it cannot get there.
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
    return Surface(
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


def images(of: Part, seed: int, index: int, views: int) -> Images:
    """``views`` pieces of views from anywhere on the sphere of cameras, each around the part's middle.

    What the rest of the asset shows does not count, and neither do the part's voxels at the faces of the cut. What
    shows no surface counts where the ray passes the cube of the others.
    """
    rng = np.random.default_rng([seed, index, 1])
    directions = rng.standard_normal((views, 3))
    positions = RADIUS * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cameras = _pieces(rng, Cameras.looking_at_centre(torch.from_numpy(positions).float()), of)
    seen = render_views(of.mesh, cameras, WINDOW)
    counts = np.empty(seen.mask.shape, np.bool_)
    for view in range(views):
        cells = np.floor((seen.points(view) + 0.5) * RESOLUTION)
        counts[view] = _passing(*cameras.rays(view, WINDOW, WINDOW), of)
        counts[view, seen.mask[view]] = np.abs(cells - of.middle).max(1) <= of.inner
    rgb, mask, counted = (torch.from_numpy(array) for array in (seen.rgb, seen.mask, counts))
    return Images(cameras, rgb.float() / 255, mask, counted)


def _passing(origin: np.ndarray, directions: np.ndarray, of: Part) -> np.ndarray:
    """(H, W) bool: which rays (H, W, 3) from one place (3,) pass the cube of the part's inner voxels."""
    corners = (of.middle + np.array([[-of.inner], [of.inner + 1]])) / RESOLUTION - 0.5
    with np.errstate(divide="ignore"):
        first, last = np.sort((corners[:, None, None] - origin) / directions, axis=0)
    return first.max(-1) <= last.min(-1)


def _pieces(rng: np.random.Generator, cameras: Cameras, of: Part) -> Cameras:
    """The same cameras, each looking at ``WINDOW`` of its ``VIEW`` pixels, about around the part's middle."""
    centre = (of.tokens.coords[:, 1:].double().mean(0).numpy() + 0.5) / RESOLUTION - 0.5
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2] *= VIEW / WINDOW
    for view in range(len(cameras)):
        place, _ = cameras.project(view, centre[None])
        corner = np.rint(place[0] * VIEW - WINDOW / 2 + rng.uniform(-JITTER, JITTER, 2)) / WINDOW
        intrinsics[view, :2, 2] -= torch.from_numpy(corner).float()
    return replace(cameras, intrinsics=intrinsics)
