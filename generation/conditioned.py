"""Transformer blocks that look at a condition through cross-attention, as those of TRELLIS (Xiang et al. 2024).

Tokens are packed, dense grids as well as occupied voxels. Letters: ``N`` tokens of all samples, ``B`` samples, ``D``
width, ``L`` vectors of a condition, ``E`` their width, ``H`` heads, ``K`` head width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils.checkpoint import checkpoint

from atoken.attention import Bounds, varlen_attention
from atoken.layers import MLP, NORM_EPS, Attention, Linear, Positions, QKNorm
from generation.blocks import TimeEmbedding, modulated


@dataclass(frozen=True)
class Packing:
    """``bounds`` of the samples among tokens, or the length of each; ``sample_N``: which one a token belongs to."""

    bounds: Bounds | int
    sample_N: Tensor

    @staticmethod
    def dense(samples: int, tokens: int, device: torch.device) -> Packing:
        """Samples of equally many tokens."""
        return Packing(tokens, torch.arange(samples, device=device).repeat_interleave(tokens))


class CrossAttention(nn.Module):
    """Tokens look at the condition of their sample."""

    def __init__(self, width: int, heads: int, condition: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(condition, 2 * width)
        self.q_norm = QKNorm(heads, width // heads) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(heads, width // heads) if qk_norm else nn.Identity()
        self.out = Linear(width, width)

    def forward(self, x_ND: Tensor, packing: Packing, condition_BLE: Tensor) -> Tensor:
        """(N, D), (B, L, E) -> (N, D)."""
        samples, length, _ = condition_BLE.shape
        q_NHK = self.q(x_ND).unflatten(-1, (self.heads, -1))
        k_NHK, v_NHK = self.kv(condition_BLE.flatten(0, 1)).unflatten(-1, (2, self.heads, -1)).unbind(1)
        kv_bounds = length if isinstance(packing.bounds, int) else tuple(range(0, samples * length + 1, length))
        seen_NHK = varlen_attention(self.q_norm(q_NHK), self.k_norm(k_NHK), v_NHK, packing.bounds, kv_bounds)
        return self.out(seen_NHK.flatten(1))


class ConditionedBlock(nn.Module):
    """Self-attention, cross-attention and MLP; the first and last have a shift, a scale and a gate of the time."""

    def __init__(
        self, width: int, heads: int, hidden: int, condition: int, *, qk_norm: bool, cross_qk_norm: bool, shared: bool
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, bias=True, qk_norm=qk_norm)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross = CrossAttention(width, heads, condition, qk_norm=cross_qk_norm)
        self.mlp = MLP(width, hidden, bias=True)
        self.modulation = nn.Identity() if shared else Linear(width, 6 * width)

    def forward(self, x_ND: Tensor, packing: Packing, activated_BM: Tensor, condition_BLE: Tensor) -> Tensor:
        """(N, D), what the modulation is made from (or is, where blocks share it), (B, L, E) -> (N, D)."""
        chunks = self.modulation(activated_BM).chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = (chunk[packing.sample_N] for chunk in chunks)
        places = Positions(packing.bounds, None, packing.bounds, None)
        x_ND = torch.addcmul(x_ND, gate1, self.attention(_shifted(x_ND, shift1, scale1), places))
        x_ND = x_ND + self.cross(self.norm2(x_ND), packing, condition_BLE)
        return torch.addcmul(x_ND, gate2, self.mlp(_shifted(x_ND, shift2, scale2)))


class Trunk(nn.Module):
    """Embedding of the time, and blocks.

    qk_norm, cross_qk_norm: of both attentions. shared: one modulation for all blocks.
    """

    def __init__(
        self, width: int, depth: int, heads: int, hidden: int, condition: int, *, qk_norm: bool, cross_qk_norm: bool,
        shared: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.time = TimeEmbedding(width)
        self.modulation = Linear(width, 6 * width) if shared else None
        self.blocks = nn.ModuleList(
            ConditionedBlock(
                width, heads, hidden, condition, qk_norm=qk_norm, cross_qk_norm=cross_qk_norm, shared=shared
            )
            for _ in range(depth)
        )
        self.gradient_checkpointing = False

    def forward(self, x_ND: Tensor, packing: Packing, time_BD: Tensor, condition_BLE: Tensor) -> Tensor:
        """(N, D), the embedded time (B, D), (B, L, E) -> (N, D)."""
        activated_BM, condition_BLE = F.silu(time_BD), condition_BLE.to(x_ND.dtype)
        if self.modulation is not None:
            activated_BM = self.modulation(activated_BM)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_ND = checkpoint(block, x_ND, packing, activated_BM, condition_BLE, use_reentrant=False)
            else:
                x_ND = block(x_ND, packing, activated_BM, condition_BLE)
        return x_ND

    @property
    def modulations(self) -> list[nn.Module]:
        """Those of the blocks, or the one that they share."""
        return [block.modulation for block in self.blocks] if self.modulation is None else [self.modulation]


def initialise(model: nn.Module, zeros: Iterable[nn.Module]) -> None:
    """Random weights for linear layers, and none for those with which a block is the identity or the output zero."""
    for module in model.modules():
        if isinstance(module, TimeEmbedding):
            nn.init.normal_(module.up.weight, std=0.02)
            nn.init.normal_(module.out.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for layer in zeros:
        for weight in layer.parameters():
            nn.init.zeros_(weight)


def _shifted(x_ND: Tensor, shift_ND: Tensor, scale_ND: Tensor) -> Tensor:
    return modulated(F.layer_norm(x_ND, x_ND.shape[-1:], eps=NORM_EPS), shift_ND, 1 + scale_ND)
