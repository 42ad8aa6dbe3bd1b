"""Where a stage starts: near the best linear code, or from an earlier model, made wider or discrete where need be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from atoken.checkpoint import fill, load_folder
from atoken.errors import CheckpointError
from atoken.layers import Block, PositionTable
from atoken.metrics.pca import principal
from atoken.model import ATokenConfig, ATokenModel, Stack
from atoken.presets import preset
from atoken.pretrain.batches import batch
from atoken.pretrain.datasets import TaskDataset
from atoken.pretrain.stages import Stage
from atoken.pretrain.start.digits import fit_digits, least_squares, read_digits, stored, write_digits
from atoken.pretrain.start.text_start import text_start
from atoken.rope import rotate, rotation
from atoken.text import TextTokenizer
from atoken.tokens import SparseTokens

MICRO_BATCHES = 24  # that a start takes its statistics from
BLANK = "blank"  # folder in that of a run

LOUD = 4.0  # size of the code in a residual stream, beside that of the latents
STEADY = 10.0  # how far a constant stands above the largest channel of the code

LOOKING = 4  # blocks of the encoder whose heads begin by looking at a neighbour
BESIDE = ((1, 0), (-1, 0), (0, 1), (0, -1)), ((1, 1), (-1, -1), (1, -1), (-1, 1))  # steps in x, y of heads, by block
INTENT = 3.6  # size of a pair of their channels: the neighbour has 2.5 nats more than what is one place farther


def begin(
    stage: Stage, start: Path | None, datasets: Mapping[str, TaskDataset]
) -> tuple[ATokenModel, TextTokenizer | None]:
    """The model before step 0, in fp32, and its text tokenizer, if it has a text side.

    start: folder of the model that the stage starts from; a stage that names none may do without. Where the text side
    is new, see ``atoken/pretrain/start/text_start.py``. Raises: CheckpointError (a start is missing, or of other
    sizes).
    """
    config = preset(stage.preset)
    if start is None:
        model = linear_start(config, _images(stage, datasets))
        return model, text_start(model)
    before = load_folder(start, dtype=torch.float32)
    model = continued(before, config, _first(stage, datasets))
    return model, TextTokenizer.load(start, before.text_length) if before.text_length else text_start(model)


def _images(stage: Stage, datasets: Mapping[str, TaskDataset]) -> list[SparseTokens]:
    """The first images of a stage. Raises: CheckpointError (it has none, or starts from another stage)."""
    if stage.start_from is not None:
        raise CheckpointError(f"Stage {stage.name} starts from {stage.start_from}; pass the folder of that model.")
    name = next((name for name, task in stage.used.items() if task.modality == "image"), None)
    if name is None:
        raise CheckpointError(f"Stage {stage.name} sees no images to start from; pass the folder of a model.")
    return [batch(stage, datasets, name, number).tokens for number in range(MICRO_BATCHES)]


def _first(stage: Stage, datasets: Mapping[str, TaskDataset]) -> Iterator[SparseTokens]:
    """The first micro-batches of the stage's own tasks."""
    for step in range(MICRO_BATCHES):
        name, before = stage.tasks_of(step)[0]
        yield batch(stage, datasets, name, before * stage.tasks[name].micro_batches).tokens


def save_blank(folder: Path, model: ATokenModel, texts: TextTokenizer | None) -> None:
    """Write what a checkpoint does not hold of a model: its sizes, and the files of its text tokenizer."""
    model.config.save_pretrained(folder / BLANK)
    if texts is not None:
        texts.save(folder / BLANK)


def blank(folder: Path) -> tuple[ATokenModel, TextTokenizer | None]:
    """The way back from ``save_blank``, for a checkpoint to fill."""
    model = ATokenModel(ATokenConfig.from_pretrained(folder / BLANK))
    return model, TextTokenizer.load(folder / BLANK, model.text_length) if model.text_length else None


