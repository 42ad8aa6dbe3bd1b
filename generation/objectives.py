"""What the training room trains: a flow on dense latents, and masked tokens; both from labels of a store."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from atoken.store.batches import StoreBatch
from atoken.train.cost import count
from atoken.train.objective import Objective
from generation.dit import DiT
from generation.flow import drawn_sigmas, flow_loss, mixed
from generation.masked_ar import MaskedAR, masked_first

DROPPED = 0.1  # share of labels that become the null condition, for guidance
LEAST_MASKED = 0.7  # share of positions; MAR draws it from a normal distribution of mean 1 and deviation 0.25, cut off


class FlowObjective(Objective[StoreBatch]):
    """Mean square and cosine of velocities (``flow.flow_loss``); what is drawn is a function of the batch."""

    def __init__(self, model: DiT) -> None:
        super().__init__()
        self.model = model
        self._flops: dict[Any, int] = {}

    def forward(self, batch: StoreBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its two terms."""
        data, draws = _latents(batch), torch.Generator().manual_seed(batch.noise % 2**63)
        sigma_B = drawn_sigmas(len(data), draws).to(data.device)
        noise = torch.randn(data.shape, generator=draws).to(data.device)
        labels_B = _dropped(batch.label_ids, self.model.config.classes, draws)
        loss = flow_loss(self.model(mixed(data, noise, sigma_B), sigma_B, labels_B), data, noise)
        return loss.total, {"square": loss.square.mean().detach(), "cosine": loss.cosine.mean().detach()}

    def layout(self, batch: StoreBatch) -> Any:
        """Samples and grid."""
        return _latents(batch).shape

    def flops(self, batch: StoreBatch) -> int:
        """As ``atoken.train.cost.count`` counts them on the meta device, once for each shape."""
        if (shape := self.layout(batch)) not in self._flops:
            with torch.device("meta"):
                model = DiT.from_config(self.model.config)
            found = count(FlowObjective(model), batch.to("meta"))
            self._flops[shape] = found.forward + found.backward
        return self._flops[shape]


class MaskedObjective(Objective[StoreBatch]):
    """Cross-entropy of the tokens of masked positions (MAR, TokenBridge); dropout is drawn from the batch, too."""

    def __init__(self, model: MaskedAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: StoreBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, in nats a token."""
        tokens_BLV, draws = _codes(batch), torch.Generator().manual_seed(batch.noise % 2**63)
        samples, places, _ = tokens_BLV.shape
        orders_BL = torch.stack([torch.randperm(places, generator=draws) for _ in range(samples)])
        masked_BL = masked_first(orders_BL, masked_count(places, draws)).to(tokens_BLV.device)
        labels_B = _dropped(batch.label_ids, self.model.config.classes, draws)
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
        loss = self.model.loss(tokens_BLV, masked_BL, labels_B)
        return loss, {"cross_entropy": loss.detach()}

    def layout(self, batch: StoreBatch) -> Any:
        """Samples and tokens; how many are masked only changes sizes."""
        return _codes(batch).shape

    def flops(self, batch: StoreBatch) -> int:
        """Three times those of the products of a forward pass, with as many masked positions as on average."""
        return 3 * batch.samples * masked_flops(self.model)


def masked_count(places: int, draws: torch.Generator) -> int:
    """How many positions are masked: a truncated normal of mean 1 and deviation 0.25 (MAR, section 4)."""
    low = torch.special.ndtr(torch.tensor((LEAST_MASKED - 1) / 0.25, dtype=torch.float64))
    uniform = low + (0.5 - low) * torch.rand((), generator=draws, dtype=torch.float64)
    share = 1 + 0.25 * float(torch.special.ndtri(uniform))
    return min(max(-int(-places * share // 1), 1), places)


def masked_flops(model: MaskedAR) -> int:
    """Products of a forward pass on one sample at the mean share of masked positions, 0.86."""
    config = model.config
    places = config.side**2
    masked = round(0.86 * places)
    seen = {"encoder": config.buffer + places - masked, "decoder": config.buffer + places}
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            rows = next((rows for part, rows in seen.items() if name.startswith(part)), None)
            if rows is None:
                once = re.search(r"\.(condition|embeddings|classifiers)\b", name)
                rows = (masked if once else masked * config.tokens) if name.startswith("channels.") else places
            total += 2 * rows * module.weight.numel()
    for part, (width, depth, _) in (("encoder", config.encoder_size), ("decoder", config.decoder_size)):
        total += depth * 4 * seen[part] ** 2 * width
    return total + config.head_size[1] * 4 * masked * config.tokens**2 * config.head_size[0]


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
