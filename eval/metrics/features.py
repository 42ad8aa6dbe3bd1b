"""Measures of features, as one metric: the network sees every frame once, however many measures read its features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from atoken.errors import AtokenError
from eval.contract import Sample, State
from eval.metrics.moments import Frechet
from eval.networks import Network

SIDES = ("prediction", "target")


class Measure(Protocol):
    """A number of the features of one kind, on two sides; all its arrays in a state begin with its name and a dot."""

    @property
    def name(self) -> str:
        """Of its number, and of its arrays."""

    @property
    def kind(self) -> str:
        """Which features it reads: "pooled", "spatial" or "probabilities"."""

    @property
    def record(self) -> dict[str, str]:
        """What the protocol has to say of it."""

    def fold(self, state: State, side: str, rows: np.ndarray, keys: Sequence[str]) -> None:
        """Add (B, D) features of one side, in order, in place; ``keys`` name them."""

    def merge(self, first: State, second: State) -> State:
        """Its arrays for the rows of ``first``, then those of ``second``."""

    def finish(self, state: State) -> dict[str, float]:
        """Its numbers, by name."""


class FeatureMetric:
    """The metric (``eval/contract.py``) of some measures on one network.

    A sample may have one side alone: "prediction" of a generator, "target" of its reference. A network of images sees
    each
    frame as one. Pixels that do not count are black on both sides.
    Raises: AtokenError where the network does not give the features that a measure reads.
    """

    def __init__(self, name: str, network: Network, measures: Sequence[Measure]) -> None:
        for measure in measures:
            if measure.kind not in network.kinds:
                raise AtokenError(
                    f"{measure.name} reads {measure.kind} features, and the network {network.name} has "
                    f"{' and '.join(sorted(network.kinds))}: leave it out, or take another network."
                )
        self.name = name
        self.network = network
        self.measures = tuple(measures)
        self.record = {"network": network.name, "weights": network.checksum} | dict(network.record)
        for measure in measures:
            self.record |= measure.record

    def start(self) -> State:
        """No arrays yet: their widths are the network's."""
        return {}

    def add(self, state: State, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Fold the features of all samples. No sample has a number alone. Raises: AtokenError."""
        for side in SIDES:
            held = [sample for sample in samples if getattr(sample, side) is not None]
            if held:
                self._fold(state, side, held)
        return [{} for _ in samples]

    def _fold(self, state: State, side: str, samples: Sequence[Sample]) -> None:
        frames = [_blackened(getattr(sample, side), sample.mask) for sample in samples]
        features = self.network.features(frames)
        rows = [1 if self.network.videos else len(one) for one in frames]
        keys = [f"{sample.item.key}#{row}" for sample, count in zip(samples, rows, strict=True) for row in range(count)]
        for measure in self.measures:
            measure.fold(state, side, features[measure.kind], keys)

    def merge(self, first: State, second: State) -> State:
        """The state of the samples of ``first``, then those of ``second``."""
        merged: State = {}
        for measure in self.measures:
            merged |= measure.merge(first, second)
        return merged

    def finish(self, state: State) -> dict[str, float]:
        """The numbers of all measures. Raises: AtokenError where a reference does not fit the network."""
        return {name: number for measure in self.measures for name, number in measure.finish(state).items()}


def rfid(network: Network, *, spatial: bool = False) -> FeatureMetric:
    """The rFID of reconstructions against originals, and sFID where ``spatial``. Raises: AtokenError, as the metric."""
    measures = [Frechet("rfid"), Frechet("sfid", "spatial")] if spatial else [Frechet("rfid")]
    return FeatureMetric("rfid", network, measures)


def rfvd(network: Network) -> FeatureMetric:
    """The rFVD of reconstructed videos against originals. Raises: AtokenError for a network of single images."""
    if not network.videos:
        raise AtokenError(f"rFVD needs a network of videos, and {network.name} is one of images: take another.")
    return FeatureMetric("rfvd", network, [Frechet("rfvd")])


def _blackened(frames: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return frames if mask is None else frames * mask[..., None].astype(np.uint8)
