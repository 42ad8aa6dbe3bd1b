"""Measures of features of one network, which sees every frame once, however many measures read its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.frechet import Gaussian, check_width, frechet_distance
from eval.contract import Output, State
from eval.metrics.classes import SIDES, ClassAccuracy, ClassAgreement
from eval.metrics.distribution import InceptionScore, PrecisionRecall
from eval.metrics.moments import add_rows, gaussian, merge_rows
from eval.networks import Network


@dataclass(frozen=True, eq=False)
class Frechet:
    """The Frechet distance between the features of two sides, "prediction" and "target".

    name: of the number: "rfid" and "gfid" of pooled features, "sfid" of spatial ones (Nash et al. 2021), "rfvd" of
    features of videos (Unterthiner et al. 2018). reference: stands for "target" where it is known beforehand.
    """

    name: str
    kind: str = "pooled"
    reference: Gaussian | None = None

    @property
    def record(self) -> dict[str, str]:
        """For the protocol."""
        return {self.name: f"{self.kind} features, unbiased covariance"}

    def fold(self, state: State, side: str, rows: np.ndarray, keys: object) -> None:
        """Add the features of one side. Raises: AtokenError where their width differs from before."""
        if self.reference is not None:
            if side == "target":
                return
            check_width(rows.shape[1], len(self.reference.mean_D))  # before the network has seen all outputs
        add_rows(state, f"{self.name}.{side}", rows)

    def finish(self, state: State) -> dict[str, float]:
        """NAME, "NAME mean" and "NAME covariance", its terms, and "NAME items", of the side that has fewer of them.

        "NAME items lacking" is a warning: so many more are needed for covariances of full rank; without them the value
        depends on the number of items. Raises: AtokenError where a reference has another width.
        """
        prediction = gaussian(state, f"{self.name}.prediction")
        target = gaussian(state, f"{self.name}.target") if self.reference is None else self.reference
        if prediction.items == 0 or target.items == 0:  # their width is unknown
            return {self.name: nan, f"{self.name} items": 0.0}
        found = frechet_distance(prediction, target)
        items = min(one.items for one in (prediction, target) if one.items is not None)
        numbers = {"": found.value, " mean": found.mean, " covariance": found.covariance, " items": float(items)}
        if items <= len(prediction.mean_D):
            numbers[" items lacking"] = float(len(prediction.mean_D) + 1 - items)
        return {f"{self.name}{end}": number for end, number in numbers.items()}


# ``fold`` adds (B, D) features of one side, in order; arrays of a state begin with the name of the measure and a dot.
Measure = Frechet | InceptionScore | PrecisionRecall | ClassAgreement | ClassAccuracy


class FeatureMetric:
    """Some measures on one network, of outputs that come in one piece, in order.

    An output may have one side alone: "prediction" of a generator, "target" of its reference. A network of images sees
    each frame as one. Pixels that do not count are black on both sides.
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

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Fold the features of all outputs. No output has a number alone. Raises: AtokenError."""
        for side in SIDES:
            held = [output for output in outputs if getattr(output, side) is not None]
            if held:
                self._fold(state, side, held)
        return [{} for _ in outputs]

    def _fold(self, state: State, side: str, outputs: Sequence[Output]) -> None:
        frames = [_blackened(getattr(output, side), output.mask) for output in outputs]
        features = self.network.features(frames)
        rows = [1 if self.network.videos else len(one) for one in frames]
        keys = [f"{output.item.key}#{row}" for output, count in zip(outputs, rows, strict=True) for row in range(count)]
        for measure in self.measures:
            measure.fold(state, side, features[measure.kind], keys)

    def finish(self, state: State) -> dict[str, float]:
        """The numbers of all measures. Raises: AtokenError where a reference does not fit the network."""
        return {name: number for measure in self.measures for name, number in measure.finish(state).items()}


class FrechetMetric(FeatureMetric):
    """The Frechet distance of pooled features of reconstructions and originals, as a ``Metric``: rFID, rFVD.

    agreement: what the same network says of the classes of both.
    """

    def __init__(self, name: str, network: Network, *agreement: ClassAgreement) -> None:
        super().__init__(name, network, [Frechet(name), *agreement])
        self._agreement = agreement

    def merge(self, first: State, second: State) -> State:
        """What was folded of the outputs of ``first``, then of those of ``second``."""
        merged: State = {}
        for side in SIDES:
            merged |= merge_rows(first, second, f"{self.name}.{side}")
        for one in self._agreement:
            merged |= one.merge(first, second)
        return merged

    def finish(self, state: State) -> dict[str, float]:
        """As ``Frechet.finish``. Raises: AtokenError for a single item, which has no covariance."""
        numbers = super().finish(state)
        if numbers[f"{self.name} items"] == 1:
            raise AtokenError(f"{self.name} needs 2 items or more, and there is 1: measure more, or leave it out.")
        return numbers


def _blackened(frames: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return frames if mask is None else frames * mask[..., None].astype(np.uint8)
