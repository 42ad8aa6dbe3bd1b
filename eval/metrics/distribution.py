"""What the samples of a generator are like as a whole: Inception Score, precision and recall.

Both are measures of a ``FeatureMetric``. Letters: ``B``, ``N``, ``M`` rows, ``D`` width, ``K`` classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eval.contract import State

CHUNK = 1000  # rows of each of two sets whose distances are held at a time
NOISE = 1e-12  # of the squared lengths of two vectors: a squared distance below is rounding, and the vectors are equal


@dataclass(frozen=True)
class InceptionScore:
    """exp of the mean KL divergence of class probabilities from their mean, averaged over splits (Salimans 2016).

    Splits are of ``split`` samples of "prediction" in their order, the last of the rest, as in ADM's evaluator. Sums
    are kept for every ``cell`` samples, which rounds less than one sum. Raises: ValueError where a split is not whole
    cells.
    """

    split: int = 5000
    cell: int = 100
    name: str = "inception score"
    kind: str = "probabilities"

    def __post_init__(self) -> None:
        if self.split % self.cell:
            raise ValueError(f"A split of {self.split} samples does not hold whole cells of {self.cell}.")

    @property
    def record(self) -> dict[str, str]:
        """For the protocol."""
        return {self.name: f"splits of {self.split}, mean over splits"}

    def fold(self, state: State, side: str, rows_BK: np.ndarray, keys: object) -> None:
        """Add the probabilities of samples of "prediction"; the other side has no score."""
        if side != "prediction":
            return
        items, sums, logs = (f"{self.name}.{part}" for part in ("items", "sums", "logs"))
        for row_K in np.asarray(rows_BK, np.float64):
            if items not in state:
                state[items], state[sums], state[logs] = np.zeros(1), np.zeros((0, len(row_K))), np.zeros(0)
            if state[items][0] % self.cell == 0:
                state[sums] = np.concatenate([state[sums], np.zeros((1, len(row_K)))])
                state[logs] = np.concatenate([state[logs], np.zeros(1)])
            state[items] += 1
            state[sums][-1] += row_K
            state[logs][-1] += _x_log_x(row_K).sum()

    def finish(self, state: State) -> dict[str, float]:
        """The score, its standard deviation over the splits, and the numbers of splits and items."""
        items = int(state.get(f"{self.name}.items", np.zeros(1))[0])
        scores = np.array([self._score(state, first, items) for first in range(0, items, self.split)] or [np.nan])
        numbers = {"": scores.mean(), " std": scores.std(), " splits": len(scores), " items": items}
        return {f"{self.name}{end}": float(number) for end, number in numbers.items()}

    def _score(self, state: State, first: int, items: int) -> float:
        cells = slice(first // self.cell, (first + self.split) // self.cell)
        count = min(self.split, items - first)
        mean_K = state[f"{self.name}.sums"][cells].sum(0) / count
        return float(np.exp(state[f"{self.name}.logs"][cells].sum() / count - _x_log_x(mean_K).sum()))


@dataclass(frozen=True)
class PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019).

    Precision is the share of "prediction" within any ball around one of "target" that reaches to its ``neighbour``-th
    nearest other; recall is the same with sides exchanged. Where there are more than ``references`` of "target" or
    ``samples`` of "prediction", those with the smallest SHA-256 of the key count, whatever their order. of: what
    follows the names of the numbers, where features are not those of published ones.
    """

    neighbour: int = 3
    references: int = 10_000
    samples: int = 50_000
    of: str = ""
    name: str = "precision and recall"
    kind: str = "pooled"

    @property
    def record(self) -> dict[str, str]:
        """For the protocol."""
        return {self.name: f"k = {self.neighbour}, at most {self.references} references and {self.samples} samples"}

    def fold(self, state: State, side: str, rows_BD: np.ndarray, keys: Sequence[str]) -> None:
        """Keep the features of one side, in place."""
        limit = self.samples if side == "prediction" else self.references
        items, rows, orders = (f"{self.name}.{side}.{part}" for part in ("items", "rows", "orders"))
        rows_BD = np.asarray(rows_BD, np.float32)
        if items not in state:
            state[items], state[rows], state[orders] = np.zeros(1), rows_BD[:0], np.zeros(0, np.uint64)
        for row_D, key in zip(rows_BD, keys, strict=True):
            order = int.from_bytes(hashlib.sha256(key.encode(errors="backslashreplace")).digest()[:8])
            position = int(state[items][0])
            if position < limit:
                state[items] += 1
                state[rows], state[orders] = _grown(state[rows], position), _grown(state[orders], position)
            elif order >= state[orders].max():
                continue
            else:
                position = int(state[orders].argmax())
            state[rows][position], state[orders][position] = row_D, order

    def _kept(self, state: State, side: str) -> np.ndarray:
        """Rows, sorted by the SHA-256 of their keys: the same in whatever order they came."""
        items = int(state.get(f"{self.name}.{side}.items", np.zeros(1))[0])
        if not items:
            return np.zeros((0, 1), np.float32)
        sequence = np.argsort(state[f"{self.name}.{side}.orders"][:items], kind="stable")
        return state[f"{self.name}.{side}.rows"][sequence]

    def finish(self, state: State) -> dict[str, float]:
        """precision, recall, and "precision items" and "recall items", of which each is the share.

        NaN where a side has no more than ``neighbour`` items, or where a feature is not finite.
        """
        prediction, target = (self._kept(state, side) for side in ("prediction", "target"))
        names = f"precision{self.of}", f"recall{self.of}"
        counts = {f"{name} items": float(len(one)) for name, one in zip(names, (prediction, target), strict=True)}
        enough = min(len(prediction), len(target)) > self.neighbour
        if not (enough and np.isfinite(prediction).all() and np.isfinite(target).all()):
            return dict.fromkeys(names, float("nan")) | counts
        shares = (
            float(_within(points, centres, _radii(centres, self.neighbour)).mean())
            for points, centres in ((prediction, target), (target, prediction))
        )
        return dict(zip(names, shares, strict=True)) | counts


