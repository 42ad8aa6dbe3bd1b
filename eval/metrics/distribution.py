"""What samples of a generator are like as a crowd: Inception Score, precision and recall.

Both are measures of ``metrics/features.py``. Letters: ``B``, ``N``, ``M`` rows, ``D`` width, ``K`` classes.
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

    Splits are of ``split`` samples in their order, the last of the rest, as ADM's evaluator has it; of "prediction"
    alone.
    Sums are kept for every ``cell`` samples: a split is whole cells, and so is every shard but the last.
    Raises: ValueError where a split is not.
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
        """What the protocol has to say of it."""
        return {self.name: f"splits of {self.split}, mean over splits"}

    def fold(self, state: State, side: str, rows_BK: np.ndarray, keys: object) -> None:
        """Add the probabilities of samples of "prediction"; the other side has no score."""
        if side != "prediction":
            return
        for row_K in np.asarray(rows_BK, np.float64):
            self._fold_one(state, row_K)

    def _fold_one(self, state: State, row_K: np.ndarray) -> None:
        items, sums, logs = (f"{self.name}.{part}" for part in ("items", "sums", "logs"))
        if items not in state:
            state[items], state[sums], state[logs] = np.zeros(1), np.zeros((0, len(row_K))), np.zeros(0)
        if state[items][0] % self.cell == 0:
            state[sums] = np.concatenate([state[sums], np.zeros((1, len(row_K)))])
            state[logs] = np.concatenate([state[logs], np.zeros(1)])
        state[items] += 1
        state[sums][-1] += row_K
        state[logs][-1] += _x_log_x(row_K).sum()

    def merge(self, first: State, second: State) -> State:
        """The cells of ``first``, then those of ``second``. Raises: ValueError where ``first`` ends within a cell."""
        items, sums, logs = (f"{self.name}.{part}" for part in ("items", "sums", "logs"))
        held = [state for state in (first, second) if items in state]
        if len(held) < 2:
            return {key: held[0][key] for key in (items, sums, logs)} if held else {}
        if first[items][0] % self.cell:
            raise ValueError(f"A shard of {first[items][0]:.0f} samples does not hold whole cells of {self.cell}.")
        joined = {key: np.concatenate([first[key], second[key]]) for key in (sums, logs)}
        return {items: first[items] + second[items]} | joined

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
    nearest
    other; recall is the same with sides changed. Where there are more than ``references`` of "target" or ``samples`` of
    "prediction", those with the smallest SHA-256 of the key count: a choice that depends on neither order nor shards.
    """

    neighbour: int = 3
    references: int = 10_000
    samples: int = 50_000
    name: str = "precision and recall"
    kind: str = "pooled"

    @property
    def record(self) -> dict[str, str]:
        """What the protocol has to say of it."""
        return {self.name: f"k = {self.neighbour}, at most {self.references} references and {self.samples} samples"}

    def fold(self, state: State, side: str, rows_BD: np.ndarray, keys: Sequence[str]) -> None:
        """Keep the features of one side, in place."""
        digests = (hashlib.sha256(key.encode(errors="backslashreplace")).digest() for key in keys)
        orders_B = np.array([int.from_bytes(digest[:8]) for digest in digests], np.uint64)
        self._keep(state, side, np.asarray(rows_BD, np.float32), orders_B)

    def _keep(self, state: State, side: str, rows_BD: np.ndarray, orders_B: np.ndarray) -> None:
        limit = self.samples if side == "prediction" else self.references
        items, rows, orders = (f"{self.name}.{side}.{part}" for part in ("items", "rows", "orders"))
        if items not in state:
            state[items], state[rows], state[orders] = np.zeros(1), rows_BD[:0], orders_B[:0]
        for row_D, order in zip(rows_BD, orders_B, strict=True):
            place = int(state[items][0])
            if place < limit:
                state[items] += 1
                state[rows], state[orders] = _with_room(state[rows], place), _with_room(state[orders], place)
            elif order >= state[orders].max():
                continue
            else:
                place = int(state[orders].argmax())
            state[rows][place], state[orders][place] = row_D, order

    def merge(self, first: State, second: State) -> State:
        """The kept rows of both, as if they had come one after another."""
        merged: State = {}
        for state in (first, second):
            for side in ("prediction", "target"):
                if f"{self.name}.{side}.items" in state:
                    self._keep(merged, side, *self._kept(state, side))
        return merged

    def _kept(self, state: State, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and their orders, sorted by these: the same however they came."""
        items = int(state.get(f"{self.name}.{side}.items", np.zeros(1))[0])
        if not items:
            return np.zeros((0, 1), np.float32), np.zeros(0, np.uint64)
        orders = state[f"{self.name}.{side}.orders"][:items]
        sequence = np.argsort(orders, kind="stable")
        return state[f"{self.name}.{side}.rows"][sequence], orders[sequence]

    def finish(self, state: State) -> dict[str, float]:
        """precision, recall, and of how many items each is the share.

        Not a number where a side has no ``neighbour`` others, or where a feature is not finite.
        """
        prediction, target = (self._kept(state, side)[0] for side in ("prediction", "target"))
        counts = {"precision items": float(len(prediction)), "recall items": float(len(target))}
        enough = min(len(prediction), len(target)) > self.neighbour
        if not (enough and np.isfinite(prediction).all() and np.isfinite(target).all()):
            return {"precision": float("nan"), "recall": float("nan")} | counts
        precision, recall = (
            float(_within(points, centres, _radii(centres, self.neighbour)).mean())
            for points, centres in ((prediction, target), (target, prediction))
        )
        return {"precision": precision, "recall": recall} | counts


def _x_log_x(values: np.ndarray) -> np.ndarray:
    """0 at 0, as its limit; not a number stays one."""
    return values * np.log(np.where(values == 0, 1.0, values))


def _with_room(array: np.ndarray, place: int) -> np.ndarray:
    """The array, doubled with zeros where it has no ``place``: so all that is kept is moved only a few times."""
    if place < len(array):
        return array
    return np.concatenate([array, np.zeros((max(place, 1), *array.shape[1:]), array.dtype)])


def _radii(rows_ND: np.ndarray, neighbour: int) -> np.ndarray:
    """(N,) float64: squared distance of each row to its ``neighbour``-th nearest other."""
    radii = []
    for part_BD in _chunks(rows_ND):
        nearest = np.zeros((len(part_BD), 0))
        for others_BD in _chunks(rows_ND):
            seen = np.concatenate([nearest, _squared(part_BD, others_BD)], axis=1)
            nearest = np.partition(seen, neighbour, axis=1)[:, : neighbour + 1]  # the row itself is nearest of all
        radii.append(nearest[:, neighbour])
    return np.concatenate(radii)


def _within(points_ND: np.ndarray, centres_MD: np.ndarray, radii_M: np.ndarray) -> np.ndarray:
    """(N,) bool: whether each point lies in any ball."""
    return np.concatenate([_any_ball(part_BD, centres_MD, radii_M) for part_BD in _chunks(points_ND)])


def _any_ball(points_BD: np.ndarray, centres_MD: np.ndarray, radii_M: np.ndarray) -> np.ndarray:
    parts = zip(_chunks(centres_MD), _chunks(radii_M), strict=True)
    found = [(_squared(points_BD, centres) <= radii).any(axis=1) for centres, radii in parts]
    return np.any(found, axis=0)


def _squared(first_BD: np.ndarray, second_BD: np.ndarray) -> np.ndarray:
    """(B, B') squared distances; of equal rows exactly 0, so that copies are within a ball of radius 0."""
    lengths = np.square(first_BD).sum(1)[:, None] + np.square(second_BD).sum(1)
    distances = lengths - 2 * (first_BD @ second_BD.T)
    return np.where(distances > NOISE * lengths, distances, 0.0)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), CHUNK):
        yield rows[first : first + CHUNK].astype(np.float64)