@torch.no_grad()
def continued(model: ATokenModel, config: ATokenConfig, tokens: Iterable[SparseTokens]) -> ATokenModel:
    """A model of the sizes of ``config`` that goes on where ``model`` stands.

    A text side and a Gaussian decoder that the config leaves open are the model's. Where the config has more latent
    channels, the new ones start unread; where it has FSQ levels and a layer more a side, see ``discrete_start``, whose
    statistics are those of ``tokens``. Raises: CheckpointError (other sizes differ, or only ``model`` is discrete).
    """
    if model.config.fsq_levels and not config.fsq_levels:
        raise CheckpointError(
            "A continuous model cannot start from a discrete one, whose decoder reads codes alone; start from the "
            "continuous model, and make what comes of it discrete with stage 4."
        )
    config = deepcopy(config)
    for part in ("text", "gaussian_decoder"):
        setattr(config, part, getattr(config, part) or getattr(model.config, part))
    if config.text and not model.config.text:  # similarities are new, too
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
    """The layers around the latents of ``larger``: first the channels of ``model``, then those not read yet."""
    count = model.config.latent_channels
    write, read = larger.to_latent.weight.clone(), torch.zeros_like(larger.decoder.inputs.weight)
    write.unflatten(0, (2, -1))[:, :count] = model.to_latent.weight.unflatten(0, (2, -1))
    read[:, :count] = model.decoder.inputs.weight
    return {"to_latent.weight": write, "decoder.inputs.weight": read}


@torch.no_grad()
def linear_start(config: ATokenConfig, images: Sequence[SparseTokens]) -> ATokenModel:
    """A new model that begins as PCA of the images' patches, with every block adding nothing yet.

    The first C channels of both residual streams carry the coefficients, LOUD times their natural size, the last two a
    constant of either sign, so large that the norms behind the blocks are nearly linear in the code. What a block
    reads, and the pooling head, has all coefficients at the same size and no constant, or it would learn next to
    nothing of the finer ones. Scales are such that a step of Adam moves no weight by much of its size, and that what
    blocks begin to add is little beside the code. Frames 1 to 3 of a patch come out as frame 0: a still video.
    """
    model = ATokenModel(config)
    frame, count = config.patch_values // config.patch_size[0], config.latent_channels
    values = torch.cat([tokens.feats[:, :frame] for tokens in images])
    mean, (components, spread) = values.mean(0), principal(values, count)
    constant = float(STEADY * LOUD * spread[0])
    for stack in (model.encoder, model.decoder):
        _silence(stack.blocks)
        stack.position.weight.zero_()
        stack.position.weight[:, -2:] = torch.tensor([constant, -constant])
    # A norm divides by the size of what comes in, which is that of the constant.
    sizes = [constant * (2 / width) ** 0.5 for width in (config.encoder_width, config.decoder_width)]
    _read_evenly([model.encoder.norm, *_norms(model.encoder.blocks)], spread, sizes[0])
    _read_evenly(_norms(model.decoder.blocks), spread, sizes[1])
    if config.rotary_base is not None:
        _look_beside(model.encoder, config.rotary_base)
    model.encoder.inputs.weight[:count, :frame] = LOUD * components.T
    model.encoder.inputs.weight[count:].zero_()
    model.encoder.inputs.bias[:count] = -LOUD * components.T @ mean
    model.to_latent.weight.zero_()
    model.to_latent.weight[:count, :count] = spread.diag()
    model.decoder.inputs.weight.zero_()
    model.decoder.inputs.weight[:count] = LOUD * torch.eye(count)
    model.to_patch.weight.zero_()
    model.to_patch.weight[:, :count] = components.repeat(config.patch_size[0], 1) * sizes[1] / LOUD
    model.to_patch.weight[:, -2:] = (
        mean.repeat(config.patch_size[0])[:, None] * torch.tensor([0.5, -0.5]) / constant * sizes[1]
    )
    return model


def _read_evenly(norms: Iterable[torch.nn.Module], spread: Tensor, size: float) -> None:
    """Set gains of norms that divide by ``size``: the code's deviations (C,), LOUD, to one, the constant to nothing."""
    for norm in norms:
        gain_D = norm.get_parameter("weight")
        gain_D.fill_(size)
        gain_D[: len(spread)] /= LOUD * spread
        gain_D[-2:] = 0


