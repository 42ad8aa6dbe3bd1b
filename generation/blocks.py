"""Parts of the transformers of this package: attention with a cache, MLPs, time embedding, modulation.

Dense: all samples of a batch have one length. Letters: ``B`` samples, ``L`` tokens of a sample, ``D`` width, ``H``
heads, ``K`` head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.attention import varlen_attention
from atoken.layers import Linear
from atoken.onednn import onednn_swiglu, takes_onednn
from atoken.rope import rotate

Places = tuple[Tensor, Tensor]  # samples and tokens, as many of each sample: sample after sample, rising
TIME_FEATURES = 256
BASE = 10_000.0  # of rotary positions and of time features


class Cache:
    """Keys and values (B, H, L, K) of the tokens so far, of one layer and at most ``most`` tokens."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.kept = list[Tensor]()

    def extended(self, *k_v_BHLK: Tensor) -> Iterator[Tensor]:
        """Those so far and new ones, which are kept as well."""
        if not self.kept:
            self.kept = [new.new_empty(*new.shape[:2], self.most, new.shape[3]) for new in k_v_BHLK]
        first, self.count = self.count, self.count + k_v_BHLK[0].shape[2]
        for kept, new in zip(self.kept, k_v_BHLK, strict=True):
            kept[:, :, first : self.count] = new
            yield kept[:, :, : self.count]


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

    def forward(self, x_BLD: Tensor, rotation: Tensor | None = None, wanted: Places | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D): all tokens of a sample see one another. Of ``wanted`` ones (B, W, D)."""
        q_BLHK, k_BLHK, v_BLHK = self.qkv_of(x_BLD)
        if rotation is not None:
            q_BLHK, k_BLHK = rotate(q_BLHK, rotation), rotate(k_BLHK, rotation)
        if wanted is not None:
            q_BLHK = at_places(q_BLHK, wanted)
        packed = (part.flatten(0, 1) for part in (q_BLHK, k_BLHK, v_BLHK))
        seen_NHK = varlen_attention(*packed, q_BLHK.shape[1], k_BLHK.shape[1])
        return self.out(seen_NHK.reshape(*q_BLHK.shape[:2], x_BLD.shape[2]))

    def causal(self, x_BLD: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D): a token sees itself and those before it; with a cache, one token a call."""
        q_BHLK, k_BHLK, v_BHLK = (part.transpose(1, 2) for part in self.qkv_of(x_BLD))
        if cache is not None:
            k_BHLK, v_BHLK = cache.extended(k_BHLK, v_BHLK)
        seen_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=x_BLD.shape[1] > 1)
        return self.out(seen_BHLK.transpose(1, 2).flatten(2))

    def qkv_of(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, L, H, K), or (N, H, K) of packed tokens (N, D); queries and keys normalised."""
        q_BLHK, k_BLHK, v_BLHK = self.qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return self.q_norm(q_BLHK), self.k_norm(k_BLHK), v_BLHK


class Gated(Linear):
    """``silu(gate) * value``, gate and value from one product."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, inputs) -> (B, L, outputs / 2)."""
        if x_BLD.dtype == self.weight.dtype and takes_onednn(x_BLD) and not torch.is_grad_enabled():
            return onednn_swiglu(x_BLD, self.weight, self.bias)
        gate, value = super().forward(x_BLD).chunk(2, -1)
        return F.silu(gate) * value


class SwiGLU(nn.Module):
    """``out(silu(gate) * value)`` (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_value = Gated(width, 2 * hidden)
        self.out = Linear(hidden, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.out(self.gate_value(x_BLD))


class ExactMLP(nn.Module):
    """Linear, GELU by the error function, linear, dropout behind both: that of MAR and TokenBridge."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = Linear(width, hidden, gelu="none")
        self.down = Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.dropout(self.down(self.dropout(self.up(x_BLD))))


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


def modulated(x_BLD: Tensor, shift_BLD: Tensor | None, gain_BLD: Tensor) -> Tensor:
    """``x gain + shift`` in one pass, with one row for all tokens of a sample (B, 1, D), or one for each."""
    return x_BLD * gain_BLD if shift_BLD is None else torch.addcmul(shift_BLD, x_BLD, gain_BLD)


def at_places(x: Tensor, places: Places) -> Tensor:
    """(B, L, ...) -> (B, W, ...)."""
    return x[places].unflatten(0, (len(x), -1))


def axial_rotation(grid: Sequence[int], head_width: int, device: torch.device | str | None = None) -> Tensor:
    """(2, L, 1, K/2) fp32 for ``rotate``: the first half of a head turns by the row, the second by the column."""
    channels = torch.arange(head_width // 4, dtype=torch.float32, device=device)
    frequencies = BASE ** -(channels / (head_width // 4))
    axes = (torch.arange(side, device=device) for side in grid)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    angles = torch.cat([axis[:, None] * frequencies for axis in (rows, columns)], 1)[:, None]
    return torch.stack([angles.cos(), angles.sin()])
