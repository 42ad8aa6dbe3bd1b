"""Sampling of a masked autoregressive model: which positions next, and which tokens there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from atoken.errors import AtokenError
from generation.masked_ar import MaskedAR, masked_counts, masked_first


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn.

    iterations: at most, each decides one position or more. scale, schedule: of guidance, on the features of the trunk;
    ``linear`` rises from 1 with the share of positions that are decided. temperature: 0 takes the most probable token.
    top_k, top_p: draw among so many, or among the most probable of so much probability together.
    Raises: AtokenError.
    """

    iterations: int = 64
    scale: float = 3.1
    schedule: Literal["linear", "constant"] = "linear"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.temperature < 0 or self.schedule not in ("linear", "constant"):
            raise AtokenError(
                "Decoding takes at least 1 iteration, a temperature of at least 0 and the schedule linear or constant."
            )
        if (self.top_k is not None and self.top_k < 1) or (self.top_p is not None and not 0 < self.top_p <= 1):
            raise AtokenError("top_k is at least 1, and top_p above 0 and at most 1.")

    def scale_at(self, positions: int, masked: int) -> float:
        """The guidance of an iteration after which so many positions are masked, as published never quite ``scale``."""
        if self.schedule == "constant":
            return self.scale
        return 1 + (self.scale - 1) * (positions - max(1, masked)) / positions


class Drawn(NamedTuple):
    """One iteration: which positions (B, L) were masked before it and which it decided, and with what guidance."""

    masked: Tensor
    decided: Tensor
    scale: float
    features: Tensor  # (B, W, F) of the decided ones, guided
    tokens: Tensor  # (B, L, V) so far


OnIteration = Callable[[int, Drawn], None]


@torch.no_grad()
def decode(
    model: MaskedAR,
    labels_B: Tensor,
    decoding: Decoding,
    generators: Sequence[torch.Generator],
    *,
    orders_BL: Tensor | None = None,
    noise_BLVK: Tensor | None = None,
    on_iteration: OnIteration | None = None,
) -> Tensor:
    """Tokens (B, L, V) int64 of each label; a sample depends on its label and its generator alone.

    orders_BL, noise_BLVK: the orders in which positions stay masked (decided from the end), and Gumbel noise, where
    they are given instead of drawn.
    """
    places, tokens = model.config.side**2, model.config.tokens
    if orders_BL is None:
        orders_BL = torch.stack([torch.randperm(places, generator=one) for one in generators])
    orders_BL = orders_BL.to(labels_B.device)
    tokens_BLV = torch.zeros(len(labels_B), places, tokens, dtype=torch.int64, device=labels_B.device)
    null_B = torch.full_like(labels_B, model.config.classes)
    masked_BL = masked_first(orders_BL, places)
    for number, count in enumerate(masked_counts(places, decoding.iterations)):
        scale, after_BL = decoding.scale_at(places, count), masked_first(orders_BL, count)
        decided_BL = masked_BL & ~after_BL
        features_BWF = _guided(model, tokens_BLV, masked_BL, labels_B, null_B, decided_BL, scale)
        draw = _Draw(decoding, generators, decided_BL, None if noise_BLVK is None else noise_BLVK[decided_BL])
        found_MV = model.channels.sampled(features_BWF.flatten(0, 1), draw)
        tokens_BLV[decided_BL] = model.out_of_order(found_MV)
        if on_iteration is not None:
            on_iteration(number, Drawn(masked_BL, decided_BL, scale, features_BWF, tokens_BLV.clone()))
        masked_BL = after_BL
    return tokens_BLV


def _guided(
    model: MaskedAR, tokens_BLV: Tensor, masked_BL: Tensor, labels_B: Tensor, null_B: Tensor, wanted_BL: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
    """(B, W, F): both halves are one batch, and there is one half alone without guidance."""
    if scale == 1:
        return model.features(tokens_BLV, masked_BL, labels_B, wanted_BL)
    both = (torch.cat(pair) for pair in ((tokens_BLV,) * 2, (masked_BL,) * 2, (labels_B, null_B), (wanted_BL,) * 2))
    conditional, null = model.features(*both).chunk(2)
    return null + scale * (conditional - null)


class _Draw:
    """Chooses a token of each decided position; those of a sample are drawn by its generator."""

    def __init__(
        self, decoding: Decoding, generators: Sequence[torch.Generator], decided_BL: Tensor, noise_MVK: Tensor | None
    ) -> None:
        self.decoding, self.generators, self.noise_MVK = decoding, generators, noise_MVK
        self.counts = decided_BL.sum(1).tolist()

    def __call__(self, number: int, logits_MK: Tensor) -> Tensor:
        if not self.decoding.temperature:
            return logits_MK.argmax(-1)
        scores_MK = self._kept(logits_MK.float() / self.decoding.temperature).log_softmax(-1)
        if self.noise_MVK is None:
            shape, device = logits_MK.shape[1:], logits_MK.device
            uniform = [
                torch.rand(count, *shape, generator=one)
                for count, one in zip(self.counts, self.generators, strict=True)
            ]
            noise_MK = -torch.log(-torch.log(torch.cat(uniform).clamp(1e-20, 1 - 1e-7))).to(device)
        else:
            noise_MK = self.noise_MVK[:, number]
        return (scores_MK + noise_MK).argmax(-1)

    def _kept(self, logits_MK: Tensor) -> Tensor:
        """Less probable tokens than ``top_k`` and ``top_p`` leave become impossible."""
        top_k, top_p = self.decoding.top_k, self.decoding.top_p
        if top_k is not None and top_k < logits_MK.shape[-1]:
            least_M1 = logits_MK.topk(top_k).values[:, -1:]
            logits_MK = logits_MK.masked_fill(logits_MK < least_M1, -torch.inf)
        if top_p is not None and top_p < 1:
            ordered_MK, index_MK = logits_MK.softmax(-1).sort(descending=True)
            beyond_MK = ordered_MK.cumsum(-1) - ordered_MK >= top_p  # the first is always kept
            logits_MK = logits_MK.masked_fill(beyond_MK.scatter(1, index_MK, beyond_MK), -torch.inf)
        return logits_MK
