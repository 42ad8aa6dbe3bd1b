"""The model that a stage starts with: a new one near the best linear code, or an earlier one, adapted to its sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from atoken.checkpoint import fill, load_folder
from atoken.errors import CheckpointError
from atoken.model import ATokenConfig, ATokenModel
from atoken.presets import preset
from atoken.pretrain.batches import batch
from atoken.pretrain.datasets import Datasets, TaskDataset
from atoken.pretrain.stages import Stage
from atoken.pretrain.start.discrete_start import discrete_start
from atoken.pretrain.start.linear_start import linear_start
from atoken.pretrain.start.text_start import text_start
from atoken.text import TextTokenizer
from atoken.tokens import SparseTokens

MICRO_BATCHES = 24  # whose statistics a start uses
BLANK = "blank"  # subfolder of a run's folder


def begin(stage: Stage, start: Path | None, datasets: Datasets) -> tuple[ATokenModel, TextTokenizer | None]:
    """The model before step 0, in fp32, and its text tokenizer, if it has a text side.

    start: folder of the model that the stage starts from; None is allowed for a stage that names no such model. A new
    text side begins as in ``text_start``. Raises: CheckpointError (a start is missing, or its sizes differ).
    """
    config = preset(stage.preset)
    if start is None:
        model = linear_start(config, _images(stage, datasets))
        return model, text_start(model, datasets.data, stage)
    before = load_folder(start, dtype=torch.float32)
    model = continued(before, config, _first(stage, datasets))
    if before.text_length:
        return model, TextTokenizer.load(start, before.text_length)
    return model, text_start(model, datasets.data, stage)


def _images(stage: Stage, datasets: Mapping[str, TaskDataset]) -> list[SparseTokens]:
    """The first images of a stage. Raises: CheckpointError (it has none, or starts from another stage)."""
    if stage.start_from is not None:
        raise CheckpointError(f"Stage {stage.name} starts from {stage.start_from}; pass the folder of that model.")
    name = next((name for name, task in stage.used.items() if task.modality == "image"), None)
    if name is None:
        raise CheckpointError(f"Stage {stage.name} has no images to start from; pass the folder of a model.")
    return [batch(stage, datasets, name, number).tokens for number in range(MICRO_BATCHES)]


def _first(stage: Stage, datasets: Mapping[str, TaskDataset]) -> Iterator[SparseTokens]:
    """The first micro-batches of the stage's own tasks."""
    for step in range(MICRO_BATCHES):
        name, before = stage.tasks_of(step)[0]
        yield batch(stage, datasets, name, before * stage.tasks[name].micro_batches).tokens


def save_blank(folder: Path, model: ATokenModel, texts: TextTokenizer | None) -> None:
    """Write what a checkpoint lacks of a model: its configuration and the files of its text tokenizer."""
    model.config.save_pretrained(folder / BLANK)
    if texts is not None:
        texts.save(folder / BLANK)


def blank(folder: Path) -> tuple[ATokenModel, TextTokenizer | None]:
    """The model that ``save_blank`` wrote, whose weights a checkpoint then fills, and its text tokenizer."""
    model = ATokenModel(ATokenConfig.from_pretrained(folder / BLANK))
    return model, TextTokenizer.load(folder / BLANK, model.text_length) if model.text_length else None


@torch.no_grad()
def continued(model: ATokenModel, config: ATokenConfig, tokens: Iterable[SparseTokens]) -> ATokenModel:
    """A model with the sizes of ``config`` and the weights of ``model``.

    The text side is that of the model, whose words it knows, or else of the config; a Gaussian decoder that the config
    does not specify is that of the model. If the config has more latent channels, the decoder ignores the new ones at
    first. If it has FSQ levels and one more layer on each side, the result is that of ``discrete_start`` with
    statistics of ``tokens``. Raises: CheckpointError (other sizes differ, or only ``model`` is discrete).
    """
    if model.config.fsq_levels and not config.fsq_levels:
        raise CheckpointError(
            "A continuous model cannot start from a discrete one, whose decoder reads codes alone; start from a "
            "continuous model, and make the result discrete with stage 4."
        )
    config = deepcopy(config)
    config.text = model.config.text or config.text
    config.gaussian_decoder = config.gaussian_decoder or model.config.gaussian_decoder
    if config.text and not model.config.text:  # similarities are new as well
        model.logit_scale.fill_(config.logit_scale_init)
        model.logit_bias.fill_(config.logit_bias_init)
    if config.fsq_levels and not model.config.fsq_levels and config.encoder_layers == model.config.encoder_layers + 1:
        return discrete_start(model, config, list(tokens))
    larger = ATokenModel(config)
    state = larger.state_dict() | model.state_dict()
    if config.latent_channels > model.config.latent_channels:
        state |= _widened(model, larger)
    return fill(larger, state, "the model that the stage starts from")


def _widened(model: ATokenModel, larger: ATokenModel) -> dict[str, Tensor]:
    """The layers around the latents of ``larger``: channels of ``model``, then new ones that the decoder ignores."""
    count = model.config.latent_channels
    write, read = larger.to_latent.weight.clone(), torch.zeros_like(larger.decoder.inputs.weight)
    write.unflatten(0, (2, -1))[:, :count] = model.to_latent.weight.unflatten(0, (2, -1))
    read[:, :count] = model.decoder.inputs.weight
    return {"to_latent.weight": write, "decoder.inputs.weight": read}
