"""Gaussians to images: a differentiable rasteriser in plain PyTorch for any device, and gsplat on CUDA.

Method: each Gaussian is projected to an ellipse on the image (Zwicker et al. 2001, EWA splatting; Kerbl et al. 2023,
3D Gaussian splatting) and widened by a filter of 0.1 square pixels, with its opacity lowered by as much as its area
grows (Yu et al. 2024, Mip-Splatting). The ellipses are blended front to back. The paper's Gaussian decoder was trained
with a renderer of this kind (section 3.1, Eq. 3; official settings: near 0.8, far 1.6).

The image is cut into tiles of 8 x 8 pixels. Every (tile, Gaussian) pair is an entry; entries are sorted by tile and
depth, 32 entries of one tile make a block, and blocks of many tiles are blended by one set of dense operations. Tiles
that are opaque are skipped. Time is linear in entries. Gaussians are processed in slices of about two million entries,
so that memory without gradients depends on Gaussians and pixels, not on entries; with gradients, blocks are recomputed
in the backward pass, and memory grows with entries (``python -m benchmarks.rasterize`` measures time and memory).

Shape letters: see ``atoken/tokens.py``; ``E`` entries, ``T`` tiles or blocks, ``K`` entries of a block, ``P`` the 64
pixels of a tile. Pixel centres lie at half integers.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from math import inf, log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils.checkpoint import checkpoint

from atoken.cameras import Cameras

FILTER = 0.1  # square pixels, added to both variances of an ellipse
ALPHA_CUT, ALPHA_MAX = 1 / 255, 0.999  # smaller alphas are not drawn; larger ones are clamped: finite gradients
OPAQUE = 1e-4  # nothing is drawn behind this transmittance
NEAR = 0.2  # in units of the asset's longest side; closer, the projection is not nearly affine

_TILE, _BLOCK = 8, 32
_CHUNK = 512  # blocks blended at once: a million values, which is worth starting threads for
_SLICE = 2 << 20  # entries held at once
_SLACK = 1e-3  # pixels, more than the rounding error of a reach
_SPREAD = 1.3  # means beyond this times the half size of the image are linearised at that border
_NOTHING = -80.0  # log alpha of what is not drawn: 1 - exp of it is 1, and the exp of -inf takes five times as long


class Rendering(NamedTuple):
    """Images of V views: ``rgb`` (V, H, W, 3) on the background, not clamped at 1; ``alpha`` (V, H, W)."""

    rgb: Tensor
    alpha: Tensor


Splats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # means, scales, quats, opacities, colors
Backend = Callable[[Splats, Cameras, tuple[int, int], float, float], Rendering]


def rasterize(
    splats: Splats,
    cameras: Cameras,
    size: tuple[int, int],
    *,
    background: Tensor | Sequence[float] = (0.0, 0.0, 0.0),
    near: float = NEAR,
    far: float = inf,
) -> Rendering:
    """Draw Gaussians from V cameras; gradients flow to all five tensors and to the background.

    splats: means (M, 3), scales (M, 3) above 0, quats (M, 4) w first of any length, opacities (M,) in 0..1, colors
    (M, 3), whose values below 0 count as 0. size: (H, W). background: a colour, or what broadcasts to (V, H, W, 3).
    near, far: Gaussians with centres outside these depths are not drawn; in units of the world.
    Computed in fp32, or in fp64 if the means are. The order of the Gaussians matters only between those of equal
    depth. Source: the top of this file.
    """
    means = splats[0]
    dtype = torch.float64 if means.dtype == torch.float64 else torch.float32
    means, scales, quats, opacities, colors = (tensor.to(dtype) for tensor in splats)
    splats = means, scales, F.normalize(quats, dim=-1), opacities, colors.clamp_min(0)
    with torch.autocast(means.device.type, enabled=False):
        draw = backend(means.device.type, dtype)
        rgb, alpha = draw(splats, cameras.to(means.device, dtype), size, near, far)
        rest = (1 - alpha)[..., None] * torch.as_tensor(background, dtype=dtype, device=means.device)
        return Rendering(rgb + rest, alpha)


@functools.cache
def backend(device: str, dtype: torch.dtype) -> Backend:
    """The renderer for a device type: gsplat on CUDA if it can run, else the plain one, which is the reference."""
    return gsplat_package if device == "cuda" and dtype == torch.float32 and _gsplat_runs() else tiled


def _gsplat_runs() -> bool:
    """Whether gsplat can draw: its source package installs without the CUDA toolkit that it needs."""
    if not importlib.util.find_spec("gsplat"):
        return False
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME is not None or importlib.util.find_spec("gsplat.csrc") is not None


def gsplat_package(splats: Splats, cameras: Cameras, size: tuple[int, int], near: float, far: float) -> Rendering:
    """The kernels of gsplat, which stop a pixel just before transmittance 1e-4; ``tiled`` stops at it."""
    from gsplat import rasterization

    means, scales, quats, opacities, colors = splats
    rgb, alpha, _ = rasterization(
        means, quats, scales, opacities, colors, cameras.world_to_camera, _pixel_intrinsics(cameras, size),
        width=size[1], height=size[0], near_plane=near, far_plane=min(far, 1e10), eps2d=FILTER,
        rasterize_mode="antialiased",
    )  # fmt: skip
    return Rendering(rgb, alpha[..., 0])


def tiled(splats: Splats, cameras: Cameras, size: tuple[int, int], near: float, far: float) -> Rendering:
    """The plain renderer: any device, fp32 or fp64."""
    axes = _rotations(splats[2]) * splats[1][:, None, :]
    views = []
    for pose, intrinsics in zip(cameras.world_to_camera, _pixel_intrinsics(cameras, size), strict=True):
        order = _in_front(splats[0].detach(), pose, near, far)
        means, view_axes, opacities, colors = (x[order] for x in (splats[0], axes, splats[3], splats[4]))
        ellipses, variances = _project(means, view_axes, opacities, pose, intrinsics, size)
        views.append(_draw(ellipses, variances, colors, size))
    if not views:
        return Rendering(splats[0].new_zeros(0, *size, 3), splats[0].new_zeros(0, *size))
    return Rendering(*(torch.stack(column) for column in zip(*views, strict=True)))


def _pixel_intrinsics(cameras: Cameras, size: tuple[int, int]) -> Tensor:
    """(V, 3, 3) in pixels."""
    height, width = size
    return cameras.intrinsics * cameras.intrinsics.new_tensor([[width], [height], [1]])


def _rotations(quats: Tensor) -> Tensor:
    """Unit quaternions (M, 4), w first, to rotation matrices (M, 3, 3)."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def _in_front(means: Tensor, pose: Tensor, near: float, far: float) -> Tensor:
    """Indices of the Gaussians between the planes, nearest first."""
    depth = means @ pose[2, :3] + pose[2, 3]
    order = depth.argsort(stable=True)
    depth = depth[order]
    return order[(depth >= near) & (depth <= far)]


