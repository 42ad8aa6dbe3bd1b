"""Top-k accuracy from scores, with pessimistic ties. Shape letters: ``Q`` queries, ``C`` candidates."""

from __future__ import annotations

import math

import numpy as np

Z_95 = 1.96  # standard deviations that hold 95 % of a normal distribution


def ahead_of_own(scores_QC: np.ndarray, own_QC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each query, how many other candidates score at least as high as its best own one, and whether any ties.

    own_QC: bool, the right answers of each query. Returns (Q,) int64 and (Q,) bool. Ties count as ahead, other
    candidates whose score is NaN do not. A query whose own scores are not finite gets -1, which is in no top k.
    """
    best_Q1 = np.fmax.reduce(scores_QC, axis=1, where=own_QC, initial=-np.inf, keepdims=True)
    ahead_Q = ((scores_QC >= best_Q1) & ~own_QC).sum(axis=1)
    ahead_Q[~np.isfinite(best_Q1[:, 0])] = -1
    return ahead_Q, ((scores_QC == best_Q1) & ~own_QC).any(axis=1)


def in_top(ahead_Q: np.ndarray, k: int) -> np.ndarray:
    """(Q,) bool: whether the own candidate is among the ``k`` best, from what ``ahead_of_own`` counted."""
    return (ahead_Q >= 0) & (ahead_Q < k)


def share_in_top(scores_QC: np.ndarray, own_QC: np.ndarray, k: int = 1) -> float:
    """Top-k accuracy: the share of queries whose own candidate is among the ``k`` best."""
    return float(in_top(ahead_of_own(scores_QC, own_QC)[0], k).mean())


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` independent trials (Wilson 1927); NaN without trials."""
    if not count:
        return math.nan, math.nan
    middle = share + Z_95**2 / (2 * count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + (Z_95 / (2 * count)) ** 2)
    return (middle - half) / (1 + Z_95**2 / count), (middle + half) / (1 + Z_95**2 / count)
