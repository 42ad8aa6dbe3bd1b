"""What the training room trains: a flow on dense latents, and masked tokens; both from labels of a store."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from atoken.store.batches import StoreBatch
from atoken.train.cost import Flops, count
from atoken.train.objective import Group, Objective
from generation.dit import DiT
from generation.flow import drawn_sigmas, flow_loss, mixed
from generation.masked_ar import MaskedAR, masked_first

G = TypeVar("G", DiT, MaskedAR)

DROPPED = 0.1  # share of labels that become the null condition, for guidance
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


def _codes(batch: StoreBatch) -> Tensor:
    assert batch.codes is not None
    return batch.codes
