"""Which voxels an asset fills: an autoencoder of occupancy, and a flow over its latents (TRELLIS, Xiang et al. 2024).

Dense: grids of one side. Letters: ``B`` samples, ``C`` channels, ``X``, ``Y``, ``Z`` cells, ``N`` tokens of all
samples, ``D`` width, ``L`` vectors of a condition, ``E`` their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.gaussian_decoder import OutputLayer, positions
from atoken.layers import Linear
from atoken.statistics import LatentStatistics
from atoken.tokens import SparseTokens
from generation.conditioned import Packing, Trunk, initialise

TIME_SCALE = 1000.0  # what the networks of this package for assets see is so much sigma
Channels = Sequence[int]


class StructureFlow(ModelMixin, ConfigMixin):
    """``forward(x, sigma, condition)`` is the velocity of latents of occupancy.

    side: of the grid of latents. channels: C. condition: E; zeros are no condition. hidden: of an MLP, in widths.
    qk_norm, cross_qk_norm, shared: as in ``Trunk``.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("ConditionedBlock",)

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        channels: int = 8,
        patch: int = 1,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        hidden: float = 4.0,
        condition: int = 1024,
        qk_norm: bool = True,
        cross_qk_norm: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.inputs = Linear(channels * patch**3, width)
        self.trunk = Trunk(
            width, depth, heads, int(hidden * width), condition, qk_norm=qk_norm, cross_qk_norm=cross_qk_norm,
            shared=shared,
        )  # fmt: skip
        self.out = OutputLayer(width, channels * patch**3)
        initialise(self, [*self.trunk.modulations, self.out])

    def forward(self, x_BCXYZ: Tensor, sigma_B: Tensor, condition_BLE: Tensor) -> Tensor:
        """(B, C, X, Y, Z), (B,) fp32, (B, L, E) -> (B, C, X, Y, Z); sides are multiples of the patch."""
        patch = self.config.patch
        grid = [side // patch for side in x_BCXYZ.shape[2:]]
        x_ND = self.inputs(rearrange(
            x_BCXYZ, "b c (x p) (y q) (z r) -> (b x y z) (c p q r)", p=patch, q=patch, r=patch
        ))  # fmt: skip
        cells_N3 = torch.cartesian_prod(*(torch.arange(side, device=x_ND.device) for side in grid))
        fixed_ND = positions(cells_N3, self.config.width).to(x_ND.dtype).repeat(len(x_BCXYZ), 1)
        packing = Packing.dense(len(x_BCXYZ), len(cells_N3), x_ND.device)
        time_BD = self.trunk.time(TIME_SCALE * sigma_B)
        x_ND = self.out(self.trunk(x_ND + fixed_ND, packing, time_BD, condition_BLE))
        x, y, z = grid
        return rearrange(
            x_ND, "(b x y z) (c p q r) -> b c (x p) (y q) (z r)", x=x, y=y, z=z, p=patch, q=patch, r=patch
        )  # fmt: skip


class StructureVAE(ModelMixin, ConfigMixin):
    """Occupancy (B, 1, X, Y, Z) to latents and back; each step between ``channels`` halves the sides.

    side: of the grid of occupancy. channels: of the encoder, from the finest cells on; the decoder has them in
    reverse. latents: C. blocks, middle: residual blocks of each size, and beside the latents. halves: which of
    ``encoder`` and ``decoder`` it has; published weights are one each. latents_mean, latents_std: of each channel
    of the latents, by which a flow sees them; none in published weights.
    """

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 64,
        channels: tuple[int, ...] = (32, 128, 512),
        latents: int = 8,
        blocks: int = 2,
        middle: int = 2,
        halves: tuple[str, ...] = ("encoder", "decoder"),
        latents_mean: tuple[float, ...] = (),
        latents_std: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = StructureEncoder(channels, latents, blocks, middle) if "encoder" in halves else None
        self.decoder = StructureDecoder(channels[::-1], latents, blocks, middle) if "decoder" in halves else None

    @property
    def latents_side(self) -> int:
        """Cells of latents a side."""
        return int(self.config.side) >> (len(self.config.channels) - 1)

    @property
    def statistics(self) -> LatentStatistics:
        """Of the latents; mean 0 and deviation 1 where none are known."""
        count, config = self.config.latents, self.config
        return LatentStatistics(
            tuple(config.latents_mean or (0.0,) * count), tuple(config.latents_std or (1.0,) * count)
        )  # fmt: skip

    def encode(self, occupied_B1XYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of latents, each (B, C, x, y, z)."""
        mean, variance = cast("nn.Module", self.encoder)(occupied_B1XYZ).chunk(2, 1)
        return mean, variance

    def decode(self, latents_BCXYZ: Tensor) -> Tensor:
        """(B, 1, X, Y, Z): logits; above 0 is occupied."""
        return cast("Tensor", cast("nn.Module", self.decoder)(latents_BCXYZ))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a grid."""

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """(B, C, X, Y, Z), of any strides, to the same."""
        return super().forward(x_BCXYZ.movedim(1, -1)).movedim(-1, 1)


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice, around which the input goes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1, self.conv2 = (nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, C, X, Y, Z)."""
        hidden = self.conv1(F.silu(self.norm1(x_BCXYZ)))
        return x_BCXYZ + self.conv2(F.silu(self.norm2(hidden)))


class Halved(nn.Module):
    """Cells of twice the side, by a convolution of their eight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 2, stride=2)

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) -> (B, outputs, X / 2, Y / 2, Z / 2)."""
        return self.conv(x_BCXYZ)


class Doubled(nn.Module):
    """Eight cells of half the side, out of channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, 8 * outputs, 3, padding=1)

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """(B, inputs, X, Y, Z) -> (B, outputs, 2 X, 2 Y, 2 Z)."""
        x = self.conv(x_BCXYZ)
        return rearrange(x, "b (c p q r) x y z -> b c (x p) (y q) (z r)", p=2, q=2, r=2)


