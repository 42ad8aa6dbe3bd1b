"""A network that classifies images as a model under test: its features are vectors to probe, beside a tokenizer's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoken.errors import AtokenError
from eval.contract import Item, Output
from eval.models.pixels import frames_of
from eval.networks import Network


class Features:
    """The pooled features of a network of images, scaled to length 1. It makes no images and reads no texts."""

    def __init__(self, network: Network) -> None:
        self.name, self._network = network.name, network
        self.record = {"model": network.name, "fingerprint": network.checksum, **network.record}

    def reconstruct(self, items: Sequence[Item]) -> list[Output]:
        """Raises: AtokenError."""
        raise AtokenError(f"{self.name} makes no images; choose a task that compares vectors.")

    def embed(self, items: Sequence[Item]) -> list[Output]:
        """The vector of each image, in order. Raises: AtokenError."""
        rows = self._network.features([frames_of(item, self.name) for item in items])["pooled"]
        return [
            Output(item, vector=(row / np.linalg.norm(row)).astype(np.float32))
            for item, row in zip(items, rows, strict=True)
        ]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Raises: AtokenError."""
        raise AtokenError(f"{self.name} reads no texts; choose a task without texts, such as a probe.")
