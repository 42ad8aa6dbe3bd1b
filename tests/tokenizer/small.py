"""Small tokenizers, continuous and discrete, with and without the decoder's cache."""

import functools

import numpy as np
import torch
from torch import nn

from atoken.layers import PoolingHead
from atoken.tokenizer import Tokenizer
from tests.model.sizes import small_model

KINDS = {
    "continuous": {},
    "discrete": {"fsq_levels": (4,) * 6},
    "cached": {"cache_frames": 4},
}


@functools.cache
def small_tokenizer(kind="continuous"):
    return Tokenizer(small_model(**KINDS[kind]), f"small-{kind}")


class Straight(nn.Module):
    """A side of the model that gives back what it gets."""

    head_width, rotary_base, blocks = 8, None, ()

    def forward(self, tokens, positions, cache=None, layers=()):
        return tokens.feats, [tokens.feats] * len(layers)


class Doubled(nn.Module):
    """Mean and log variance: the features, twice."""

    def forward(self, x_ND):
        return torch.cat([x_ND, x_ND], dim=1)


class Unchanged(nn.Module):
    """Patches from themselves."""

    def forward(self, x_NP, values=None):
        return x_NP[:, :values]


class NarrowPool(PoolingHead):
    """Pools the first 96 numbers of each token."""

    def update(self, state, tokens):
        return super().update(state, tokens.with_feats(tokens.feats[:, :96]))


@functools.cache
def exact_tokenizer():
    """A tokenizer whose latents are the patches themselves."""
    model = small_model(latent_channels=3072)
    model.encoder, model.to_latent, model.pool = Straight(), Doubled(), NarrowPool(96, 2, 128)
    nn.init.normal_(model.pool.probe, std=0.1)
    model.decoder, model.to_patch = Straight(), Unchanged()
    return Tokenizer(model, "exact")


def random_frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
