"""Sums of features from which means and covariances follow, folded row by row.

A sum is the same to the last bit however the rows come in batches and whatever the number of threads: products are
taken of blocks of ``BLOCK`` rows, on one thread; rows that do not fill a block yet wait. Letters: ``B`` rows, ``D``
width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from atoken.errors import AtokenError
from atoken.metrics.frechet import Gaussian, one_thread
from eval.contract import State

BLOCK = 64  # rows of features whose products are summed at once
TILE = 128  # rows of the matrix of products at a time; what is left of its diagonal tile is neither made nor kept


def add_rows(state: State, name: str, rows_BD: np.ndarray) -> None:
    """Fold features, in order, into the sums of ``state`` that begin with ``name.``, in place.

    Raises: AtokenError where the width differs from that of the rows before.
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
    merged[f"{name}.products"] = _all_products(first, name) + _all_products(second, name)
    return merged | {f"{name}.waiting": first[f"{name}.waiting"][:0].copy()}


def gaussian(state: State, name: str) -> Gaussian:
    """The moments of the rows so far; NaN for fewer than two rows, whose covariance is undefined."""
    total_D, items = state.get(f"{name}.sum", np.zeros(1)), int(state.get(f"{name}.items", np.zeros(1))[0])
    width = len(total_D)
    if items < 2:
        return Gaussian(np.full(width, np.nan), np.full((width, width), np.nan), items)
    mean_D = total_D / items
    spread_DD = _matrix(_all_products(state, name), width) - items * np.outer(mean_D, mean_D)
    return Gaussian(mean_D, spread_DD / (items - 1), items)


def _tiles(width: int) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and first row of each tile of the upper triangle of a matrix of this width."""
    for first in range(0, width, TILE):
        yield min(TILE, width - first), width - first, first


def _add_products(products: np.ndarray, rows_BD: np.ndarray) -> None:
    held_BD, start = torch.tensor(rows_BD), 0  # a copy, so that its alignment in memory is always the same
    with one_thread():
        for rows, columns, first in _tiles(held_BD.shape[1]):
            product = held_BD[:, first : first + rows].T @ held_BD[:, first:]
            products[start : start + rows * columns] += product.numpy().ravel()
            start += rows * columns


def _all_products(state: State, name: str) -> np.ndarray:
    """The products of all rows, including those that wait."""
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
