"""Small tokenizers, continuous and discrete, with and without the decoder's cache."""

import functools

import numpy as np

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


def random_frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
