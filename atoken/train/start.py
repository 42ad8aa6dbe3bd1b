"""Where a stage starts: near the best linear code, or from a continuous model on its way to a discrete one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from atoken.layers import Block, PositionTable
from atoken.model import ATokenConfig, ATokenModel
from atoken.tokens import SparseTokens
from atoken.train.digits import fit_digits, least_squares, read_digits, stored, write_digits

STEADY = 10.0  # how far a constant stands above the largest channel of the code


@torch.no_grad()
def linear_start(config: ATokenConfig, pictures: Sequence[SparseTokens]) -> ATokenModel:
    """A new model that begins as PCA of the pictures' patches, with every block adding nothing yet.

    The first C channels of both residual streams carry the coefficients at their natural size, the last two a constant
    of either sign, so large that the norms behind the blocks are nearly linear in the code. Scales are such that a step
    of Adam moves no weight by much of its size. Frames 1 to 3 of a patch come out as frame 0: a still clip.
    """
    model = ATokenModel(config)
    frame, count = config.patch_values // config.patch_size[0], config.latent_channels
    values = torch.cat([tokens.feats[:, :frame] for tokens in pictures])
    mean, (components, spread) = values.mean(0), principal(values, count)
    constant = float(STEADY * spread[0])
    for stack in (model.encoder, model.decoder):
        _silence(stack.blocks)
        stack.position.weight.zero_()
        stack.position.weight[:, -2:] = torch.tensor([constant, -constant])
    # A norm divides by the size of what comes in, which is that of the constant.
    sizes = [constant * (2 / width) ** 0.5 for width in (config.encoder_width, config.decoder_width)]
    model.encoder.inputs.weight[:count, :frame] = components.T
    model.encoder.inputs.weight[count:].zero_()
    model.encoder.inputs.bias[:count] = -components.T @ mean
    model.to_latent.weight.zero_()
    model.to_latent.weight[:count, :count] = torch.eye(count) * sizes[0]
    model.decoder.inputs.weight.zero_()
    model.decoder.inputs.weight[:count] = torch.eye(count)
    model.to_patch.weight.zero_()
    model.to_patch.weight[:, :count] = components.repeat(config.patch_size[0], 1) * sizes[1]
    model.to_patch.weight[:, -2:] = (
        mean.repeat(config.patch_size[0])[:, None] * torch.tensor([0.5, -0.5]) / constant * sizes[1]
    )
    return model


def principal(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` principal components of rows (N, P) as columns (P, count), and their standard deviations."""
    centred = (values - values.mean(0)).double()
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    return vectors[:, -count:].flip(1).float(), variances[-count:].flip(0).sqrt().float()


def _silence(blocks: Iterable[torch.nn.Module]) -> list[Block]:
    silent = [block for block in blocks if isinstance(block, Block)]
    for block in silent:
        for last in (block.attention.out, block.mlp.down):
            torch.nn.init.zeros_(last.weight)
    return silent


@torch.no_grad()
def discrete_start(model: ATokenModel, config: ATokenConfig, tokens: Sequence[SparseTokens]) -> ATokenModel:
    """A discrete model with the weights of a continuous one, and a block more on either side of its quantiser.

    The encoder's new block, its last, writes the latents as digits (``atoken.train.digits``) for the projection to
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
            room, part, layer, rest = name.split(".", 3)
            name = f"{room}.{part}.{int(layer) + 1}.{rest}"
        state[name] = tensor
    return state


def _directions(positions: PositionTable, count: int) -> Tensor:
    """(D, count): orthogonal directions of a stream, some way below the size of the constant in it."""
    directions = torch.nn.init.orthogonal_(torch.empty(positions.weight.shape[1], count))
    return directions * positions.weight.square().mean().sqrt() / 4
