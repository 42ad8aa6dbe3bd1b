"""What the training room trains: flows on latents from labels or captions of a store, and masked tokens from labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from atoken.store.batches import StoreBatch
from atoken.tokens import SparseTokens
from atoken.train.cost import Flops, count
from atoken.train.objective import Group, Objective
from generation.dit import DiT
from generation.flow import drawn_sigmas, flow_loss, mixed, shift_of, shifted
from generation.masked_ar import MaskedAR, masked_first
from generation.mmdit import MMDiT
from generation.text import Encoder, TextFeatures

G = TypeVar("G", bound=ModelMixin)

DROPPED = 0.1  # share of conditions that become the null condition, for guidance
LEAST_MASKED = 0.7  # share of positions; MAR draws it from a normal distribution of mean 1 and deviation 0.25, cut off


class Generation(Objective[StoreBatch], Generic[G]):
    """A generator and its loss; what it draws is a function of the batch."""

    def __init__(self, model: G) -> None:
        super().__init__()
        self.model = model
        self._counted: dict[Hashable, Flops] = {}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Those that can be computed again for the gradient."""
        return ()

    def work(self, batch: StoreBatch) -> Hashable:
        """What decides how much work a batch is."""
        return self.layout(batch)

    def flops(self, batch: StoreBatch) -> int:
        """Forward and backward, as ``counted`` has them."""
        return sum(self.counted(batch)[:2])

    def counted(self, batch: StoreBatch) -> Flops:
        """As ``atoken.train.cost.count`` has them, once for each ``work``; ``recomputed`` is of all ``blocks``."""
        if (work := self.work(batch)) not in self._counted:
            twin, there = self.on_meta(batch)
            self._counted[work] = count(twin, there, twin.blocks)
        return self._counted[work]

    def on_meta(self, batch: StoreBatch) -> tuple[Self, StoreBatch]:
        """A new one that takes no memory, and the batch for it, whose codes and labels are on the host."""
        with torch.device("meta"):
            twin = type(self)(type(self.model).from_config(self.model.config))
        return twin, replace(batch.to("cpu"), latents=_latents(batch).to("meta"))


