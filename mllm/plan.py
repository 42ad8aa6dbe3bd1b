"""What training a vision-language model will take, before any weight is read: configurations and a tokenizer do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from transformers import AutoConfig

from atoken.tower import ATokenVisionConfig
from atoken.train.cost import Load, Plan, activations, parameters
from mllm.config import ATokenVLConfig
from mllm.data.batches import ConversationBatch
from mllm.data.mixture import Mixture
from mllm.model import ATokenVLForConditionalGeneration
from mllm.objective import AnswerObjective, answers
from mllm.processor import ATokenVLProcessor
from mllm.sources import language_folder
from mllm.training import Training, batches_of, choose, recipe_of

MICRO_BATCHES = 8  # that are looked at


def plan(
    mixture: Mixture, how: Training, language: str, tower: str, start: str | None, most_broken: float, **options: Any
) -> Plan:
    """The plan of a training. options: ``gpus``, ``gpu`` and ``mfu`` of ``Plan``. Raises: as ``training.train``."""
    model, processor = _sketch(how, language, tower, start)
    source = batches_of(mixture, processor, how, most_broken, max(1, options.get("gpus", 1)))
    choose(model, how.trains)
    objective = AnswerObjective(model, how.language_lr)
    batches = [source.batch(key) for key in range(MICRO_BATCHES)]
    load = Load.of(batches, [objective.counted(batch) for batch in batches], micro_batches=how.micro_batches)
    sizes = parameters(objective)
    inside = _Language(model.language_model.train())
    if how.recipe.mixed_precision:
        inside.to(torch.bfloat16)
    checkpointed = _layers(model.language_model) if how.recipe.checkpointing else []
    kept = activations(inside, max(batches, key=len), checkpointed)
    seen = sum(weight.numel() for weight in model.vision_tower.parameters())
    return Plan(
        recipe_of(how, source), {batches[0].task: load if checkpointed else load._replace(recomputed=0)},
        *sizes, kept, **options,
        facts={
            "model": f"{start or language}, tower {tower} of {seen / 1e6:,.1f} million, whole on each GPU",
            "trained": f"{how.trains}, stage {how.stage}",
            "data": f"{int((source.lengths.tokens > 0).sum()):,} conversations",
            "epochs": f"{recipe_of(how, source).steps / source.steps_per_epoch:,.1f}",
        },
    )  # fmt: skip


def _sketch(
    how: Training, language: str, tower: str, start: str | None
) -> tuple[ATokenVLForConditionalGeneration, ATokenVLProcessor]:
    """The model on the meta device, and its processor."""
    lora = asdict(how.lora) if how.trains == "projector+lora" else None
    if start:
        processor, config = ATokenVLProcessor.from_pretrained(start), ATokenVLConfig.from_pretrained(start)
        config.lora, processor.pooling = config.lora or lora, asdict(how.pooling)
    else:
        processor = ATokenVLProcessor.from_language(language, **asdict(how.pooling))
        config = ATokenVLConfig(
            vision_config=ATokenVisionConfig.from_pretrained(tower), lora=lora, pooling=processor.pooling,
            text_config=AutoConfig.from_pretrained(language_folder(language)), media_token_id=processor.media_token_id,
        )  # fmt: skip
    with torch.device("meta"):
        return ATokenVLForConditionalGeneration(config), processor


class _Language(nn.Module):
    """The language model alone, on embeddings that are there already: all but a little of what is kept."""

    def __init__(self, language: Any) -> None:
        super().__init__()
        self.language = language

    def forward(self, batch: ConversationBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch that is on the host."""
        width, dtype = self.language.config.hidden_size, self.language.dtype
        embeddings = torch.empty(1, len(batch), width, dtype=dtype, device="meta", requires_grad=True)
        return F.cross_entropy(*answers(self.language, embeddings, batch)), {}


def _layers(language: nn.Module) -> list[nn.Module]:
    """What activation checkpointing computes again: the longest list of modules."""
    lists = [[*module] for module in language.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])
