"""Voxels to 3D Gaussians: a transformer over windows of voxels, and how to read its outputs (paper section 3.1, eq. 3).

Sizes come from the configuration; the constants here are those of the published decoder, which is that of TRELLIS
(arXiv 2412.01506). Shape letters: ``atoken/tokens.py``; ``X`` numbers of one voxel, ``R`` its Gaussians.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from math import atanh, expm1, log

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.attention import Bounds, varlen_attention
from atoken.cameras import radical_inverse
from atoken.gaussians import SH_0, Gaussians
from atoken.layers import MLP, NORM_EPS, Linear, RMSNorm
from atoken.tokens import SparseTokens

RESOLUTION = 64  # voxels along one side of the box [-0.5, 0.5]^3
GAUSSIANS = 32  # of one voxel
LAYOUT = {
    "offsets": 3,
    "colors": 3,
    "scales": 3,
    "quats": 4,
    "opacities": 1,
}  # all offsets of a voxel, then all its colours, ...
OUTPUTS = GAUSSIANS * sum(LAYOUT.values())  # of the network for a voxel
WINDOW, SHIFT = 8, 4  # voxels along one side of a window; shift of the windows in every second block
SOFTCAP = 30.0  # of the attention logits
REACH = 1.5  # side, in voxels, of the cube around a voxel's centre in which its Gaussians stay
SCALE_START, SCALE_LEAST = 4e-3, 9e-4  # in units of the box: for an output of zero; added in quadrature
OPACITY_START = 0.1  # for an output of zero
ROTATION_RATE = 0.1


@dataclass(frozen=True)
class Windows:
    """Voxels grouped by window: ``order`` (N,) sorts them by window, ``back`` (N,) is the inverse."""

    order: Tensor
    back: Tensor
    bounds: Bounds  # of the windows that contain a voxel, in sorted order

    @staticmethod
    def of(voxels: SparseTokens, shift: int) -> Windows:
        """Windows of each sample, shifted by ``shift`` voxels along each axis; one integer sort."""
        side = (RESOLUTION + SHIFT) // WINDOW + 1
        window_N = voxels.sample_N
        for axis in (1, 2, 3):
            window_N = window_N * side + (voxels.coords[:, axis].long() + shift) // WINDOW
        sorted_N, order = window_N.sort(stable=True)
        counts = torch.unique_consecutive(sorted_N, return_counts=True)[1]
        back = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
        device = voxels.feats.device  # on the meta device, where costs are counted, coordinates stay on the host
        return Windows(order.to(device), back.to(device), (0, *counts.cumsum(0).tolist()))


class WindowAttention(nn.Module):
    """Soft-capped self-attention inside each window."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)

    def forward(self, x_ND: Tensor, windows: Windows) -> Tensor:
        """(N, D) -> (N, D)."""
        qkv_ND = self.qkv(x_ND.index_select(0, windows.order))
        q_NHK, k_NHK, v_NHK = qkv_ND.unflatten(-1, (3, self.heads, -1)).unbind(1)
        x_NHK = varlen_attention(q_NHK, k_NHK, v_NHK, windows.bounds, softcap=SOFTCAP)
        return self.out(x_NHK.flatten(1).index_select(0, windows.back))


class WindowBlock(nn.Module):
    """Pre-norm transformer block over windows: RMSNorm, no biases."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, eps=NORM_EPS)
        self.attention = WindowAttention(width, heads)
        self.norm2 = RMSNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, mlp, bias=False)

    def forward(self, x_ND: Tensor, windows: Windows) -> Tensor:
        """(N, D) -> (N, D)."""
        x_ND = x_ND + self.attention(self.norm1(x_ND), windows)
        return x_ND + self.mlp(self.norm2(x_ND))


class OutputLayer(Linear):
    """LayerNorm without gain and bias, then a linear layer whose weights start at zero."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, outputs)."""
        return super().forward(F.layer_norm(x_ND, x_ND.shape[1:], eps=1e-5))


