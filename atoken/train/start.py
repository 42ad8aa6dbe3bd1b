"""Where a stage starts: near the best linear code, or from a continuous model on its way to a discrete one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from atoken.layers import Block
from atoken.model import ATokenConfig, ATokenModel
from atoken.tokens import SparseTokens

STEADY = 10.0  # how far a constant stands above the largest channel of the code
MOST_DIGITS = 5  # of one coefficient; more would tie codes to one another and leave many of them unused
LEVELS_A_GROUP = 6
# The thresholds of four levels before the quantiser's tanh: -1.151, -0.346, 0.459, a step of 0.805 about -0.346.
FSQ_STEP, FSQ_CENTRE = 0.805, -0.346


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


def _silence(blocks: Iterable[torch.nn.Module]) -> None:
    for block in blocks:
        assert isinstance(block, Block)
        for last in (block.attention.out, block.mlp.down):
            torch.nn.init.zeros_(last.weight)


@torch.no_grad()
def discrete_start(model: ATokenModel, config: ATokenConfig, tokens: Sequence[SparseTokens]) -> ATokenModel:
    """A discrete model with the weights of a continuous one, its projections fitted to the quantiser.

    Every quantised channel is a digit of one principal coefficient of the latents: coefficients that vary more get more
    digits (``digit_shares``), whose thresholds interleave, so that the sum of a coefficient's digits is a finer
    quantiser. The encoder's projection is fitted to give these digits, the decoder's input to read the latents off
    them, both by least squares on ``tokens``. The config must have FSQ levels of 4.
    """
    encoded = [model.encode(part) for part in tokens]
    features = torch.cat([one.features.feats for one in encoded]).double()
    latents = torch.cat([one.posterior.mean for one in encoded]).double()
    discrete = ATokenModel(config)
    discrete.load_state_dict(model.state_dict())
    assert discrete.quantiser is not None
    projection = _least_squares(features, digit_values(latents))
    values = discrete.quantiser.quantise(features @ projection).double()
    reading = _least_squares(torch.cat([values, torch.ones(len(values), 1)], dim=1), latents)
    discrete.to_latent.weight[: latents.shape[1]] = projection.T.float()
    into = discrete.decoder.inputs.weight.double()
    # The decoder's input has no bias: its position table, whose entries every token adds with weights that sum to 1,
    # takes the constant.
    discrete.decoder.position.weight.add_((into @ reading[-1]).float())
    discrete.decoder.inputs.weight.copy_(into @ reading[:-1].T)
    return discrete


def digit_values(latents: Tensor) -> Tensor:
    """(N, C) values before the quantiser whose levels are the digits of the latents (N, C), double.

    The digits of a coefficient lie in different groups of channels, so that codes are used evenly.
    """
    components, spread = principal(latents.float(), latents.shape[1])
    coefficients = (latents - latents.mean(0)) @ components.double()
    columns = []
    for k, digits in enumerate(digit_shares(spread.tolist())):
        step = float(spread[k]) * 2.9 / (3 * digits + 1) ** 0.8  # near the best uniform step for so many levels
        for digit in range(digits):
            centre = (digit - (digits - 1) / 2) * step
            columns.append((coefficients[:, k] - centre) / (digits * step) * FSQ_STEP + FSQ_CENTRE)
    groups = len(columns) // LEVELS_A_GROUP
    order = torch.arange(len(columns)).reshape(LEVELS_A_GROUP, groups).T.flatten()
    return torch.stack(columns, dim=1)[:, order]


def digit_shares(spread: Sequence[float]) -> list[int]:
    """Digits of four levels for each coefficient, as many as there are coefficients in all, for the least error.

    Each next digit goes where it lowers the squared error most; n digits make 3 n + 1 levels.
    """
    shares = [0] * len(spread)

    def gain(k: int) -> float:
        errors = [spread[k] ** 2 * (1.6 / (3 * n + 1) ** 1.85 if n else 1.0) for n in (shares[k], shares[k] + 1)]
        return errors[0] - errors[1] if shares[k] < MOST_DIGITS else -1.0

    for _ in spread:
        shares[max(range(len(spread)), key=gain)] += 1
    return shares


def _least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """(I, O): the matrix that takes inputs (N, I) to targets (N, O) best, with a little ridge."""
    gram = inputs.T @ inputs / len(inputs)
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, inputs.T @ targets / len(inputs))