def _project(
    means: Tensor, axes: Tensor, opacities: Tensor, pose: Tensor, intrinsics: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Ellipses (M, 6) and the variances of x and y (M, 2), in pixels.

    An ellipse is x and y of its centre, and a, b, c, d of its log alpha a dx^2 + b dx dy + c dy^2 + d.
    """
    focal, centre = intrinsics.diagonal()[:2], intrinsics[:2, 2]
    camera = means @ pose[:3, :3].T + pose[:3, 3]
    depth, slope = camera[:, 2:], camera[:, :2] / camera[:, 2:]
    half = slope.new_tensor([size[1], size[0]]) / (2 * focal)
    middle = half - centre / focal
    tangent = torch.minimum(torch.maximum(slope, middle - _SPREAD * half), middle + _SPREAD * half)
    jacobian = torch.cat([torch.diag_embed(focal / depth), (-focal * tangent / depth)[..., None]], dim=-1)
    u, v = (jacobian @ pose[:3, :3] @ axes).unbind(1)  # the covariance is [[u.u, u.v], [u.v, v.v]]
    xx, xy, yy = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    sharp = torch.linalg.cross(u, v).square().sum(-1)  # the determinant, computed without cancellation
    wide = sharp + FILTER * (xx + yy) + FILTER**2  # and with the filter
    tiny = torch.finfo(means.dtype).tiny
    peak = opacities.clamp_min(tiny).log() + 0.5 * (sharp.clamp_min(tiny) / wide).log()
    form = [-0.5 * (yy + FILTER) / wide, xy / wide, -0.5 * (xx + FILTER) / wide, peak]
    ellipses = torch.cat([slope * focal + centre, torch.stack(form, dim=-1)], dim=-1)
    return ellipses, torch.stack([xx, yy], dim=-1) + FILTER


def _boxes(ellipses: Tensor, variances: Tensor, grid: tuple[int, int]) -> Tensor:
    """(M, 4) integer: first column and row of the tiles that an ellipse reaches, and their numbers, or 0."""
    centre, margin = ellipses[:, :2], ellipses[:, 5:] - log(ALPHA_CUT)
    reach = (2 * margin.clamp_min(0) * variances).sqrt() + _SLACK
    limit = centre.new_tensor([grid[1], grid[0]]) * _TILE - 1
    first = (centre - reach - 0.5).ceil().clamp_min(0)  # pixels whose centres are inside
    last = torch.minimum((centre + reach - 0.5).floor(), limit)
    seen = ((last >= first) & (margin > 0)).all(1, keepdim=True)
    first, last = (pixel.div(_TILE, rounding_mode="floor") for pixel in (first, last))
    return torch.cat([first, last - first + 1], dim=1).where(seen, 0).long()


def _draw(ellipses: Tensor, variances: Tensor, colors: Tensor, size: tuple[int, int]) -> Rendering:
    """Blend ellipses, nearest first, into one image (H, W, 3) and its alpha (H, W)."""
    grid = (-(-size[0] // _TILE), -(-size[1] // _TILE))
    boxes = _boxes(ellipses.detach(), variances.detach(), grid)
    seen = boxes[:, 2].nonzero()[:, 0]
    splats, boxes = torch.cat([ellipses, colors], dim=1).index_select(0, seen), boxes[seen]
    canvas = _Canvas.empty(splats, grid)
    entries = boxes[:, 2] * boxes[:, 3]
    sizes = torch.bincount((entries.cumsum(0) - 1).div(_SLICE, rounding_mode="floor")).tolist()
    for part, part_boxes in zip(splats.split(sizes), boxes.split(sizes), strict=True):
        _blend(canvas, part, *_entries(part_boxes, grid[1]))
    return canvas.image(grid, size)


class _Canvas(NamedTuple):
    """The tiles of an image, row by row, while they are drawn."""

    rgb: Tensor  # (T, P, 3)
    left: Tensor  # (T, P) transmittance
    origins: Tensor  # (T, 2) pixels: x, y of the upper left corner

    @staticmethod
    def empty(like: Tensor, grid: tuple[int, int]) -> _Canvas:
        count = grid[0] * grid[1]
        tiles = torch.arange(count, device=like.device)
        origins = torch.stack([tiles % grid[1], tiles.div(grid[1], rounding_mode="floor")], dim=1) * _TILE
        return _Canvas(like.new_zeros(count, _TILE**2, 3), like.new_ones(count, _TILE**2), origins.to(like.dtype))

    def image(self, grid: tuple[int, int], size: tuple[int, int]) -> Rendering:
        values = torch.cat([self.rgb, 1 - self.left[..., None]], dim=-1).unflatten(1, (_TILE, _TILE)).unflatten(0, grid)
        values = values.transpose(1, 2).flatten(2, 3).flatten(0, 1)[: size[0], : size[1]]
        return Rendering(values[..., :3], values[..., 3])


def _entries(boxes: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Every tile of every box: the tile and the index of the box, (E,) each, in order of boxes."""
    count = boxes[:, 2] * boxes[:, 3]
    box = torch.repeat_interleave(count)
    position = torch.arange(len(box), device=box.device) - (count.cumsum(0) - count)[box]
    x, y, width, _ = boxes.unbind(1)
    row = position.div(width[box], rounding_mode="floor")
    return (y[box] + row) * columns + x[box] + position - row * width[box], box


def _blend(canvas: _Canvas, splats: Tensor, tile: Tensor, splat: Tensor) -> None:
    """Draw the entries (tile, splat), sorted by depth in each tile, behind what is on the canvas."""
    alive = (canvas.left.detach() > OPAQUE).any(1)[tile]
    tile, order = tile[alive].sort(stable=True)
    tiles, slots, sizes = _blocks(tile, len(canvas.left))
    nothing = splats.new_tensor([[0, 0, 0, 0, 0, -inf, 0, 0, 0]])  # padding of blocks
    index = torch.full((sum(sizes) * _BLOCK,), len(splats), device=tile.device)
    index[slots] = splat[alive][order]
    blocks = torch.cat([splats, nothing]).index_select(0, index).unflatten(0, (-1, _BLOCK))
    for layer in blocks.split(sizes):
        live = (canvas.left.detach()[tiles[: len(layer)]] > OPAQUE).any(1).nonzero()[:, 0]
        for chosen in live.split(_CHUNK):
            _blend_blocks(canvas, layer.index_select(0, chosen), tiles[chosen])


def _blocks(tile: Tensor, count: int) -> tuple[Tensor, Tensor, list[int]]:
    """Cut sorted entries (E,) of ``count`` tiles into layers of blocks: the first block of each tile, the second, ...

    Returns the tiles, sorted by falling number of entries, so that a layer belongs to the first of them; the position
    of each entry in the blocks (E,); and the number of blocks in each layer.
    """
    entries = torch.bincount(tile, minlength=count)
    tiles = entries.argsort(descending=True)
    rank = torch.empty_like(tiles).index_copy_(0, tiles, torch.arange(count, device=tile.device))
    position = torch.arange(len(tile), device=tile.device) - (entries.cumsum(0) - entries)[tile]
    layer = position.div(_BLOCK, rounding_mode="floor")
    blocks = torch.bincount(-(-entries // _BLOCK))[1:].flip(0).cumsum(0).flip(0)
    first = blocks.cumsum(0) - blocks
    return tiles, (first[layer] + rank[tile] - layer) * _BLOCK + position, blocks.tolist()


def _blend_blocks(canvas: _Canvas, splats: Tensor, tiles: Tensor) -> None:
    """Draw blocks (T, K, 9) on tiles (T,); with gradients, they are recomputed in the backward pass."""
    inputs = splats, canvas.origins[tiles], canvas.left[tiles]
    if torch.is_grad_enabled() and splats.requires_grad:
        rgb, left = checkpoint(_composite, *inputs, use_reentrant=False, preserve_rng_state=False)
    else:
        rgb, left = _composite(*inputs)
    canvas.rgb.index_add_(0, tiles, rgb)
    canvas.left.index_copy_(0, tiles, left)


def _composite(splats: Tensor, origins: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """The colours (T, P, 3) that blocks of splats (T, K, 9) add, and the transmittance (T, P) behind them."""
    x, y, a, b, c, peak = splats[..., :6].mT.unsqueeze(-2).unbind(1)  # (T, 1, K)
    steps = torch.arange(_TILE, device=splats.device)[:, None] + 0.5
    dx, dy = origins[:, :1, None] + steps - x, origins[:, 1:, None] + steps - y  # (T, 8, K)
    power = (a * dx)[:, None] + (b * dy)[:, :, None]  # (T, 8, 8, K): rows, columns
    power = power * dx[:, None] + (c * dy * dy + peak)[:, :, None]
    power = F.threshold(power.clamp_max(log(ALPHA_MAX)), log(ALPHA_CUT), _NOTHING).flatten(1, 2)
    passing = torch.cat([left[..., None], 1 - power.exp()], dim=-1).cumprod(-1).clamp_min(OPAQUE)
    # A copy: a view would keep all of ``passing`` alive until the backward pass.
    return (passing[..., :-1] - passing[..., 1:]) @ splats[..., 6:], passing[..., -1].clone()
