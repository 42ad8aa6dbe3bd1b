"""What the parts of the harness agree on: a model under test gets items and gives outputs, and metrics measure those.

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
State = dict[str, np.ndarray]  # what a metric keeps of all outputs so far: arrays by name, stored in files between runs


@dataclass(frozen=True)
class Item:
    """One member of a data set, prepared as its protocol says (cropped, scaled, cut to frames, seen from cameras)."""

    key: str
    media: Media
    label: int | None = None
    captions: tuple[str, ...] = ()


class Dataset(Protocol):
    """Items by number, in a fixed order that is part of the protocol. Reading an item may raise MediaError."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The name of an item, without reading it."""

    def line(self, index: int) -> str:
        """Name, size, label and captions of an item, for the hash of the data, without reading it."""

    def __getitem__(self, index: int) -> Item: ...


@dataclass(frozen=True)
class Output:
    """What a model made of an item; what it does not make is None.

    target, prediction: the original and the reconstruction, (T, H, W, 3) uint8 of one shape; of an asset, views of both
    from the cameras of the protocol. mask: (T, H, W) bool, the pixels that count; None: all. size: bytes of the tokens
    or of the file on disk. codes: (N, G) int64. vector: (D,) float32 of length 1.
    answer: to the first of the captions, a question; cut: whether it was too long and was ended.
    """

    item: Item
    target: np.ndarray | None = None
    prediction: np.ndarray | None = None
    mask: np.ndarray | None = None
    size: int | None = None
    codes: np.ndarray | None = None
    vector: np.ndarray | None = None
    answer: str | None = None
    cut: bool = False


class Model(Protocol):
    """A model under test: a tokenizer, a codec, or another one. What it cannot do raises AtokenError.

    Those of ``eval/models/answers.py`` alone ``answer`` questions.
    """

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def record(self) -> Mapping[str, str]:
        """For the protocol: fingerprint of weights, dtype, sample or mean, quality of a codec."""

    def reconstruct(self, items: Sequence[Item]) -> list[Output]:
        """Encode and decode; one output for each item, in order."""

    def embed(self, items: Sequence[Item]) -> list[Output]:
        """The vector of each item, in order."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32 of length 1, in the space of ``embed``."""


class Metric(Protocol):
    """A measure of outputs that come in pieces, on several ranks, in several runs.

    Results are exact: the items are cut into fixed shards; within a shard ``add`` folds outputs in order into a state
    of float64, and the states of all shards are merged in order. So the result does not depend on the number of ranks
    or interruptions, to the last bit. A number that is not finite is a fault of an output or of the metric and fails
    the row: ``finish`` may return it, nothing may hide it.
    """

    @property
    def name(self) -> str:
        """Its name, also in files."""

    @property
    def record(self) -> Mapping[str, str]:
        """For the protocol: conventions, checksum of the network's weights."""

    def start(self) -> State:
        """The state before any output."""

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Fold outputs into ``state``, in place. Returns the numbers of each output alone ({} where it has none)."""

    def merge(self, first: State, second: State) -> State:
        """The state of the outputs of ``first``, then those of ``second``."""

    def finish(self, state: State) -> dict[str, float]:
        """The numbers of all outputs, by name."""
