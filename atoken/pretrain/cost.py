"""What a step of training costs: FLOPs, the share of the device's peak that it reaches (MFU), memory, time.

All of it follows from the configuration and from the tokens of each sample in each of its tiles; nothing is run. One
multiplication with its addition is 2 FLOPs; norms, activations, rotations and losses are not counted, nor are the
teachers. Shape letters: ``atoken/tokens.py``; ``F`` is the hidden width of an MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from operator import or_

import torch
from torch import nn

from atoken.gaussian_decoder import OUTPUTS, SHIFT, Windows
from atoken.model import ATokenConfig
from atoken.tokens import SparseTokens

Tiles = tuple[int, ...]  # tokens of one sample in each of its tiles
FP32 = 4  # bytes of one number


@dataclass(frozen=True)
class Part:
    """One part of the network for one batch: its FLOPs forward, and the bytes it keeps for the gradient.

    name: beginning of its parameters' names. linear: FLOPs in proportion to tokens. attention: FLOPs in proportion to
    their squares, logits and weighted sums. entry: bytes that stay of a block that is computed again for the gradient;
    0 for what is no block.
    """

    name: str
    linear: int
    attention: int = 0
    kept: int = 0
    entry: int = 0


@dataclass(frozen=True)
class Flops:
    """FLOPs of a step.

    recomputed: of activation checkpointing, work but no progress: each block forward once more (torch stops before the
    block's last product, which is not deducted).
    """

    forward: int
    backward: int
    recomputed: int = 0

    @property
    def counted(self) -> int:
        """What MFU counts: forward and backward (Chowdhery et al. 2022, appendix B)."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Parameters:
    """How many numbers are trained, and how many only used."""

    trained: int
    frozen: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by what they hold.

    Not in it: what losses and teachers keep, gradients of activations, buffers of communication, layers that ZeRO-3
    has gathered, and the allocator's gaps.
    """

    weights: int
    gradients: int
    master: int
    moments: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Pace:
    """How fast a stage goes."""

    seconds_per_step: float
    tokens_per_second: float
    hours: float


def tiles(tokens: SparseTokens, steps: int) -> list[Tiles]:
    """Tokens of each sample in each tile of ``steps`` time steps, as ``ATokenModel`` cuts them."""
    places = tokens.with_feats(tokens.feats[:, :0])
    return list(zip(*(window.lengths for _, window in places.time_windows(steps)), strict=True))


def grid_tiles(shape: tuple[int, int, int], steps: int) -> Tiles:
    """The same of a sample that fills a grid of (time steps, rows, columns)."""
    time, rows, columns = shape
    return tuple(min(steps, time - first) * rows * columns for first in range(0, time, steps))


def model_parts(
    config: ATokenConfig, samples: Sequence[Tiles], dtype: torch.dtype = torch.bfloat16, *, decode: bool = True
) -> tuple[Part, ...]:
    """The parts of ``ATokenModel`` in the order of the data; the pooling head, which nothing reads, comes last.

    dtype: of weights and activations. Without ``decode``: what only embeds. Where the decoder has a cache, samples
    must fill their tiles evenly.
    """
    tokens, pairs = sum(map(sum, samples)), sum(n * n for sample in samples for n in sample)
    values, latents, value = config.patch_values, config.latent_channels, dtype.itemsize
    encoder, decoder = config.encoder_width, config.decoder_width
    # Kept of the last norm: its input and output; where several tiles are put together, the latter twice.
    features, patches = (
        (2 + any(sum(map(bool, sample)) > 1 for sample in samples)) * encoder * value,
        2 * decoder * value,
    )
    parts = [
        _layer("encoder.inputs.", tokens, values, encoder, values * value),
        *_blocks(config, "encoder", tokens, pairs, dtype),
        _layer("to_latent.", tokens, encoder, 2 * latents, features),
    ]
    if decode:
        parts += [
            _layer("decoder.inputs.", tokens, latents, decoder, latents * value),
            *_blocks(config, "decoder", tokens, pairs + _cached_pairs(config, samples), dtype),
            _layer("to_patch.", tokens, decoder, values, patches),
        ]
    return (*parts, _pool(config, samples, dtype))


def gaussian_parts(config: ATokenConfig, voxels: SparseTokens, dtype: torch.dtype = torch.bfloat16) -> tuple[Part, ...]:
    """The parts of the Gaussian decoder on these voxels (their places matter: attention stays in windows).

    Where attention is written out (no ``flash_attn``), its logits are always computed again for the gradient and short
    windows are padded; neither is counted. Raises ValueError for a configuration without a Gaussian decoder.
    """
    sizes = config.gaussian_decoder
    if sizes is None:
        raise ValueError("This configuration has no Gaussian decoder.")
    tokens, width, mlp, value = len(voxels.feats), sizes["width"], sizes["mlp"], dtype.itemsize
    pairs = [sum((end - start) ** 2 for start, end in pairwise(Windows.of(voxels, by).bounds)) for by in (0, SHIFT)]
    read = config.frame_values + sizes.get("neighborhood", 0) ** 3
    # As in ``_blocks``, but the attention's output stays in the order of windows, too, and nothing is rotated.
    kept, name = (9 * width + 2 * mlp) * value + 2 * FP32, "gaussian_decoder"
    return (
        _layer(f"{name}.inputs.", tokens, read, width, read * value),
        *(
            _block(f"{name}.blocks.{layer}.", tokens, width, mlp, pairs[layer % 2], kept, width * value)
            for layer in range(sizes["layers"])
        ),
        _layer(f"{name}.out.", tokens, width, OUTPUTS, 2 * width * value),
    )


def _blocks(config: ATokenConfig, side: str, tokens: int, pairs: int, dtype: torch.dtype) -> list[Part]:
    width, layers, heads, mlp = (getattr(config, f"{side}_{name}") for name in ("width", "layers", "heads", "mlp"))
    # Kept in the dtype of the weights, D each: both norms' inputs and outputs; q, k, v, as they share one tensor;
    # rotated q and k; the attention's output. F each: what goes into GELU and what comes out. In fp32: the norms'
    # statistics, the logits' normalisers, the rotation for q and for k.
    values, floats = 10 * width + 2 * mlp, 4 + heads + 2 * width // heads
    if side == "decoder":  # QK-norm: unit vectors, and q and k themselves where they had to become fp32 first
        floats += 2 * width + 4 * heads + (2 * width if dtype.itemsize < FP32 else 0)
    kept, entry = values * dtype.itemsize + floats * FP32, width * dtype.itemsize
    blocks = [_block(f"{side}.blocks.{layer}.", tokens, width, mlp, pairs, kept, entry) for layer in range(layers)]
    return [Part(f"{side}.position.", 0), *blocks]


def _block(name: str, tokens: int, width: int, mlp: int, pairs: int, kept: int, entry: int) -> Part:
    """q, k, v, output and MLP of every token; logits and weighted sums of every pair. Bytes are those of a token."""
    linear, attention = 2 * tokens * width * (4 * width + 2 * mlp), 4 * pairs * width
    return Part(name, linear, attention, tokens * kept, tokens * entry)


def _layer(name: str, tokens: int, inputs: int, outputs: int, kept: int) -> Part:
    return Part(name, 2 * tokens * inputs * outputs, kept=tokens * kept)


def _cached_pairs(config: ATokenConfig, samples: Sequence[Tiles]) -> int:
    """Queries times cached keys: what the tiles of the decoder still see of the tiles before."""
    return sum(
        count * (sample[0] * min(tile * config.tile_frames, config.cache_frames) // config.tile_frames)
        for sample in samples
        for tile, count in enumerate(sample)
    )


def _pool(config: ATokenConfig, samples: Sequence[Tiles], dtype: torch.dtype) -> Part:
    """The folded probe of each tile reads all tokens twice; values, output and MLP follow once for each sample.

    All of it is in fp32; features and weights that are not are kept as copies that are.
    """
    tokens, width, heads = sum(map(sum, samples)), config.encoder_width, config.encoder_heads
    folded = max((sum(map(bool, sample)) for sample in samples), default=0)
    pooled = sum(any(sample) for sample in samples)
    linear = 4 * width * (tokens * heads + folded * width + pooled * (width + config.encoder_mlp))
    copies = width * (tokens + (folded + 1) * width) if dtype.itemsize < FP32 else 0
    return Part("pool.", linear, kept=FP32 * (tokens * heads + 2 * pooled * heads * width + copies))


def training_flops(parts: Sequence[Part], frozen: tuple[str, ...] = (), *, checkpointing: bool = False) -> Flops:
    """FLOPs of a training step over ``parts``, in the order of the data.

    frozen: beginnings of the names of parameters that are not trained. The backward pass takes ``linear`` once for the
    weights of what is trained, and once for the input of what has something trained before it or, in a block, within;
    there attention takes twice its own. So a trained model takes twice its forward pass, but for the first layer.
    """
    backward = recomputed = 0
    for part, (before, within) in zip(parts, pairwise(_reached(parts, frozen)), strict=True):
        backward += part.linear * (not part.name.startswith(frozen))
        if within if part.entry else before:
            backward += part.linear + 2 * part.attention
        if checkpointing and within and part.entry:
            recomputed += part.linear + part.attention
    return Flops(sum(part.linear + part.attention for part in parts), backward, recomputed)


def activation_bytes(parts: Sequence[Part], frozen: tuple[str, ...] = (), *, checkpointing: bool = False) -> int:
    """Bytes that ``parts`` keep for the gradient: nothing before the first that is trained.

    With checkpointing a block keeps its input alone, and the largest is there once more, computed again. Kernels are
    those of a GPU: on a CPU, RMSNorm in several steps and the joining of samples of different lengths keep up to 15 %
    more in fp32.
    """
    kept = [part for part, reached in zip(parts, _reached(parts, frozen)[1:], strict=True) if reached]
    if not checkpointing:
        return sum(part.kept for part in kept)
    again = max((part.kept for part in kept if part.entry), default=0)
    return sum(part.entry or part.kept for part in kept) + again


def _reached(parts: Sequence[Part], frozen: tuple[str, ...]) -> list[bool]:
    """Whether something trained lies before each part; one more, for what comes behind the last."""
    return list(accumulate((not part.name.startswith(frozen) for part in parts), or_, initial=False))


def parameters(model: nn.Module, frozen: tuple[str, ...] = ()) -> Parameters:
    """Counts of a model's parameters; one built under ``torch.device("meta")`` has them, too, and takes no memory."""
    sizes = [(parameter.numel(), name.startswith(frozen)) for name, parameter in model.named_parameters()]
    return Parameters(sum(n for n, still in sizes if not still), sum(n for n, still in sizes if still))


def memory(
    counts: Parameters, *, stage: int, ranks: int, activations: int = 0, dtype: torch.dtype = torch.bfloat16
) -> Memory:
    """Bytes on each of ``ranks`` GPUs under a ZeRO stage (Rajbhandari et al. 2020, section 5).

    Adam's moments, the fp32 master (none where the weights are fp32 themselves) and the EMA are split among ranks from
    stage 1 on, gradients from 2 on, weights at 3; what is frozen has weights only. ``activations`` of one rank: as they
    are. Raises ValueError for a stage that is not 0 to 3.
    """
    if stage not in range(4):
        raise ValueError(f"ZeRO has the stages 0 to 3, got {stage}.")

    def held(numbers: int, size: int, split_from: int) -> int:
        return size * (-(-numbers // ranks) if stage >= split_from else numbers)

    return Memory(
        weights=held(counts.trained + counts.frozen, dtype.itemsize, 3),
        gradients=held(counts.trained, dtype.itemsize, 2),
        master=held(counts.trained, 0 if dtype == torch.float32 else FP32, 1),
        moments=held(counts.trained, 2 * FP32, 1),
        average=held(counts.trained, FP32, 1),
        activations=activations,
    )


def pace(flops: float, tokens: int, steps: int, *, peak: float, mfu: float, devices: int) -> Pace:
    """The pace of a stage of ``steps``, each of ``Flops.counted`` and ``tokens`` over all devices, at a given MFU."""
    seconds = flops / (peak * mfu * devices)
    return Pace(seconds, tokens / seconds, steps * seconds / 3600)
