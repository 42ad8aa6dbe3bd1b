"""What the tokenizer's network costs: counted on a few tokens, from which the FLOPs of any others follow exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atoken.gaussian_decoder import SHIFT, WindowBlock, Windows
from atoken.layers import Block
from atoken.model import ATokenConfig, ATokenModel
from atoken.patches import grid_coords
from atoken.pretrain import losses
from atoken.pretrain.stages import Task
from atoken.tokens import SparseTokens
from atoken.train.cost import Flops, count

POOLED = (losses.semantics, losses.alignment, losses.label_alignment)
READS: dict[Any, str] = {losses.kl: "posterior", **dict.fromkeys(POOLED, "pooled")}
GAUSSIANS = frozenset(["gaussians"])


def reads(task: Task) -> frozenset[str]:
    """What the terms of a task read of the network: mostly decoded patches."""
    if task.modality == "surface":
        return GAUSSIANS
    return frozenset(READS.get(term.fn, "patches") for term in task.computed)


class Network(nn.Module):
    """The model on the meta device, and in place of a loss the sum of what is read: no teachers and no texts.

    frozen: beginnings of the names of parameters that are not trained.
    """

    def __init__(self, config: ATokenConfig, frozen: tuple[str, ...], reads: frozenset[str]) -> None:
        super().__init__()
        self.reads = reads
        with torch.device("meta"):
            self.model = ATokenModel(config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))

    def blocks(self) -> list[nn.Module]:
        """What activation checkpointing computes again."""
        return [module for module in self.modules() if isinstance(module, Block | WindowBlock)]

    def forward(self, tokens: SparseTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Of tokens whose features are on the meta device, and coordinates on the host."""
        if self.reads == GAUSSIANS:
            assert self.model.gaussian_decoder is not None  # the stage's preset has one
            return self.model.gaussian_decoder.outputs(tokens).sum(), {}
        encoded = self.model.encode(tokens)
        found = {"posterior": encoded.posterior.mean, "pooled": encoded.pooled}
        if "patches" in self.reads:
            found["patches"] = self.model.decode(encoded.latents, values=tokens.feats.shape[1]).feats
        return sum((found[name].float().sum() for name in self.reads), encoded.pooled.new_zeros(())), {}


def grids(shapes: Sequence[tuple[int, int, int]], values: int, dtype: torch.dtype = torch.float32) -> SparseTokens:
    """Samples that fill grids of (time steps, rows, columns), with ``values`` features on the meta device."""
    coords_N4 = torch.cat([grid_coords(*shape) for shape in shapes])
    feats_NP = torch.empty(len(coords_N4), values, dtype=dtype, device="meta")
    return SparseTokens(feats_NP, coords_N4, tuple(map(prod, shapes)))


def flops(config: ATokenConfig, frozen: tuple[str, ...], reads: frozenset[str], tokens: SparseTokens) -> Flops:
    """What ``count`` finds for a ``Network`` with checkpointed blocks, but at once: it is linear in ``_features``."""
    coefficients = _coefficients(config.to_json_string(), frozen, reads, tokens.feats.shape[1])
    return Flops(*(_features(config, reads, tokens) @ coefficients).tolist())


@lru_cache(maxsize=64)
def _coefficients(described: str, frozen: tuple[str, ...], reads: frozenset[str], values: int) -> np.ndarray:
    """(features, 3) int64, of the FLOPs forward, backward and recomputed."""
    config, rows, counts = ATokenConfig.from_dict(json.loads(described)), [], []
    # Where the first layer is frozen alone, the second is the first to be trained, and only from then on all are alike.
    few, long = 1 + any(".blocks." in name for name in frozen), config.steps(config.tile_frames) + 1
    # Samples as grids of (time steps, rows, columns), and more layers of encoder and decoder: as many as there are
    # features, and none follows from the others.
    one, nine, tiles, wider = (1, 1, 1), (1, 3, 3), (long, 1, 1), (long, 2, 1)
    probes = [
        ([one], 0, 0), ([nine], 0, 0), ([one, one], 0, 0), ([tiles], 0, 0), ([one], 1, 0), ([nine], 1, 0),
        ([one], 0, 1), ([nine], 0, 1), *([([wider], 0, 0), ([wider], 0, 1)] if config.cache_frames else []),
    ]  # fmt: skip
    for shapes, encoder, decoder in probes[:2] if reads == GAUSSIANS else probes:
        config.encoder_layers, config.decoder_layers, config.text = few + encoder, few + decoder, None
        tokens = grids(shapes, values)
        network = Network(config, frozen, reads)
        rows.append(_features(config, reads, tokens))
        counts.append(count(network, tokens, network.blocks()))
    return np.linalg.lstsq(np.array(rows), np.array(counts))[0].round().astype(np.int64)


def _features(config: ATokenConfig, reads: frozenset[str], tokens: SparseTokens) -> np.ndarray:
    """Tokens and, for attention, pairs of a query and a key, once and for each layer; samples; tiles."""
    size = len(tokens.feats)
    if reads == GAUSSIANS:
        assert config.gaussian_decoder is not None
        pairs = [sum((end - start) ** 2 for start, end in pairwise(Windows.of(tokens, by).bounds)) for by in (0, SHIFT)]
        return np.array([size, sum(pairs[layer % 2] for layer in range(config.gaussian_decoder["layers"]))])
    tile, memory = config.steps(config.tile_frames), config.steps(config.cache_frames)
    steps_TB = np.array([step.lengths for _, step in tokens.with_feats(tokens.feats[:, :0]).time_windows(1)])
    starts = range(0, len(steps_TB), tile)
    queries = np.array([steps_TB[start : start + tile].sum(0) for start in starts])
    cached = np.array([steps_TB[max(0, start - memory) : start].sum(0) for start in starts])
    one_layer = np.array([size, (queries**2).sum(), (queries * cached).sum()])
    sides = one_layer * config.encoder_layers, one_layer * config.decoder_layers
    return np.concatenate([one_layer, *sides, [len(tokens.lengths), len(starts)]])