def _look_beside(encoder: Stack, base: float) -> None:
    """Let every head begin by looking at one neighbour in its image, as the taps of a convolution do.

    After ConViT (d'Ascoli et al. 2021, arXiv 2103.10697), here by the rotary embedding: biases of queries and keys are
    aligned where the key is a head's own step away. Matching then needs fewer images (docs/recipe.md).
    """
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    for number, block in enumerate(blocks[:LOOKING]):
        biases = block.attention.qkv.bias.unflatten(0, (3, block.attention.heads, -1))
        steps = torch.tensor(BESIDE[number % len(BESIDE)]).repeat(-(-biases.shape[1] // 4), 1)[: biases.shape[1]]
        wanted = torch.zeros_like(biases[0]).unflatten(1, (4, -1, 2))  # axes t, x, y, z
        wanted[:, 1:3, :, 0] = INTENT
        biases[0] = wanted.flatten(1)
        away = torch.nn.functional.pad(-steps, (1, 1))
        biases[1] = rotate(biases[0][:, None], rotation(away, biases.shape[2], base))[:, 0]


def _norms(blocks: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    return [norm for block in blocks if isinstance(block, Block) for norm in (block.norm1, block.norm2)]


def _silence(blocks: Iterable[torch.nn.Module]) -> list[Block]:
    silent = [block for block in blocks if isinstance(block, Block)]
    for block in silent:
        for last in (block.attention.out, block.mlp.down):
            torch.nn.init.zeros_(last.weight)
    return silent


@torch.no_grad()
def discrete_start(model: ATokenModel, config: ATokenConfig, tokens: Sequence[SparseTokens]) -> ATokenModel:
    """A discrete model with the weights of a continuous one, and a block more on either side of its quantiser.

    The encoder's new block, its last, writes the latents as digits (``atoken.pretrain.start.digits``) for the
    projection to
    read; the decoder's, its first, reads them back into what the continuous decoder had there. Both are fitted on
    ``tokens``. The config must have FSQ levels of 4 and one layer more a side than the model.
    """
    discrete = ATokenModel(config)
    discrete.load_state_dict(_with_new_blocks(model, discrete))
    encoder, decoder, count = discrete.encoder, discrete.decoder, config.latent_channels
    writer, reader = _silence([encoder.blocks[-1], decoder.blocks[0]])
    latents = torch.cat([model.encode(part).latents.feats for part in tokens])
    digits = fit_digits(latents, principal(latents, count)[0], len(config.fsq_levels or ()))

    outputs = _directions(encoder.position, count)
    write_digits(writer, encoder.norm, discrete.to_latent.weight[:count], digits, outputs)
    features = torch.cat([discrete.encode(part).features.feats for part in tokens])
    discrete.to_latent.weight[:count] = stored(least_squares(features.double(), digits.values(latents)).T)

    levels = torch.cat([discrete.encode(part).latents.feats for part in tokens])
    positions = torch.cat([decoder.position(part) for part in tokens])
    target = latents @ decoder.inputs.weight.T + positions
    decoder.inputs.weight.copy_(stored(_directions(decoder.position, count)))
    read_digits(reader, decoder.inputs(levels) + positions, levels, digits, target)
    return discrete


def _with_new_blocks(model: ATokenModel, larger: ATokenModel) -> dict[str, Tensor]:
    """The weights of ``larger``, all but its encoder's last and its decoder's first block from ``model``."""
    state = larger.state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("decoder.blocks."):
            stack, part, layer, rest = name.split(".", 3)
            name = f"{stack}.{part}.{int(layer) + 1}.{rest}"
        state[name] = tensor
    return state


def _directions(positions: PositionTable, count: int) -> Tensor:
    """(D, count): orthogonal directions of a stream, some way below the size of the constant in it."""
    directions = torch.nn.init.orthogonal_(torch.empty(positions.weight.shape[1], count))
    return directions * positions.weight.square().mean().sqrt() / 4
