"""``python -m mllm train``: the projector of a vision-language model, and its language model or LoRA."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from atoken.errors import AtokenError
from atoken.train import loop, overrides
from atoken.train.devices import without_denormals
from atoken.train.objective import Evaluate
from atoken.train.recipe import Count, NotNegative, Recipe
from atoken.train.record import Started
from mllm.assembly import assemble
from mllm.config import ATokenVLConfig
from mllm.data.batches import ConversationBatches
from mllm.data.features import FeatureFolder
from mllm.data.lengths import measure
from mllm.data.mixture import Mixture
from mllm.evaluation import right_answers
from mllm.lora import LoRA, add_lora, is_lora, lora_of
from mllm.model import ATokenVLForConditionalGeneration
from mllm.objective import AnswerObjective
from mllm.processor import ATokenVLProcessor
from mllm.slowfast import SlowFast

Trains = Literal["projector", "projector+language", "projector+lora"]
MODALITIES = {1: ("image",), 2: ("image", "video", "asset")}  # of the conversations of a stage, beside those of text


@dataclass(frozen=True)
class Training:
    """How a model is trained; ``lr`` of the recipe is the projector's.

    language_lr: learning rate of the language model or its LoRA, times ``lr``. tokens: of a micro-batch at most;
    micro_batches: of a step, over all ranks. epochs: how often each conversation is learned; 0 is by ``steps``.
    """

    trains: Trains
    stage: int
    recipe: Recipe
    language_lr: NotNegative = 1.0
    tokens: Count = 16_384
    micro_batches: Count = 8
    epochs: NotNegative = 1.0
    pooling: SlowFast = field(default_factory=SlowFast)
    lora: LoRA = field(default_factory=LoRA)


# LLaVA's rates: of its projector alone, of Oryx's and LLaVA-NeXT's scripts, and of LLaVA's scripts for LoRA. Those of
# SlowFast-LLaVA-1.5 are not published. The EMA is off: none of them has one.
_RECIPE = Recipe(warmup=100, lr=2e-5, final_lr=0.0, betas=(0.9, 0.999), weight_decay=0.0, ema=0.0)
RATES: Mapping[str, tuple[float, float]] = {
    "projector": (1e-3, 0.0), "projector+language": (2e-5, 1.0), "projector+lora": (2e-5, 10.0),
}  # fmt: skip


def training(trains: Trains, stage: int, changes: Sequence[str], start: ATokenVLConfig | None = None) -> Training:
    """That of what is trained and a stage, with what the user changes, ``key=value``.

    start: of the model that is gone on with, whose pooling and LoRA are kept unless they are changed.
    Raises: AtokenError.
    """
    rate, language = RATES[trains]
    found = Training(trains, stage, replace(_RECIPE, lr=rate), language)
    if start:
        lora = lora_of(start.lora) if start.lora else found.lora
        found = replace(found, pooling=start.settings, lora=lora)
    for change in changes:
        key, value = overrides.split(change)
        found = overrides.changed(found, [key], value, key, fixed=("trains", "stage"))
    if start and start.lora and (trains == "projector+language" or found.lora != lora_of(start.lora)):
        raise AtokenError("The model that the run starts from has LoRA; merge it first, or train it as it is.")
    return found


def model_of(
    how: Training, language: str, tower: str, start: str | None, *, in_fp32: bool
) -> tuple[ATokenVLForConditionalGeneration, ATokenVLProcessor]:
    """The model to train, what is trained of it requiring a gradient and being in fp32, and its processor.

    start: folder of a model to go on with, in place of a new one. in_fp32: for what is frozen, too, but the tower.
    Raises: AtokenError.
    """
    lora = how.trains == "projector+lora"
    if start:
        model = ATokenVLForConditionalGeneration.from_pretrained(start)
        processor = ATokenVLProcessor.from_pretrained(start)
        model.config.pooling = processor.pooling = asdict(how.pooling)
        if lora and not model.config.lora:
            model.config.lora = asdict(how.lora)
            add_lora(model.language_model, how.lora)
    else:
        fields = asdict(how.lora) if lora else None
        model, processor = assemble(language, tower, lora=fields, **asdict(how.pooling))
    choose(model, how.trains)
    if how.recipe.checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in (model.projector, model.language_model):
        for weight in module.parameters():
            weight.data = weight.data.float() if in_fp32 or weight.requires_grad else weight.data
    return model, processor


def choose(model: ATokenVLForConditionalGeneration, trains: Trains) -> None:
    """Have what is trained require a gradient, and nothing else. A trained language model has no source any more."""
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    for name, weight in model.language_model.named_parameters():
        weight.requires_grad_(trains == "projector+language" or (trains == "projector+lora" and is_lora(name)))
    if trains == "projector+language":
        model.config.language_source = model.config.language_fingerprint = None


def batches_of(
    mixture: Mixture, processor: ATokenVLProcessor, how: Training, most_broken: float, ranks: int
) -> ConversationBatches:
    """The source of a run on so many ranks. Raises: AtokenError (they cannot share out its micro-batches, no data)."""
    if how.micro_batches % ranks:
        enough = -(-how.micro_batches // ranks) * ranks
        raise AtokenError(
            f"The {how.micro_batches} micro-batches of a step cannot be shared out evenly to {ranks} ranks; set a "
            f"multiple of {ranks}, such as --set micro_batches={enough}."
        )
    lengths = measure(mixture, processor, how.tokens, most_broken, MODALITIES[how.stage])
    if not lengths.tokens.any():
        wanted = ", ".join(MODALITIES[how.stage])
        raise AtokenError(f"The data has no conversations for stage {how.stage}, which are about {wanted}.")
    return ConversationBatches(mixture, processor, lengths, how.tokens, how.recipe.seed, how.micro_batches)


def recipe_of(how: Training, source: ConversationBatches) -> Recipe:
    """The recipe, with steps for the epochs."""
    return replace(how.recipe, steps=ceil(how.epochs * source.steps_per_epoch)) if how.epochs else how.recipe


def train(
    model: ATokenVLForConditionalGeneration,
    processor: ATokenVLProcessor,
    mixture: Mixture,
    folder: Path,
    how: Training,
    *,
    start: str | None = None,
    validation: Mixture | None = None,
    features: Path | None = None,
    device: str = "cpu",
    workers: int = 1,
    zero: int | None = None,
    evaluate_every: int = 0,
    most_broken: float = 0.1,
) -> Path:
    """Train, or go on, in ``folder``; the folder of the model that is written, with its processor.

    model: as ``model_of`` gives it, from ``start``. validation: whose answers are checked before the first step, every
    ``evaluate_every`` steps, and at the end. features: where those of the tower are kept. zero: None is the plain
    engine in one process.
    Raises: as ``loop.run``.
    """
    source = batches_of(mixture, processor, how, most_broken, int(os.environ.get("WORLD_SIZE", 1)))
    recipe, config = recipe_of(how, source), model.config
    if features:
        origin = [
            config.vision_fingerprint,
            config.vision_layer,
            str(model.vision_tower.dtype),
            how.recipe.mixed_precision,
        ]
        source = replace(source, features=FeatureFolder(features, json.dumps(origin)))
    values = {
        "training": {name: value for name, value in vars(how).items() if name not in ("recipe", "epochs")},
        "model": {"vision": config.vision_fingerprint, "language": config.language_fingerprint},
        "data": {
            "conversations": int((source.lengths.tokens > 0).sum()),
            "tokens": hashlib.sha256(source.lengths.tokens.tobytes()).hexdigest(),
        },
    }
    objective = AnswerObjective(model, how.language_lr)
    evaluate: Evaluate | None = None
    rising: tuple[str, ...] = ()
    if validation:
        evaluate = partial(checked, objective, validation, processor, how.tokens)
        rising = tuple({f"right {validation.name_of(number)}": 0 for number in range(len(validation))})
        evaluate_every = evaluate_every or recipe.steps
    started = Started(
        values, ("training.", "model.", "data."), start=None if start is None else Path(start), rising=rising
    )
    with without_denormals():
        return loop.run(
            objective, recipe, source, folder, export=partial(export, objective, processor), evaluate=evaluate,
            started=started, device=device, workers=workers, zero=zero, evaluate_every=evaluate_every,
            most_broken=most_broken,
        )  # fmt: skip


def with_weights(objective: AnswerObjective, weights: Mapping[str, Tensor]) -> ATokenVLForConditionalGeneration:
    """A model of its own with the weights that an objective has, in the dtype that it is saved in, in eval mode."""
    model = objective.model
    tower = {f"vision_tower.{name}": weight for name, weight in model.vision_tower.state_dict().items()}
    found = ATokenVLForConditionalGeneration.from_pretrained(
        None, config=model.config, state_dict={**tower, **weights}, dtype=model.vision_tower.dtype
    )
    found.generation_config = model.generation_config
    return found.eval()


def export(
    objective: AnswerObjective, processor: ATokenVLProcessor, weights: Mapping[str, Tensor], folder: Path
) -> None:
    """Write the model, without frozen weights that have a source, and its processor."""
    with_weights(objective, weights).save_pretrained(folder)
    processor.save_pretrained(folder)


def checked(
    objective: AnswerObjective,
    mixture: Mixture,
    processor: ATokenVLProcessor,
    tokens: int,
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, float], np.ndarray | None]:
    """The share of right answers in each data set of a mixture; there is no image."""
    model = with_weights(objective, weights).to(next(objective.parameters()).device)
    return right_answers(model, processor, mixture, tokens), None
