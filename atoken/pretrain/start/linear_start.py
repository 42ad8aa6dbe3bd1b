"""A new model that begins as the best linear code (PCA) of images' patches, with blocks that add nothing yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from atoken.layers import Block
from atoken.metrics.pca import principal
from atoken.model import ATokenConfig, ATokenModel
from atoken.rope import rotate, rotation
from atoken.tokens import SparseTokens
from atoken.transformer import Stack

CODE_SCALE = 4.0  # of the code in a residual stream, relative to the latents
CONSTANT_SCALE = 10.0  # of a constant in the stream, relative to the largest channel of the code
NEIGHBOUR_BLOCKS = 4  # first blocks of the encoder, whose heads begin by attending to one neighbour
NEIGHBOURS = (
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((1, 1), (-1, -1), (1, -1), (-1, 1)),
)  # steps in x, y of heads, by block
BIAS = 3.6  # size of a pair of their channels: the logit of the neighbour is 2.5 above that of the patch beyond it


@torch.no_grad()
def linear_start(config: ATokenConfig, images: Sequence[SparseTokens]) -> ATokenModel:
    """A new model that begins as PCA of the images' patches.

    The first C channels of both residual streams carry the principal coefficients times CODE_SCALE, the last two a
    constant and its negative, so large that the norms after the blocks are nearly linear in the code. The input norms
    of the blocks and of the pooling head scale all coefficients to one size and remove the constant; otherwise the
    finer coefficients would hardly be learned. The scales are chosen so that a step of Adam changes no weight by much
    of its size, and that what the blocks begin to add is small compared to the code. Frames 1 to 3 of a patch are
    decoded as frame 0, that is, as a still video.
    """
    model = ATokenModel(config)
    frame, count = config.patch_values // config.patch_size[0], config.latent_channels
    values = torch.cat([tokens.feats[:, :frame] for tokens in images])
    mean, (components, spread) = values.mean(0), principal(values, count)
    constant = float(CONSTANT_SCALE * CODE_SCALE * spread[0])
    for stack in (model.encoder, model.decoder):
        silenced(stack.blocks)
        stack.position.weight.zero_()
        stack.position.weight[:, -2:] = torch.tensor([constant, -constant])
    # A norm divides by the size of its input, which is that of the constant.
    sizes = [constant * (2 / width) ** 0.5 for width in (config.encoder_width, config.decoder_width)]
    _read_evenly([model.encoder.norm, *_norms(model.encoder.blocks)], spread, sizes[0])
    _read_evenly(_norms(model.decoder.blocks), spread, sizes[1])
    if config.rotary_base is not None:
        _attend_to_neighbours(model.encoder, config.rotary_base)
    model.encoder.inputs.weight[:count, :frame] = CODE_SCALE * components.T
    model.encoder.inputs.weight[count:].zero_()
    model.encoder.inputs.bias[:count] = -CODE_SCALE * components.T @ mean
    model.to_latent.weight.zero_()
    model.to_latent.weight[:count, :count] = spread.diag()
    model.decoder.inputs.weight.zero_()
    model.decoder.inputs.weight[:count] = CODE_SCALE * torch.eye(count)
    model.to_patch.weight.zero_()
    model.to_patch.weight[:, :count] = components.repeat(config.patch_size[0], 1) * sizes[1] / CODE_SCALE
    model.to_patch.weight[:, -2:] = (
        mean.repeat(config.patch_size[0])[:, None] * torch.tensor([0.5, -0.5]) / constant * sizes[1]
    )
    return model


def _read_evenly(norms: Iterable[torch.nn.Module], spread: Tensor, size: float) -> None:
    """Set gains of norms that divide by ``size``: the code gets deviation 1 in each channel, the constant becomes 0.

    spread: (C,) deviations of the code before CODE_SCALE.
    """
    for norm in norms:
        gain_D = norm.get_parameter("weight")
        gain_D.fill_(size)
        gain_D[: len(spread)] /= CODE_SCALE * spread
        gain_D[-2:] = 0


def _attend_to_neighbours(encoder: Stack, base: float) -> None:
    """Let every head begin by attending to one neighbour of a patch, as the taps of a convolution do.

    After ConViT (d'Ascoli et al. 2021, arXiv 2103.10697), here by the rotary embedding: the biases of queries and keys
    are aligned if the key is one step of the head away. Matching with texts then needs fewer images (docs/log.md).
    """
    blocks = [block for block in encoder.blocks if isinstance(block, Block)]
    for number, block in enumerate(blocks[:NEIGHBOUR_BLOCKS]):
        biases = block.attention.qkv.bias.unflatten(0, (3, block.attention.heads, -1))
        steps = torch.tensor(NEIGHBOURS[number % len(NEIGHBOURS)]).repeat(-(-biases.shape[1] // 4), 1)[
            : biases.shape[1]
        ]
        wanted = torch.zeros_like(biases[0]).unflatten(1, (4, -1, 2))  # axes t, x, y, z
        wanted[:, 1:3, :, 0] = BIAS
        biases[0] = wanted.flatten(1)
        away = torch.nn.functional.pad(-steps, (1, 1))
        biases[1] = rotate(biases[0][:, None], rotation(away, biases.shape[2], base))[:, 0]


def _norms(blocks: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    return [norm for block in blocks if isinstance(block, Block) for norm in (block.norm1, block.norm2)]


def silenced(blocks: Iterable[torch.nn.Module]) -> list[Block]:
    """The blocks, set to add nothing to the residual stream."""
    silent = [block for block in blocks if isinstance(block, Block)]
    for block in silent:
        for last in (block.attention.out, block.mlp.down):
            torch.nn.init.zeros_(last.weight)
    return silent
