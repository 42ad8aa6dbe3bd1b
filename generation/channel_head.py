"""The tokens of one position, one after another: TokenBridge's channel-wise head (Wang et al. 2025, section 3.3).

Letters: ``M`` positions, ``V`` tokens of a position, ``K`` levels of a token, ``F`` width of the trunk, ``D`` of the
head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.layers import NORM_EPS, Linear
from generation.blocks import Cache, ExactMLP, SelfAttention, modulated

Choose = Callable[[int, Tensor], Tensor]  # number of the token and its logits (M, K) -> (M,) int64


class ChannelHead(nn.Module):
    """Logits of each token of a position, given the trunk's feature and the tokens before it.

    step_at_start: the first input is the feature plus the embedding of the first step, not the feature alone, when
    sampling; published weights were trained without it, and are sampled with it. shared: all tokens of a position have
    one table and one classifier, and each of them a matrix of its own between these and the blocks; this is ours, for
    small models: 15 tables of 4,096 levels are most of their weights.
    """

    def __init__(
        self, trunk: int, width: int, depth: int, heads: int, tokens: int, levels: int, *, dropout: float = 0.0,
        step_at_start: bool = False, shared: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.step_at_start = step_at_start
        self.condition = Linear(trunk, width)
        self.table = nn.Embedding(levels, width) if shared else nn.Identity()
        self.embeddings = nn.ModuleList(
            Linear(width, width) if shared else nn.Embedding(levels, width) for _ in range(tokens - 1)
        )
        self.positions = nn.Parameter(torch.zeros(1, tokens, width))
        self.steps = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.ModuleList(HeadBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.last_norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.modulation = Linear(width, 2 * width)
        self.classifiers = nn.ModuleList(Linear(width, width if shared else levels) for _ in range(tokens))
        self.classifier = Linear(width, levels) if shared else nn.Identity()

    def forward(self, features_MF: Tensor, tokens_MV: Tensor) -> Tensor:
        """Logits (M, V, K) of all tokens at once, each given the right ones before it: for training."""
        condition_M1D = self.condition(features_MF)[:, None]
        before = [layer(self.table(tokens_MV[:, v]))[:, None] for v, layer in enumerate(self.embeddings)]
        x_MVD = torch.cat([condition_M1D, *before], 1) + self.positions
        x_MVD = self._transformed(x_MVD, self._modulations(condition_M1D), None)
        return self.classifier(torch.stack([layer(x_MVD[:, v]) for v, layer in enumerate(self.classifiers)], 1))

    def sampled(self, features_MF: Tensor, choose: Choose) -> Tensor:
        """Tokens (M, V), each chosen by its logits and then given to the next."""
        condition_M1D = self.condition(features_MF)[:, None]
        x_M1D = condition_M1D + self.steps[:, :1] if self.step_at_start else condition_M1D
        modulations = self._modulations(condition_M1D)
        caches, chosen = [Cache(len(self.classifiers)) for _ in self.blocks], list[Tensor]()
        for v, layer in enumerate(self.classifiers):
            if v:
                x_M1D = self.embeddings[v - 1](self.table(chosen[-1]))[:, None]
            at = slice(v, v + 1)
            y_M1D = self._transformed(x_M1D + self.positions[:, at], [all_[:, at] for all_ in modulations], caches)
            chosen.append(choose(v, self.classifier(layer(y_M1D[:, 0]))))
        return torch.stack(chosen, 1)

    def _modulations(self, condition_M1D: Tensor) -> list[Tensor]:
        """Of each block (M, V, 6 D), and of the last norm (M, V, 2 D): of all steps, which they do not depend on."""
        activated_MVD = F.silu(condition_M1D + self.steps)
        return [layer(activated_MVD) for layer in (*(block.modulation for block in self.blocks), self.modulation)]

    def _transformed(self, x_MVD: Tensor, modulations: list[Tensor], caches: list[Cache] | None) -> Tensor:
        for number, block in enumerate(self.blocks):
            x_MVD = block(x_MVD, modulations[number], None if caches is None else caches[number])
        scale_MVD, shift_MVD = modulations[-1].chunk(2, -1)
        return modulated(self.last_norm(self.norm(x_MVD)), shift_MVD, 1 + scale_MVD)


class HeadBlock(nn.Module):
    """Causal attention and MLP with a shift, a scale and a gate of the condition of each step."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        norms = [nn.LayerNorm(width // heads, eps=NORM_EPS) for _ in range(2)]
        self.attention = SelfAttention(width, heads, q_norm=norms[0], k_norm=norms[1])
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = ExactMLP(width, 4 * width, dropout)
        self.modulation = Linear(width, 6 * width)

    def forward(self, x_MVD: Tensor, modulation_MVE: Tensor, cache: Cache | None) -> Tensor:
        """(M, V, D), (M, V, 6 D) -> (M, V, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_MVE.chunk(6, -1)
        seen_MVD = self.attention.causal(modulated(self.norm1(x_MVD), shift1, 1 + scale1), cache)
        x_MVD = torch.addcmul(x_MVD, gate1, seen_MVD)
        return torch.addcmul(x_MVD, gate2, self.mlp(modulated(self.norm2(x_MVD), shift2, 1 + scale2)))
