"""What a classifier of images says: of reconstructions beside their originals, and of samples with known classes.

Both are measures of a ``FeatureMetric``. Letters: ``B`` rows, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np

from eval.contract import State

SIDES = ("prediction", "target")
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class ClassAgreement:
    """The share of reconstructions whose most probable class is that of their original."""

    name: str
    kind: str = "probabilities"

    @property
    def record(self) -> dict[str, str]:
        """For the protocol."""
        return {self.name: "most probable class of each"}

    def fold(self, state: State, side: str, rows_BK: np.ndarray, keys: object) -> None:
        """Keep the most probable class of each row of one side, in place."""
        place = f"{self.name}.{side}"
        state[place] = np.concatenate([state.get(place, _NONE), rows_BK.argmax(1)])

    def merge(self, first: State, second: State) -> State:
        """The classes of ``first``, then those of ``second``."""
        places = [f"{self.name}.{side}" for side in SIDES]
        return {place: np.concatenate([first.get(place, _NONE), second.get(place, _NONE)]) for place in places}

    def finish(self, state: State) -> dict[str, float]:
        """A share from 0 to 1, NaN without items."""
        predicted, known = (state.get(f"{self.name}.{side}", _NONE) for side in SIDES)
        return {self.name: float((predicted == known).mean()) if len(known) else nan}


@dataclass(frozen=True, eq=False)
class ClassAccuracy:
    """The share of samples ("prediction") whose most probable class is the one that ``labels`` gives for their key."""

    name: str
    labels: Mapping[str, int]
    kind: str = "probabilities"

    @property
    def record(self) -> dict[str, str]:
        """For the protocol."""
        return {self.name: "most probable class; known from the folders of the samples"}

    def fold(self, state: State, side: str, rows_BK: np.ndarray, keys: Sequence[str]) -> None:
        """Count hits, in place; the other side has none. A key ends in ``#`` and the number of a frame."""
        if side == "prediction":
            known_B = [self.labels[key.rpartition("#")[0]] for key in keys]
            counts = np.array([(rows_BK.argmax(1) == known_B).sum(), len(known_B)], np.float64)
            state[self.name] = state.get(self.name, np.zeros(2)) + counts

    def finish(self, state: State) -> dict[str, float]:
        """A share from 0 to 1, NaN without items."""
        hits, items = state.get(self.name, np.zeros(2))
        return {self.name: float(hits / items) if items else nan}