def _x_log_x(values: np.ndarray) -> np.ndarray:
    """0 at 0, its limit; NaN stays NaN."""
    return values * np.log(np.where(values == 0, 1.0, values))


def _grown(array: np.ndarray, position: int) -> np.ndarray:
    """The array, doubled with zeros where ``position`` is beyond its end: so it is copied only a few times."""
    if position < len(array):
        return array
    return np.concatenate([array, np.zeros((max(position, 1), *array.shape[1:]), array.dtype)])


def _radii(rows_ND: np.ndarray, neighbour: int) -> np.ndarray:
    """(N,) float64: squared distance of each row to its ``neighbour``-th nearest other."""
    radii = []
    for part_BD in _chunks(rows_ND):
        nearest = np.zeros((len(part_BD), 0))
        for others_BD in _chunks(rows_ND):
            seen = np.concatenate([nearest, _squared(part_BD, others_BD)], axis=1)
            nearest = np.partition(seen, neighbour, axis=1)[:, : neighbour + 1]  # the nearest is the row itself
        radii.append(nearest[:, neighbour])
    return np.concatenate(radii)


def _within(points_ND: np.ndarray, centres_MD: np.ndarray, radii_M: np.ndarray) -> np.ndarray:
    """(N,) bool: whether each point lies in any ball."""
    within = []
    for part_BD in _chunks(points_ND):
        balls = zip(_chunks(centres_MD), _chunks(radii_M), strict=True)
        within.append(np.any([(_squared(part_BD, centres) <= radii).any(axis=1) for centres, radii in balls], axis=0))
    return np.concatenate(within)


def _squared(first_BD: np.ndarray, second_BD: np.ndarray) -> np.ndarray:
    """(B, B') squared distances; exactly 0 for equal rows, so that copies are within a ball of radius 0."""
    lengths = np.square(first_BD).sum(1)[:, None] + np.square(second_BD).sum(1)
    distances = lengths - 2 * (first_BD @ second_BD.T)
    return np.where(distances > NOISE * lengths, distances, 0.0)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), CHUNK):
        yield rows[first : first + CHUNK].astype(np.float64)