class Neighborhood(nn.Module):
    """A convolution of occupancy: which cells of the cube of ``side`` around each voxel hold a voxel, to a vector.

    The published decoder has none. With it, a small decoder learns within minutes where in its voxel a surface lies;
    attention over sinusoidal positions takes far longer (docs/log.md). Raises ValueError for an even side.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        if side % 2 == 0:
            raise ValueError(f"The side of a neighborhood must be odd, got {side}.")
        self.side = side
        self.project = Linear(side**3, width, bias=False)

    def forward(self, voxels: SparseTokens) -> Tensor:
        """Voxels of 64^3 to (N, D)."""
        return self.project(occupancy(voxels, self.side).to(self.project.weight))


class GaussianDecoder(nn.Module):
    """Patches of voxels to Gaussians.

    values: numbers in the patch of a voxel (768). width, layers, heads, mlp: of the transformer. neighborhood: side of
    the cube of cells of a ``Neighborhood``; 0 is none, as published.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]  # set by transformers when checkpointing is enabled

    def __init__(self, values: int, *, width: int, layers: int, heads: int, mlp: int, neighborhood: int = 0) -> None:
        super().__init__()
        self.inputs = Linear(values, width, bias=False)
        self.neighborhood = Neighborhood(neighborhood, width) if neighborhood else None
        self.blocks = nn.ModuleList(WindowBlock(width, heads, mlp) for _ in range(layers))
        self.out = OutputLayer(width, OUTPUTS)

    def forward(self, voxels: SparseTokens) -> list[Gaussians]:
        """Patches (N, 768) in [-1, 1] on voxels (x, y, z) to the Gaussians of each sample, in fp32, in order of voxels.

        The column t is ignored. Raises ValueError for a voxel outside the grid of 64^3.
        """
        samples = voxels.with_feats(self.outputs(voxels)).unpack()
        return [to_gaussians(sample.feats, sample.coords[:, 1:]) for sample in samples]

    def outputs(self, voxels: SparseTokens) -> Tensor:
        """The network's outputs for each voxel, (N, 448) fp32, as in ``LAYOUT``. Raises: as ``forward``."""
        coords_N3 = voxels.coords[:, 1:]
        if bool(((coords_N3 < 0) | (coords_N3 >= RESOLUTION)).any()):
            raise ValueError(f"Voxel coordinates must be in [0, {RESOLUTION}).")
        windows = Windows.of(voxels, 0), Windows.of(voxels, SHIFT)
        x_ND = self.inputs(voxels.feats.to(self.inputs.weight.dtype))
        x_ND = x_ND + positions(coords_N3, x_ND.shape[1]).to(x_ND)
        if self.neighborhood is not None:
            x_ND = x_ND + self.neighborhood(voxels)
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and self.training:
                x_ND = self._gradient_checkpointing_func(block.__call__, x_ND, windows[layer % 2])
            else:
                x_ND = block(x_ND, windows[layer % 2])
        return self.out(x_ND).float()


def occupancy(voxels: SparseTokens, side: int) -> Tensor:
    """Whether each cell of the cube of ``side`` around each voxel holds a voxel of the same sample: (N, side^3) bool.

    Cells are in the order x, y, z; those outside the grid of 64^3 are empty.
    """
    reach = side // 2
    full = RESOLUTION + 2 * reach
    position_N4 = torch.cat([voxels.sample_N[:, None], voxels.coords[:, 1:].long() + reach], dim=1)
    strides = torch.tensor([full**3, full**2, full, 1], device=position_N4.device)
    index_N = (position_N4 * strides).sum(1)
    grid = torch.zeros(len(voxels.lengths) * full**3, dtype=torch.bool, device=index_N.device)
    grid[index_N] = True
    steps = torch.arange(-reach, reach + 1, device=index_N.device)
    return grid[index_N[:, None] + (torch.cartesian_prod(steps, steps, steps) * strides[1:]).sum(1)]


def positions(coords_N3: Tensor, width: int) -> Tensor:
    """Sinusoidal positions, (N, D) fp32: for x, y, z in turn, sines and cosines of D // 6 frequencies; then zeros."""
    count = width // 6
    frequencies = 10_000.0 ** -(torch.arange(count, device=coords_N3.device, dtype=torch.float32) / max(count, 1))
    angles = coords_N3.float()[:, :, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return F.pad(table, (0, width - table.shape[1]))


def to_gaussians(outputs_NX: Tensor, coords_N3: Tensor) -> Gaussians:
    """Network outputs (N, 448) of one asset as its 32 N Gaussians.

    Means are at most 0.75 voxels from the centre of their voxel along each axis. Outputs of zero give means spread over
    the voxel (Hammersley points), scales of 4e-3, opacities of 0.1, no rotation, and grey.
    """
    offsets_NR3, colors_NR3, scales_NR3, quats_NR4, opacities_NR1 = by_name(outputs_NX.float()).values()
    centres_N3 = (coords_N3.float() + 0.5) / RESOLUTION - 0.5
    spread_R3 = torch.tensor(spread(), device=outputs_NX.device)
    means_NR3 = centres_N3[:, None] + torch.tanh(offsets_NR3 + spread_R3) * (0.5 * REACH / RESOLUTION)
    scales_NR3 = F.softplus(scales_NR3 + log(expm1(SCALE_START)))
    identity = quats_NR4.new_tensor([1.0, 0.0, 0.0, 0.0])
    return Gaussians(
        means=means_NR3.flatten(0, 1),
        scales=(scales_NR3.square() + SCALE_LEAST**2).sqrt().flatten(0, 1),
        quats=F.normalize(ROTATION_RATE * quats_NR4 + identity, dim=-1).flatten(0, 1),
        opacities=torch.sigmoid(opacities_NR1 + log(OPACITY_START / (1 - OPACITY_START))).flatten(),
        colors=(0.5 + SH_0 * colors_NR3).flatten(0, 1),
    )


def by_name(outputs_NX: Tensor) -> dict[str, Tensor]:
    """Network outputs (N, 448) by name, each (N, 32, 1 to 4)."""
    split = outputs_NX.split([GAUSSIANS * width for width in LAYOUT.values()], dim=1)
    return {name: part.unflatten(1, (GAUSSIANS, -1)) for name, part in zip(LAYOUT, split, strict=True)}


@functools.cache
def spread() -> tuple[tuple[float, ...], ...]:
    """Offsets, before tanh, of a voxel's Gaussians at the points of a Hammersley sequence: 32 rows of x, y, z."""
    points = [(i / GAUSSIANS, radical_inverse(i, 2), radical_inverse(i, 3)) for i in range(GAUSSIANS)]
    return tuple(tuple(atanh((2 * value - 1) / REACH) for value in point) for point in points)
