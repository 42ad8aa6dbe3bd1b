"""A generator that knows mean and covariance of the latents of each class, and nothing else: the least to be beaten."""

from __future__ import annotations

import torch
from torch import Tensor

from atoken.data.mixing import hashed
from atoken.io import Image
from atoken.io.token_file import Tokens
from atoken.store.reader import TokenStore
from atoken.tokenizer import Tokenizer
from eval.protocol import digest


class LatentGaussians:
    """A Gaussian over whole grids of latents for each label of a store, of as high a rank as its items allow.

    tokenizer: the one that made the store. Raises: TokenFileError (another one).
    """

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, seed: int = 0) -> None:
        store.check(tokenizer)
        self._store, self._tokenizer, self._seed = store, tokenizer, seed
        self._latents: dict[str, Tensor] = {}
        statistics = digest([len(store), store.statistics.mean, store.statistics.std])
        self.record = {"fitted to": f"{store.model} {store.fingerprint}, {statistics[:8]}", "seed of draws": str(seed)}

    def drawn(self, label: str, number: int) -> Tensor:
        """Draw ``number`` of a label: (C, H, W), a function of seed, label and number."""
        if label not in self._latents:
            self._latents[label] = self._store.where(label=label).grids(slice(None), normalised=False)
        latents_BCHW = self._latents[label]
        random = torch.Generator().manual_seed(hashed(self._seed, number) % 2**63)
        # Deviations with normal weights have the covariance of the items, whose matrix is never made.
        weights_B = torch.randn(len(latents_BCHW), generator=random) / max(len(latents_BCHW) - 1, 1) ** 0.5
        mean_CHW = latents_BCHW.mean(0)
        return mean_CHW + torch.tensordot(weights_B, latents_BCHW - mean_CHW, 1)

    def image(self, label: str, number: int) -> Image:
        """The draw, decoded; a discrete model's latents become the nearest levels first."""
        tokens = Tokens.from_latents(self.drawn(label, number), like=self._tokenizer)
        decoded = self._tokenizer.decode(tokens)
        assert isinstance(decoded, Image)
        return decoded
