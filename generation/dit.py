"""A diffusion transformer for images from classes: LightningDiT (Yao et al. 2025) upon DiT (Peebles and Xie 2023).

RMSNorm, SwiGLU, rotary positions beside fixed ones, adaLN-zero. Dense: all samples of a batch have one grid. Letters:
``B`` samples, ``L`` tokens of a sample, ``D`` width, ``H`` heads, ``K`` head width, ``C`` latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils.checkpoint import checkpoint

from atoken.layers import MLP, NORM_EPS, Linear, RMSNorm
from generation.blocks import BASE, SelfAttention, SwiGLU, TimeEmbedding, axial_rotation, modulated

QK_LAYER_NORM_EPS = 1e-5  # of the LayerNorm of queries and keys, where norms are LayerNorms


class DiT(ModelMixin, ConfigMixin):
    """``forward(x, sigma, labels)`` is the velocity, noise minus data, of latents normalised per channel.

    side: of the grid of latents that it is built for; others get fixed positions of their own. channels: C. patch: side
    of a patch of latents. classes: label ``classes`` is the null condition. time_scale: what the network sees is
    ``time_scale * sigma``, or ``time_scale * (1 - sigma)`` where ``data_time``, and its output is then the reverse of
    the velocity. halved: it has twice as many outputs, of which the first half counts (DiT's learned variance).
    qk_norm, rms_norm, swiglu, rope, shift: parts that some published weights lack.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("DiTBlock",)

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        channels: int = 48,
        patch: int = 1,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        classes: int = 1000,
        qk_norm: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        rope: bool = True,
        shift: bool = True,
        halved: bool = False,
        time_scale: float = 1000.0,
        data_time: bool = False,
    ) -> None:
        super().__init__()
        self.outputs = 2 * channels if halved else channels
        self.patchify = Linear(channels * patch * patch, width)
        fixed = fixed_positions((side // patch,) * 2, width).to(torch.get_default_dtype())
        self.positions = nn.Parameter(fixed, requires_grad=False)
        self.time = TimeEmbedding(width)
        self.labels = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, heads, qk_norm=qk_norm, rms_norm=rms_norm, swiglu=swiglu, shift=shift) for _ in range(depth)
        )
        self.norm = AdaptiveNorm(width, rms_norm)
        self.modulation = Linear(width, 2 * width)
        self.unpatchify = Linear(width, self.outputs * patch * patch)
        self.gradient_checkpointing = False
        self.initialise()

    def initialise(self) -> None:
        """Random weights with which a block is the identity and the output is zero (DiT, section 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for embedding in (self.labels, self.time.up, self.time.out):
            nn.init.normal_(embedding.weight, std=0.02)
        for layer in (*(block.modulation for block in self.blocks), self.modulation, self.unpatchify):
            nn.init.zeros_(layer.weight)

    def forward(self, x_BCHW: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
        """(B, C, H, W), (B,) fp32, (B,) int64 -> (B, C, H, W); H and W are multiples of the patch."""
        config = self.config
        time_B = 1 - sigma_B if config.data_time else sigma_B
        condition_BD = self.time(config.time_scale * time_B) + self.labels(labels_B)
        grid = (x_BCHW.shape[2] // config.patch, x_BCHW.shape[3] // config.patch)
        x_BLD = self.patchify(rearrange(
            x_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=config.patch, q=config.patch
        ))  # fmt: skip
        own = (config.side // config.patch,) * 2
        fixed = self.positions if grid == own else fixed_positions(grid, config.width).to(x_BLD.device)
        x_BLD = x_BLD + fixed.to(x_BLD.dtype)
        rotation = axial_rotation(grid, config.width // config.heads, x_BLD.device) if config.rope else None
        activated_B1D = F.silu(condition_BD)[:, None]
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_BLD = checkpoint(block, x_BLD, activated_B1D, rotation, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, activated_B1D, rotation)
        shift_B1D, scale_B1D = self.modulation(activated_B1D).chunk(2, -1)
        x_BLV = self.unpatchify(self.norm(x_BLD, shift_B1D, scale_B1D))
        x_BCHW = rearrange(
            x_BLV, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=config.patch, q=config.patch
        )[:, : config.channels]  # fmt: skip
        return -x_BCHW if config.data_time else x_BCHW


class DiTBlock(nn.Module):
    """Attention and MLP, each with a shift, a scale and a gate of the condition (adaLN-zero)."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, rms_norm: bool, swiglu: bool, shift: bool) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = AdaptiveNorm(width, rms_norm)
        norms = [_qk_norm(width // heads, rms_norm) if qk_norm else None for _ in range(2)]
        self.attention = SelfAttention(width, heads, q_norm=norms[0], k_norm=norms[1])
        self.norm2 = AdaptiveNorm(width, rms_norm)
        self.mlp = SwiGLU(width, int(2 / 3 * (4 * width))) if swiglu else MLP(width, 4 * width, bias=True)
        self.modulation = Linear(width, (6 if shift else 4) * width)

    def forward(self, x_BLD: Tensor, activated_B1D: Tensor, rotation: Tensor | None) -> Tensor:
        """(B, L, D), (B, 1, D) -> (B, L, D)."""
        chunks = self.modulation(activated_B1D).chunk(6 if self.shift else 4, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks if self.shift else (None, *chunks[:2], None, *chunks[2:])
        x_BLD = torch.addcmul(x_BLD, gate1, self.attention(self.norm1(x_BLD, shift1, scale1), rotation))
        return torch.addcmul(x_BLD, gate2, self.mlp(self.norm2(x_BLD, shift2, scale2)))


class AdaptiveNorm(nn.Module):
    """``norm(x) (1 + scale) + shift``, of an RMSNorm, whose gain joins the scale, or a plain LayerNorm."""

    def __init__(self, width: int, rms_norm: bool) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(width)) if rms_norm else None)

    def forward(self, x_BLD: Tensor, shift_B1D: Tensor | None, scale_B1D: Tensor) -> Tensor:
        """(B, L, D), (B, 1, D), (B, 1, D) -> (B, L, D)."""
        norm, gain_B1D = (F.layer_norm if self.weight is None else F.rms_norm), 1 + scale_B1D
        if self.weight is not None:
            gain_B1D = gain_B1D * self.weight.to(scale_B1D.dtype)
        return modulated(norm(x_BLD, x_BLD.shape[-1:], eps=NORM_EPS), shift_B1D, gain_B1D)


def fixed_positions(grid: Sequence[int], width: int) -> Tensor:
    """(1, L, D) fp32: sines and cosines of the column, then of the row, a quarter of the width each."""
    frequencies = BASE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    parts = [turn(axis[:, None] * frequencies) for axis in (columns, rows) for turn in (torch.sin, torch.cos)]
    return torch.cat(parts, 1).float()[None]


def _qk_norm(head_width: int, rms_norm: bool) -> nn.Module:
    return RMSNorm(head_width, eps=NORM_EPS) if rms_norm else nn.LayerNorm(head_width, eps=QK_LAYER_NORM_EPS)
