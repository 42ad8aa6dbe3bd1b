"""The parts of both transformers: norms, attention, MLP, block, position table, pooling head (paper section 3.2).

Shape letters: see ``atoken/tokens.py``; ``S`` is a time step of the decoder's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.attention import Bounds, varlen_attention
from atoken.onednn import OneDNNProduct, onednn_product, takes_onednn
from atoken.rope import rotate, rotation
from atoken.summary import Summary
from atoken.tokens import SparseTokens

NORM_EPS = 1e-6


@dataclass(frozen=True)
class Positions:
    """What attention needs of the positions of tokens: sample bounds and rotations, of queries and of keys.

    ``merge`` (kv tokens,) is the index that puts cached and new keys into sample order; None without a cache.
    """

    bounds: Bounds | int
    rotation: Tensor | None
    kv_bounds: Bounds | int
    kv_rotation: Tensor | None
    merge: Tensor | None = None

    @staticmethod
    def of(tokens: SparseTokens, head_width: int, base: float | None) -> Positions:
        """Positions of tokens that attend to one another; ``base`` None switches the rotary embedding off."""
        rotated = None if base is None else rotation(tokens.coords, head_width, base).to(tokens.feats.device)
        return Positions(tokens.bounds, rotated, tokens.bounds, rotated)


class Linear(nn.Linear):
    """``nn.Linear``, followed by ``F.gelu`` if ``gelu``, which is its form: ``tanh``, or ``none`` for the exact one.

    On a CPU it calls oneDNN's product, without gradients with GELU built in: in fp32 on AMD this is twice as fast as
    MKL's, which torch uses by default (docs/results.md).
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, gelu: str | None = None) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.gelu = gelu

    def forward(self, x_ND: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self._product(x_ND, self.weight)

    def _product(self, x_ND: Tensor, weight: Tensor) -> Tensor:
        onednn = x_ND.dtype == weight.dtype and takes_onednn(x_ND)
        if onednn and not torch.is_grad_enabled():
            return onednn_product(x_ND, weight, self.bias, gelu=self.gelu)
        product = OneDNNProduct.apply if onednn and x_ND.dtype == torch.float32 else F.linear
        y_ND = product(x_ND, weight, self.bias)
        return F.gelu(y_ND, approximate=self.gelu) if self.gelu else y_ND


class QKNorm(nn.Module):
    """Queries or keys scaled to length sqrt(K), times a learned gain for each head and channel."""

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.gain_HK = nn.Parameter(torch.ones(heads, head_width))

    def forward(self, x_NHK: Tensor) -> Tensor:
        """(N, H, K) -> (N, H, K), computed in fp32, returned in the dtype of the input."""
        unit_NHK = F.normalize(x_NHK.float(), dim=-1)
        return (unit_NHK * (self.gain_HK.float() * x_NHK.shape[-1] ** 0.5)).to(x_NHK.dtype)


class Attention(nn.Module):
    """Self-attention inside each sample; with a cache, also to the last time steps of the previous tile."""

    def __init__(self, width: int, heads: int, *, bias: bool, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.q_norm = QKNorm(heads, width // heads) if qk_norm else nn.Identity()
        self.k_norm = QKNorm(heads, width // heads) if qk_norm else nn.Identity()
        self.out = Linear(width, width, bias=bias)

    def forward(self, x_ND: Tensor, positions: Positions, cache: LayerCache | None = None) -> Tensor:
        """(N, D) -> (N, D). Keys enter the cache after QK-norm and before rotation."""
        q_NHK, k_NHK, v_NHK = self.qkv(x_ND).unflatten(-1, (3, self.heads, -1)).unbind(1)
        q_NHK, k_NHK = self.q_norm(q_NHK), self.k_norm(k_NHK)
        if cache is not None:
            k_NHK, v_NHK = cache.extend(k_NHK, v_NHK, positions.merge)
        if positions.rotation is not None and positions.kv_rotation is not None:
            q_NHK, k_NHK = rotate(q_NHK, positions.rotation), rotate(k_NHK, positions.kv_rotation)
        return self.out(varlen_attention(q_NHK, k_NHK, v_NHK, positions.bounds, positions.kv_bounds).flatten(1))


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose gain is cast to the dtype of the input, so that autocast keeps the fused kernel."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return F.rms_norm(x_ND, self.normalized_shape, self.weight.to(x_ND.dtype), self.eps)


class MLP(nn.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.up = Linear(width, hidden, bias=bias, gelu="tanh")
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return self.down(self.up(x_ND))


class Block(nn.Module):
    """Pre-norm transformer block. Encoder: LayerNorm and biases. Decoder: RMSNorm, QK-norm, no biases."""

    def __init__(self, width: int, heads: int, hidden: int, *, decoder: bool) -> None:
        super().__init__()
        norm = RMSNorm if decoder else nn.LayerNorm
        self.norm1 = norm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads, bias=not decoder, qk_norm=decoder)
        self.norm2 = norm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden, bias=not decoder)

    def forward(self, x_ND: Tensor, positions: Positions, cache: LayerCache | None = None) -> Tensor:
        """(N, D) -> (N, D)."""
        x_ND = x_ND + self.attention(self.norm1(x_ND), positions, cache)
        return x_ND + self.mlp(self.norm2(x_ND))


class PositionTable(nn.Module):
    """SigLIP2's learned table of ``grid`` x ``grid`` positions, resized to the extent of each sample in its tile."""

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.empty(grid * grid, width))

    def forward(self, tokens: SparseTokens) -> Tensor:
        """(N, D): the table at (row, column) of each token, resized to (max row + 1, max column + 1) of its sample."""
        largest_B4 = tokens.reduce_coords("amax")
        extents = [(row + 1, column + 1) for _, row, column, _ in largest_B4.tolist()]
        sizes = dict.fromkeys(extents)
        starts = dict(zip(sizes, accumulate((h * w for h, w in sizes), initial=0), strict=False))
        device, sample_N = tokens.coords.device, tokens.sample_N
        start_B = torch.tensor([starts[size] for size in extents], device=device)
        index_N = start_B[sample_N] + tokens.coords[:, 1] * (largest_B4[sample_N, 2] + 1) + tokens.coords[:, 2]
        return torch.cat([self.resized(*size) for size in sizes])[index_N]

    def resized(self, rows: int, columns: int) -> Tensor:
        """(rows * columns, D) fp32: bilinear with anti-aliasing, corners not aligned.

        The memory layout matters: torch's CPU kernel gives another result for one column in another layout; this is
        the one of SigLIP2 and of the published code (docs/conventions.md, "One column").
        """
        table = self.weight.float().unflatten(0, (self.grid, self.grid)).permute(2, 0, 1)[None].contiguous()
        table = F.interpolate(table, (rows, columns), mode="bilinear", antialias=True, align_corners=False)
        return table[0].flatten(1).T


@dataclass(frozen=True, repr=False)
class PoolState(Summary):
    """Online softmax over the tokens seen so far: largest logit, normaliser, and weighted sum of tokens."""

    largest_BH: Tensor
    total_BH: Tensor
    sum_BHD: Tensor

    def of(self, sample: int) -> tuple[Tensor, Tensor, Tensor]:
        """The three of one sample."""
        return self.largest_BH[sample], self.total_BH[sample], self.sum_BHD[sample]


class PoolingHead(nn.Module):
    """SigLIP2's attention pooling: one learned probe attends to all tokens of a sample, without positions.

    Since the probe is the same for all samples, the key projection is folded into the probe, and the value projection
    is applied after the average. So tokens are read once, and tiles can come one after another.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(width))
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.out = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, hidden, bias=True)

    def start(self, samples: int) -> PoolState:
        """The state before any token."""
        zeros = torch.zeros(samples, self.heads, device=self.probe.device)
        return PoolState(zeros - torch.inf, zeros, zeros[..., None].expand(-1, -1, len(self.probe)))

    def update(self, state: PoolState, tokens: SparseTokens) -> PoolState:
        """The state after further tokens (N, D) of the same samples."""
        folded_HD = self._folded()
        rows = [self._advance(*state.of(sample), part.feats, folded_HD) for sample, part in enumerate(tokens.unpack())]
        return PoolState(*(torch.stack(column) for column in zip(*rows, strict=True)))

    def update_dense(self, state: PoolState, x_BLD: Tensor) -> PoolState:
        """The same for samples of one length L."""
        return PoolState(*self._advance(state.largest_BH, state.total_BH, state.sum_BHD, x_BLD, self._folded()))

    def _folded(self) -> Tensor:
        q_HK = self.q(self.probe).float().unflatten(0, (self.heads, -1))
        key_HKD = self.kv.weight.chunk(2)[0].float().unflatten(0, (self.heads, -1))
        return torch.einsum("hk,hkd->hd", q_HK, key_HKD) * q_HK.shape[-1] ** -0.5

    @staticmethod
    def _advance(
        before_H: Tensor, total_H: Tensor, sum_HD: Tensor, x_LD: Tensor, folded_HD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One sample, or a dense batch of them (with B first)."""
        if not x_LD.shape[-2]:
            return before_H, total_H, sum_HD
        x_LD = x_LD.float()
        logits_HL = folded_HD @ x_LD.mT
        largest_H = torch.maximum(before_H, logits_HL.amax(-1)).detach()
        weights_HL, keep_H = torch.exp(logits_HL - largest_H[..., None]), torch.exp(before_H - largest_H)
        return largest_H, total_H * keep_H + weights_HL.sum(-1), sum_HD * keep_H[..., None] + weights_HL @ x_LD

    def finish(self, state: PoolState) -> Tensor:
        """(B, D) fp32, not normalised; zeros for a sample without tokens."""
        mean_BHD = state.sum_BHD / state.total_BH.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
        value_HKD = self.kv.weight.chunk(2)[1].float().unflatten(0, (self.heads, -1))
        values_BD = torch.einsum("bhd,hkd->bhk", mean_BHD, value_HKD).flatten(1) + self.kv.bias.chunk(2)[1].float()
        x_BD = self.out(values_BD.to(self.out.weight.dtype))
        x_BD = (x_BD + self.mlp(self.norm(x_BD))).float()
        return torch.where(state.total_BH[:, :1] > 0, x_BD, 0.0)


class LayerCache:
    """Keys (before rotation) and values of one layer, of the time steps that the next tile may attend to."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.keep: Tensor | None = None  # index of the merged entries that stay; set by TileCache for each tile

    def extend(self, k_NHK: Tensor, v_NHK: Tensor, merge: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cached and new entries in sample order; those that the next tile needs are kept, detached."""
        if self.keys is not None and self.values is not None and merge is not None:
            k_NHK, v_NHK = torch.cat([self.keys, k_NHK])[merge], torch.cat([self.values, v_NHK])[merge]
        self.keys, self.values = k_NHK.detach()[self.keep], v_NHK.detach()[self.keep]
        return k_NHK, v_NHK


class TileCache:
    """The decoder's cache between tiles: the last ``steps`` time steps of every layer (paper section 3.4).

    Cached entries are at t = 0 .. steps - 1, and the next tile starts after them.
    """

    def __init__(self, steps: int, layers: int) -> None:
        self.steps = steps
        self.layers = [LayerCache() for _ in range(layers)]
        self.entries: SparseTokens | None = None  # positions of the cached entries; feats are empty

    def enter(self, tokens: SparseTokens, tile_steps: int, head_width: int, base: float | None) -> Positions:
        """Positions of a tile after the cached entries; then the layers' caches can take this tile."""
        new = tokens.with_feats(tokens.feats[:, :0])
        start, merged, merge = 0, new, None
        if self.entries is not None:
            start = int(self.entries.coords[:, 0].max()) + 1 if len(self.entries.coords) else 0
            new = SparseTokens(new.feats, new.coords + new.coords.new_tensor([start, 0, 0, 0]), new.lengths)
            merged, merge = _interleave(self.entries, new)
        self._remember(merged, start + tile_steps - self.steps)
        queries, keys = Positions.of(new, head_width, base), Positions.of(merged, head_width, base)
        return Positions(queries.bounds, queries.rotation, keys.bounds, keys.rotation, merge)

    def _remember(self, merged: SparseTokens, first: int) -> None:
        keep = (merged.coords[:, 0] >= first).nonzero()[:, 0]
        lengths = torch.bincount(merged.sample_N[keep], minlength=len(merged.lengths)).tolist()
        shift = merged.coords.new_tensor([max(first, 0), 0, 0, 0])
        self.entries = SparseTokens(merged.feats[keep], merged.coords[keep] - shift, tuple(lengths))
        for layer in self.layers:
            layer.keep = keep


def _interleave(first: SparseTokens, second: SparseTokens) -> tuple[SparseTokens, Tensor]:
    """Two batches of the same samples as one, each sample's first part before its second, and the index for it."""
    pairs = zip(first.unpack(), second.unpack(), strict=True)
    joined = [SparseTokens.pack(pair) for pair in pairs]
    merged = SparseTokens.pack(joined)
    merge = torch.cat([first.sample_N, second.sample_N]).argsort(stable=True)
    return SparseTokens(merged.feats, merged.coords, tuple(sum(part.lengths) for part in joined)), merge
