"""Means and covariances of features, sample by sample, and the Frechet distance between two of them.

A sum is the same to the last bit however the rows come in batches and whatever the threads are: products are taken of
blocks of ``BLOCK`` rows, on one thread; rows that fill no block yet wait. Letters: ``B`` rows, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from atoken.errors import AtokenError
from atoken.metrics.frechet import Gaussian, check_width, frechet_distance, one_thread
from eval.contract import State

BLOCK = 64  # rows of features whose products are summed at once
TILE = 128  # rows of the matrix of products at a time; what is left of its diagonal tile is neither made nor kept


def add_rows(state: State, name: str, rows_BD: np.ndarray) -> None:
    """Fold features, in order, into the sums of ``state`` that begin with ``name.``, in place.

    Raises: AtokenError where the width is another than before.
    """
    rows_BD = np.asarray(rows_BD, np.float64)
    width = rows_BD.shape[1]
    if f"{name}.sum" not in state:
        state[f"{name}.items"], state[f"{name}.sum"] = np.zeros(1), np.zeros(width)
        state[f"{name}.products"] = np.zeros(sum(rows * columns for rows, columns, _ in _tiles(width)))
        state[f"{name}.waiting"] = np.zeros((0, width))
    if len(state[f"{name}.sum"]) != width:
        before = len(state[f"{name}.sum"])
        raise AtokenError(
            f"The features of {name} are {width} numbers wide after {before}: bring all items to one size first."
        )
    state[f"{name}.items"] += len(rows_BD)
    for row_D in rows_BD:
        state[f"{name}.sum"] += row_D
    waiting_BD = np.concatenate([state[f"{name}.waiting"], rows_BD])
    whole = len(waiting_BD) // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        _add_products(state[f"{name}.products"], waiting_BD[first : first + BLOCK])
    state[f"{name}.waiting"] = waiting_BD[whole:].copy()


def merge_rows(first: State, second: State, name: str) -> State:
    """The sums beginning with ``name.`` of the rows of ``first``, then those of ``second``."""
    held = [state for state in (first, second) if f"{name}.items" in state]
    if len(held) < 2:
        return {key: array.copy() for state in held for key, array in state.items() if key.startswith(f"{name}.")}
    merged = {f"{name}.{part}": first[f"{name}.{part}"] + second[f"{name}.{part}"] for part in ("items", "sum")}
    merged[f"{name}.products"] = _settled(first, name) + _settled(second, name)
    return merged | {f"{name}.waiting": first[f"{name}.waiting"][:0].copy()}


def gaussian(state: State, name: str) -> Gaussian:
    """The moments of the rows so far; of fewer than two, whose covariance is undefined, not a number."""
    total_D, items = state.get(f"{name}.sum", np.zeros(1)), int(state.get(f"{name}.items", np.zeros(1))[0])
    width = len(total_D)
    if items < 2:
        return Gaussian(np.full(width, np.nan), np.full((width, width), np.nan), items)
    mean_D = total_D / items
    spread_DD = _matrix(_settled(state, name), width) - items * np.outer(mean_D, mean_D)
    return Gaussian(mean_D, spread_DD / (items - 1), items)


def _tiles(width: int) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and first row of each tile of the upper triangle of a matrix of this width."""
    for first in range(0, width, TILE):
        yield min(TILE, width - first), width - first, first


def _add_products(products: np.ndarray, rows_BD: np.ndarray) -> None:
    held_BD, start = torch.tensor(rows_BD), 0  # a copy that is aligned in memory, always alike
    with one_thread():
        for rows, columns, first in _tiles(held_BD.shape[1]):
            product = held_BD[:, first : first + rows].T @ held_BD[:, first:]
            products[start : start + rows * columns] += product.numpy().ravel()
            start += rows * columns


def _settled(state: State, name: str) -> np.ndarray:
    """The products of all rows, also of those that wait."""
    products = state[f"{name}.products"].copy()
    if len(waiting_BD := state[f"{name}.waiting"]):
        _add_products(products, waiting_BD)
    return products


def _matrix(products: np.ndarray, width: int) -> np.ndarray:
    """The symmetric matrix whose upper triangle lies in tiles."""
    upper, start = np.zeros((width, width)), 0
    for rows, columns, first in _tiles(width):
        upper[first : first + rows, first:] = products[start : start + rows * columns].reshape(rows, columns)
        start += rows * columns
    upper = np.triu(upper)
    return upper + np.triu(upper, 1).T


@dataclass(frozen=True, eq=False)
class Frechet:
    """The distance between features of two sides, "prediction" and "target", as a measure of ``metrics/features.py``.

    name: of the number: "rfid" and "gfid" of pooled features, "sfid" of spatial ones (Nash et al. 2021), "rfvd" of
    features of videos (Unterthiner et al. 2018). reference: stands for "target" where it is known beforehand.
    """

    name: str
    kind: str = "pooled"
    reference: Gaussian | None = None

    @property
    def record(self) -> dict[str, str]:
        """What the protocol has to say of it."""
        return {self.name: f"{self.kind} features, unbiased covariance"}

    def fold(self, state: State, side: str, rows: np.ndarray, keys: object) -> None:
        """Add the features of one side. Raises: AtokenError where their width is another than before."""
        if self.reference is not None:
            if side == "target":
                return
            check_width(rows.shape[1], len(self.reference.mean_D))  # before the network has seen all samples
        add_rows(state, f"{self.name}.{side}", rows)

    def merge(self, first: State, second: State) -> State:
        """The sums of the rows of ``first``, then those of ``second``."""
        prediction, target = (merge_rows(first, second, f"{self.name}.{side}") for side in ("prediction", "target"))
        return prediction | target

    def finish(self, state: State) -> dict[str, float]:
        """NAME, "NAME mean" and "NAME covariance", its terms, and "NAME items", of the side that has fewer of them.

        "NAME items lacking" is a warning: so many more are needed for covariances of full rank; without them the value
        depends on the number of items. Raises: AtokenError where a reference has another width.
        """
        prediction = gaussian(state, f"{self.name}.prediction")
        target = gaussian(state, f"{self.name}.target") if self.reference is None else self.reference
        if prediction.items == 0 or target.items == 0:  # no width either
            return {self.name: float("nan"), f"{self.name} items": 0.0}
        found, items = (
            frechet_distance(prediction, target),
            min(one.items for one in (prediction, target) if one.items is not None),
        )
        numbers = {"": found.value, " mean": found.mean, " covariance": found.covariance, " items": float(items)}
        if items <= len(prediction.mean_D):
            numbers[" items lacking"] = float(len(prediction.mean_D) + 1 - items)
        return {f"{self.name}{end}": number for end, number in numbers.items()}
