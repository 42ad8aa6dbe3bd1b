"""Parts of the transformers of this package: attention with a cache, MLPs, time embedding, modulation.

Dense: all samples of a batch have one length. Letters: ``B`` samples, ``L`` tokens of a sample, ``D`` width, ``H``
heads, ``K`` head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.attention import varlen_attention
from atoken.layers import Linear
from atoken.rope import rotate

TIME_FEATURES = 256
BASE = 10_000.0  # of rotary positions and of time features


class Cache:
    """Keys and values (B, H, L, K) of the tokens so far, of one layer."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def extended(self, k_BHLK: Tensor, v_BHLK: Tensor) -> tuple[Tensor, Tensor]:
        """Those so far and new ones, which are kept as well."""
        if self.kept is not None:
            k_BHLK, v_BHLK = (torch.cat(pair, 2) for pair in zip(self.kept, (k_BHLK, v_BHLK), strict=True))
        self.kept = k_BHLK, v_BHLK
        return self.kept


class SelfAttention(nn.Module):
    """Attention among the tokens of a sample; ``q_norm`` and ``k_norm`` are of the channels of any head."""

    def __init__(
        self, width: int, heads: int, *, q_norm: nn.Module | None = None, k_norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()
        self.out = Linear(width, width)

    def forward(self, x_BLD: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D): all tokens of a sample see one another."""
        q_BLHK, k_BLHK, v_BLHK = self._qkv(x_BLD)
        if rotation is not None:
            q_BLHK, k_BLHK = rotate(q_BLHK, rotation), rotate(k_BLHK, rotation)
        packed = (part.flatten(0, 1) for part in (q_BLHK, k_BLHK, v_BLHK))
        return self.out(varlen_attention(*packed, x_BLD.shape[1]).reshape(x_BLD.shape))

    def causal(self, x_BLD: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D): a token sees itself and those before it; with a cache, one token a call."""
        q_BHLK, k_BHLK, v_BHLK = (part.transpose(1, 2) for part in self._qkv(x_BLD))
        if cache is not None:
            k_BHLK, v_BHLK = cache.extended(k_BHLK, v_BHLK)
        seen_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=x_BLD.shape[1] > 1)
        return self.out(seen_BHLK.transpose(1, 2).flatten(2))

    def _qkv(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, L, H, K), queries and keys normalised."""
        q_BLHK, k_BLHK, v_BLHK = self.qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return self.q_norm(q_BLHK), self.k_norm(k_BLHK), v_BLHK


class SwiGLU(nn.Module):
    """``out(silu(gate) * value)``, gate and value from one product (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_value = Linear(width, 2 * hidden)
        self.out = Linear(hidden, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        gate, value = self.gate_value(x_BLD).chunk(2, -1)
        return self.out(F.silu(gate) * value)


class ExactMLP(nn.Module):
    """Linear, GELU by the error function, linear, dropout behind both: that of MAR and TokenBridge."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.dropout(self.down(self.dropout(F.gelu(self.up(x_BLD)))))


class TimeEmbedding(nn.Module):
    """Cosines, then sines, of a number at 128 frequencies, in fp32; then linear, SiLU, linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = Linear(TIME_FEATURES, width)
        self.out = Linear(width, width)

    def forward(self, time_B: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        count = TIME_FEATURES // 2
        frequencies = torch.exp(torch.arange(count, device=time_B.device) * (-math.log(BASE) / count))
        angles = time_B.float()[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1)
        return self.out(F.silu(self.up(features.to(self.up.weight.dtype))))


def modulated(x_BLD: Tensor, shift_BLD: Tensor | None, scale_BLD: Tensor) -> Tensor:
    """``x (1 + scale) + shift``, with one row for all tokens of a sample (B, 1, D), or one for each."""
    x_BLD = x_BLD * (1 + scale_BLD)
    return x_BLD if shift_BLD is None else x_BLD + shift_BLD


def axial_rotation(grid: Sequence[int], head_width: int) -> Tensor:
    """(2, L, 1, K/2) fp32 for ``rotate``: the first half of a head turns by the row, the second by the column."""
    frequencies = BASE ** -(torch.arange(head_width // 4, dtype=torch.float32) / (head_width // 4))
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    angles = torch.cat([axis[:, None] * frequencies for axis in (rows, columns)], 1)[:, None]
    return torch.stack([angles.cos(), angles.sin()])
