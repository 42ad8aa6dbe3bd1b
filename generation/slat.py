"""A flow over the latents of occupied voxels: TRELLIS's sparse transformer (Xiang et al. 2024) on AToken's tokens.

Letters: ``N`` voxels of all samples, ``M`` cells of twice the side, ``B`` samples, ``C`` latent channels, ``I``
channels of a sparse block, ``D`` width, ``L`` vectors of a condition, ``E`` their width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.gaussian_decoder import OutputLayer, positions
from atoken.layers import NORM_EPS, Linear
from atoken.tokens import SparseTokens
from generation.blocks import modulated
from generation.cells import Cells, SparseConv, pooled
from generation.conditioned import Packing, Trunk, initialise
from generation.structure import TIME_SCALE


class SlatFlow(ModelMixin, ConfigMixin):
    """``forward(voxels, sigma, condition)`` is the velocity of their latents, normalised per channel.

    channels: C. io_channels, io_blocks: of sparse blocks, and how many of each number of channels; after each, cells
    have twice the side. condition: E; zeros are no condition. hidden: of an MLP, in widths. qk_norm, cross_qk_norm,
    shared: as in ``Trunk``. published_pooling: as ``cells.pooled`` has it.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("ConditionedBlock",)

    @register_to_config
    def __init__(
        self,
        *,
        channels: int = 48,
        io_channels: tuple[int, ...] = (128,),
        io_blocks: int = 2,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        hidden: float = 4.0,
        condition: int = 1024,
        qk_norm: bool = True,
        cross_qk_norm: bool = False,
        shared: bool = False,
        published_pooling: bool = False,
    ) -> None:
        super().__init__()
        sizes = (*io_channels, width)
        self.inputs = Linear(channels, sizes[0])
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in pairwise(sizes):
            self.downs += [SparseBlock(fine, fine, width) for _ in range(io_blocks - 1)]
            self.downs.append(SparseBlock(fine, coarse, width))
        for fine, coarse in reversed([*pairwise(sizes)]):
            self.ups.append(SparseBlock(2 * coarse, fine, width))
            self.ups += [SparseBlock(2 * fine, fine, width) for _ in range(io_blocks - 1)]
        self.trunk = Trunk(
            width, depth, heads, int(hidden * width), condition, qk_norm=qk_norm, cross_qk_norm=cross_qk_norm,
            shared=shared,
        )  # fmt: skip
        self.out = OutputLayer(sizes[0], channels)
        seconds = [block.conv2 for block in (*self.downs, *self.ups)]
        initialise(self, [*self.trunk.modulations, *seconds, self.out])

    def forward(self, voxels: SparseTokens, sigma_B: Tensor, condition_BLE: Tensor) -> Tensor:
        """Voxels of features (N, C) at (t, x, y, z), of which t is ignored; (B,) fp32; (B, L, E) -> (N, C)."""
        config = self.config
        sizes = Cells.sizes(voxels, 1 + len(config.io_channels))
        time_BD, x = self.trunk.time(TIME_SCALE * sigma_B), self.inputs(voxels.feats)
        size, skips = 0, list[Tensor]()
        for number, block in enumerate(self.downs, 1):
            if number % config.io_blocks == 0:
                x, size = pooled(x, sizes[size], published=config.published_pooling), size + 1
            x = block(x, time_BD, sizes[size])
            skips.append(x)
        coarsest = sizes[size].tokens
        fixed_MD = positions(coarsest.coords[:, 1:], config.width).to(x)
        x = self.trunk(x + fixed_MD, Packing(coarsest.bounds, coarsest.sample_N.to(x.device)), time_BD, condition_BLE)
        for number, block in enumerate(self.ups):
            x = torch.cat([x, skips.pop()], 1)
            if number % config.io_blocks == 0:
                size -= 1
                x = x[sizes[size].coarser[0]]
            x = block(x, time_BD, sizes[size])
        return self.out(x)


class SparseBlock(nn.Module):
    """Norm, SiLU, convolution, twice, the second norm with a scale and a shift of the time; the input goes around."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs, eps=NORM_EPS)
        self.conv1, self.conv2 = SparseConv(inputs, outputs), SparseConv(outputs, outputs)
        self.modulation = Linear(width, 2 * outputs)
        self.project = Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x_NI: Tensor, time_BD: Tensor, cells: Cells) -> Tensor:
        """(N, inputs), (B, D) -> (N, outputs)."""
        scale_BI, shift_BI = self.modulation(F.silu(time_BD)).chunk(2, -1)
        sample_N = cells.tokens.sample_N.to(x_NI.device)
        hidden_NI = self.conv1(F.silu(self.norm(x_NI)), cells)
        normed_NI = F.layer_norm(hidden_NI, hidden_NI.shape[1:], eps=NORM_EPS)
        hidden_NI = F.silu(modulated(normed_NI, shift_BI[sample_N], 1 + scale_BI[sample_N]))
        return self.conv2(hidden_NI, cells) + self.project(x_NI)
