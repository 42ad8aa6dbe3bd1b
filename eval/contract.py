"""What the rooms of the harness agree on: items go in, a model makes samples of them, metrics measure those.

Shape letters: ``T`` frames of a video or views of an asset (1 of an image), ``H`` rows and ``W`` columns of pixels,
``N`` tokens, ``G`` groups of codes, ``D`` the width of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from atoken.io import Image, Video
from atoken.media.views import Views

Media = Image | Video | Views
State = dict[str, np.ndarray]  # what a metric holds of all samples so far: arrays by name, kept in files between runs


@dataclass(frozen=True)
class Item:
    """One member of a data set, prepared as its protocol says (cropped, scaled, cut to frames, seen from cameras)."""

    key: str
    media: Media
    label: int | None = None
    captions: tuple[str, ...] = ()


class Source(Protocol):
    """A data set by random access. Reading may raise MediaError; the order of keys is part of the protocol."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The name of an item, without reading it."""

    def __getitem__(self, index: int) -> Item: ...


@dataclass(frozen=True)
class Sample:
    """What a model made of an item: whatever it can make; the rest is None.

    target, prediction: the original and the reconstruction, (T, H, W, 3) uint8 of one shape; of an asset, views of both
    from
    the cameras of the protocol. mask: (T, H, W) bool, pixels that count; None: all. size: bytes that the tokens or the
    file take on disk. codes: (N, G) int64. vector: (D,) float32 of length 1.
    """

    item: Item
    target: np.ndarray | None = None
    prediction: np.ndarray | None = None
    mask: np.ndarray | None = None
    size: int | None = None
    codes: np.ndarray | None = None
    vector: np.ndarray | None = None


class Model(Protocol):
    """A tokenizer, or what stands in for one. What it cannot do raises AtokenError, in one sentence."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    @property
    def record(self) -> Mapping[str, str]:
        """For the protocol: fingerprint of weights, dtype, sample or mean, quality of a codec."""

    def reconstruct(self, items: Sequence[Item]) -> list[Sample]:
        """Through the tokens and back; a sample for each item, in order."""

    def embed(self, items: Sequence[Item]) -> list[Sample]:
        """The vector of each item, in order."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32 of length 1, in the space of ``embed``."""


class Metric(Protocol):
    """A measure of samples that come in pieces, on several ranks, in several runs.

    Results are exact: the samples are cut into fixed shards; within a shard ``add`` folds samples in order into a state
    of float64, and the states of all shards are merged in order, so that the number of ranks and of interruptions does
    not matter to the last bit. A number that is not finite is a fault of the sample or of the metric and fails the row:
    ``finish`` may return it, nothing may hide it.
    """

    @property
    def name(self) -> str:
        """What it is called, also in files."""

    @property
    def record(self) -> Mapping[str, str]:
        """For the protocol: conventions, checksum of the network's weights."""

    def start(self) -> State:
        """The state before any sample."""

    def add(self, state: State, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Fold samples into ``state``, in place. Returns the numbers of each sample alone ({} where it has none)."""

    def merge(self, first: State, second: State) -> State:
        """The state of the samples of ``first``, then those of ``second``."""

    def finish(self, state: State) -> dict[str, float]:
        """The numbers of all samples, by name."""