class FlowObjective(Generation[DiT]):
    """Mean square and cosine of velocities (``flow.flow_loss``)."""

    def forward(self, batch: StoreBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its two terms."""
        data, draws = _latents(batch), torch.Generator().manual_seed(batch.noise % 2**63)
        sigma_B = drawn_sigmas(len(data), draws).to(data.device)
        noise = torch.randn(data.shape, generator=draws).to(data.device)
        labels_B = _dropped(batch.label_ids, self.model.config.classes, draws)
        loss = flow_loss(self.model(mixed(data, noise, sigma_B), sigma_B, labels_B), data, noise)
        return loss.total, {"square": loss.square.mean().detach(), "cosine": loss.cosine.mean().detach()}

    def parameter_groups(self) -> list[Group]:
        """All is trained but the fixed positions."""
        groups = super().parameter_groups()
        return [group._replace(names=tuple(n for n in group.names if n != "model.positions")) for group in groups]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Of the transformer."""
        return list(self.model.blocks)

    def layout(self, batch: StoreBatch) -> Hashable:
        """Samples and grid."""
        return _latents(batch).shape


class TextFlowObjective(Generation[MMDiT]):
    """``FlowObjective`` of packed images and videos, and their captions, with more noise for more tokens and frames.

    encoders: frozen, and no part of what is trained or saved. A caption is dropped for each of them on its own, with a
    probability by which all of them are dropped at once as often as a label is (Esser et al. 2024, section 5.3.2).
    """

    def __init__(self, model: MMDiT, encoders: Sequence[Encoder]) -> None:
        super().__init__(model)
        self.encoders = tuple(encoders)
        self.dropped = DROPPED ** (1 / len(encoders))

    def forward(self, batch: StoreBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss over all tokens, and its two terms."""
        tokens, draws = _packed(batch), torch.Generator().manual_seed(batch.noise % 2**63)
        device, samples = tokens.feats.device, len(tokens.lengths)
        steps = (tokens.reduce_coords("amax")[:, 0] + 1).tolist()
        shift_B = torch.tensor([shift_of(t, n // t) for t, n in zip(steps, tokens.lengths, strict=True)])
        sigma_B = shifted(drawn_sigmas(samples, draws), shift_B).to(device)
        noise = torch.randn(tokens.feats.shape, generator=draws).to(device)
        kept_EB = (torch.rand(len(self.encoders), samples, generator=draws) >= self.dropped).tolist()
        encoded = [encoder(batch.captions).kept(kept) for encoder, kept in zip(self.encoders, kept_EB, strict=True)]
        point = mixed(tokens.feats, noise, sigma_B[tokens.sample_N.to(device)])
        velocity = self.model(tokens.with_feats(point), sigma_B, tuple(one.to(device) for one in encoded))
        loss = flow_loss(velocity, tokens.feats, noise)
        return loss.total, {"square": loss.square.mean().detach(), "cosine": loss.cosine.mean().detach()}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Of the transformer."""
        return list(self.model.blocks)

    def work(self, batch: StoreBatch) -> Hashable:
        """Tokens of the samples, and of their captions by each encoder in the mean."""
        return tuple(sorted(_packed(batch).lengths)), self._text_lengths(batch)

    def _text_lengths(self, batch: StoreBatch) -> tuple[int, ...]:
        return tuple(-(-sum(one.lengths(batch.captions)) // batch.samples) for one in self.encoders)

    def on_meta(self, batch: StoreBatch) -> tuple[Self, StoreBatch]:
        """As of others, with captions of one length, none of which is dropped."""
        with torch.device("meta"):
            model = MMDiT.from_config(self.model.config)
        lengths = zip(self.encoders, self._text_lengths(batch), strict=True)
        twin = type(self)(model, [_OfOneLength(one.width, one.pooled_width, length) for one, length in lengths])
        twin.dropped = 0.0
        there = batch.to("cpu")
        tokens = _packed(there)
        return twin, replace(there, latents=tokens.with_feats(tokens.feats.to("meta")))


@dataclass(frozen=True)
class _OfOneLength:
    """An encoder to count with: each text has so many features, which take no memory."""

    width: int
    pooled_width: int
    length: int

    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        count = len(texts)
        tokens = torch.empty(count * self.length, self.width, device="meta")
        return TextFeatures(tokens, (self.length,) * count, torch.empty(count, self.pooled_width, device="meta"))

    def lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        return (self.length,) * len(texts)


class MaskedObjective(Generation[MaskedAR]):
    """Cross-entropy of the tokens of masked positions (MAR, TokenBridge); dropout is drawn from the batch, too."""

    def forward(self, batch: StoreBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, in nats a token."""
        tokens_BLV, draws = _codes(batch), torch.Generator().manual_seed(batch.noise % 2**63)
        samples, places, _ = tokens_BLV.shape
        masked = masked_count(places, draws)
        orders_BL = torch.stack([torch.randperm(places, generator=draws) for _ in range(samples)])
        masked_BL = masked_first(orders_BL, masked).to(tokens_BLV.device)
        labels_B = _dropped(batch.label_ids, self.model.config.classes, draws)
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
        loss = self.model.loss(tokens_BLV, masked_BL, labels_B)
        return loss, {"cross_entropy": loss.detach()}

    def layout(self, batch: StoreBatch) -> Hashable:
        """Samples and tokens; how many are masked only changes sizes."""
        return _codes(batch).shape

    def work(self, batch: StoreBatch) -> Hashable:
        """Samples, tokens, and how many positions are masked."""
        draws = torch.Generator().manual_seed(batch.noise % 2**63)
        return self.layout(batch), masked_count(_codes(batch).shape[1], draws)


def masked_count(places: int, draws: torch.Generator) -> int:
    """How many positions are masked: a truncated normal of mean 1 and deviation 0.25 (MAR, section 4)."""
    low = torch.special.ndtr(torch.tensor((LEAST_MASKED - 1) / 0.25, dtype=torch.float64))
    uniform = low + (0.5 - low) * torch.rand((), generator=draws, dtype=torch.float64)
    share = 1 + 0.25 * float(torch.special.ndtri(uniform))
    return min(max(-int(-places * share // 1), 1), places)


def _dropped(label_ids_B: Tensor, null: int, draws: torch.Generator) -> Tensor:
    """Labels of which some are the null condition; those that have none are, too."""
    dropped_B = (torch.rand(len(label_ids_B), generator=draws) < DROPPED).to(label_ids_B.device)
    return torch.where(dropped_B | (label_ids_B < 0), null, label_ids_B)


def _latents(batch: StoreBatch) -> Tensor:
    assert isinstance(batch.latents, Tensor)
    return batch.latents


def _packed(batch: StoreBatch) -> SparseTokens:
    assert isinstance(batch.latents, SparseTokens)
    return batch.latents


def _codes(batch: StoreBatch) -> Tensor:
    assert batch.codes is not None
    return batch.codes
