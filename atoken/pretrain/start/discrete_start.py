"""A discrete model that begins with the weights of a continuous one, and a new block on each side of its quantiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atoken.layers import PositionTable
from atoken.metrics.pca import principal
from atoken.model import ATokenConfig, ATokenModel
from atoken.pretrain.start.digits import fit_digits, least_squares, read_digits, stored, write_digits
from atoken.pretrain.start.linear_start import silenced
from atoken.tokens import SparseTokens


@torch.no_grad()
def discrete_start(model: ATokenModel, config: ATokenConfig, tokens: Sequence[SparseTokens]) -> ATokenModel:
    """A discrete model with the weights of a continuous one, and one more block on each side of the quantiser.

    The new block of the encoder, its last, writes the latents as digits (``atoken.pretrain.start.digits``), which the
    projection reads; that of the decoder, its first, turns them back into the input of the continuous decoder. Both
    are fitted on ``tokens``. The config must have FSQ levels of 4 and one layer more on each side than the model.
    """
    discrete = ATokenModel(config)
    discrete.load_state_dict(_with_new_blocks(model, discrete))
    encoder, decoder, count = discrete.encoder, discrete.decoder, config.latent_channels
    writer, reader = silenced([encoder.blocks[-1], decoder.blocks[0]])
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
    """The weights of ``model``, and of ``larger`` in the encoder's last and the decoder's first block."""
    state = larger.state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("decoder.blocks."):
            _, _, layer, rest = name.split(".", 3)
            name = f"decoder.blocks.{int(layer) + 1}.{rest}"
        state[name] = tensor
    return state


def _directions(positions: PositionTable, count: int) -> Tensor:
    """(D, count): orthogonal directions of a residual stream, a quarter of the size of the constant in it."""
    directions = torch.nn.init.orthogonal_(torch.empty(positions.weight.shape[1], count))
    return directions * positions.weight.square().mean().sqrt() / 4