class StructureEncoder(nn.Module):
    """Half of ``StructureVAE``."""

    def __init__(self, channels: Channels, latents: int, blocks: int, middle: int) -> None:
        super().__init__()
        self.inputs = nn.Conv3d(1, channels[0], 3, padding=1)
        self.blocks = _levels(channels, blocks, Halved)
        self.middle = nn.Sequential(*(Residual(channels[-1]) for _ in range(middle)))
        self.norm = ChannelNorm(channels[-1])
        self.out = nn.Conv3d(channels[-1], 2 * latents, 3, padding=1)

    def forward(self, x_B1XYZ: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) -> (B, 2 C, x, y, z)."""
        return self.out(F.silu(self.norm(self.middle(self.blocks(self.inputs(x_B1XYZ))))))


class StructureDecoder(nn.Module):
    """Half of ``StructureVAE``."""

    def __init__(self, channels: Channels, latents: int, blocks: int, middle: int) -> None:
        super().__init__()
        self.inputs = nn.Conv3d(latents, channels[0], 3, padding=1)
        self.middle = nn.Sequential(*(Residual(channels[0]) for _ in range(middle)))
        self.blocks = _levels(channels, blocks, Doubled)
        self.norm = ChannelNorm(channels[-1])
        self.out = nn.Conv3d(channels[-1], 1, 3, padding=1)

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        """(B, C, x, y, z) -> (B, 1, X, Y, Z)."""
        return self.out(F.silu(self.norm(self.blocks(self.middle(self.inputs(x_BCXYZ))))))


def occupancy(voxels: SparseTokens, side: int) -> Tensor:
    """(B, 1, S, S, S) fp32 on the device of the features: 1 where a sample has a voxel."""
    grid = torch.zeros(len(voxels.lengths), 1, side, side, side, device=voxels.coords.device)
    grid[voxels.sample_N, 0, *voxels.coords[:, 1:].long().unbind(1)] = 1
    return grid.to(voxels.feats.device)


def _levels(channels: Channels, blocks: int, between: type[Halved | Doubled]) -> nn.Sequential:
    """Residual blocks of each number of channels, and what leads to the next one."""
    layers = list[nn.Module]()
    for number, count in enumerate(channels):
        layers += [between(channels[number - 1], count)] if number else []
        layers += [Residual(count) for _ in range(blocks)]
    return nn.Sequential(*layers)
