"""What the training package trains of a vision-language model: the projector, and the language model or its LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.train.cost import Flops
from atoken.train.objective import Group, Objective
from mllm.data.batches import ConversationBatch
from mllm.data.features import keep
from mllm.flops import flops_of
from mllm.model import ATokenVLForConditionalGeneration
from mllm.slowfast import ASSET, FEATURE
from mllm.supervision import IGNORED


class AnswerObjective(Objective[ConversationBatch]):
    """Cross-entropy of answers, the mean over all targets of a step. What requires a gradient is trained.

    language_lr: learning rate of the language model or its LoRA, times that of the projector. The tower is no module of
    this one: each rank has it whole, in its own dtype, and no checkpoint has it.
    """

    def __init__(self, model: ATokenVLForConditionalGeneration, language_lr: float = 1.0) -> None:
        super().__init__()
        self.projector, self.language_model = model.projector, model.language_model
        self._whole = (model,)
        self.language_lr = language_lr
        self._trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        self._counted = flops_of(model)

    @property
    def model(self) -> ATokenVLForConditionalGeneration:
        """The model, with the tower."""
        return self._whole[0]

    def forward(self, batch: ConversationBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, in nats a token, and the share of targets that are the most probable token.

        The projector runs once, with media or without, so that all ranks run the same modules.
        """
        self.model.vision_tower.to(batch.input_ids.device)
        torch.manual_seed(batch.noise % 2**63)  # for a language model with dropout
        media = self.model.encode_media(batch.media)
        keep(media)
        embeddings = self.model.embed(batch.input_ids, media)
        if not media:
            width, at = self.model.config.vision_config.hidden_size, embeddings.device
            unused = torch.zeros(1, width, device=at), torch.zeros(1, 3, device=at)
            embeddings = embeddings + 0 * self.projector(*unused, torch.tensor([ASSET, FEATURE], device=at)).sum()
        logits, targets = answers(self.language_model, embeddings, batch)
        loss = F.cross_entropy(logits, targets, reduction="sum") / batch.mean_supervised
        return loss, {"right": (logits.argmax(-1) == targets).float().mean()}

    def parameter_groups(self) -> Sequence[Group]:
        """Matrices decay, others do not; the projector and the language model have learning rates of their own."""
        found = []
        for group in super().parameter_groups():
            for name, rate in (("projector.", 1.0), ("language_model.", self.language_lr)):
                names = tuple(one for one in group.names if one in self._trained and one.startswith(name))
                found += [group._replace(names=names, lr_scale=rate)] if names else []
        return found

    def counted(self, batch: ConversationBatch) -> Flops:
        """As ``flops_of`` has them."""
        return self._counted(batch)

    def flops(self, batch: ConversationBatch) -> int:
        """Forward and backward."""
        return sum(self.counted(batch)[:2])


def answers(language: Any, embeddings: Tensor, batch: ConversationBatch) -> tuple[Tensor, Tensor]:
    """Logits (S, V) in fp32 of the targets (S,) of a batch, and these; no other logits are computed.

    embeddings: (1, L, E); they may be on another device than the batch.
    """
    device = embeddings.device
    before = (batch.labels[0, 1:] != IGNORED).nonzero()[:, 0]  # the token before tells each target
    mask = batch.attention_mask.to(device)
    if language.config._attn_implementation == "eager":  # which adds it
        mask = torch.where(mask, 0.0, torch.finfo(embeddings.dtype).min).to(embeddings.dtype)
    found = language(
        inputs_embeds=embeddings, attention_mask=mask,
        position_ids=batch.position_ids.to(device), use_cache=False, logits_to_keep=before.to(device),
    )  # fmt: skip
    return found.logits[0].float(), batch.labels[0, 1:][before].to(device)
