"""Top-k accuracy against a sort of the scores, and intervals against scipy."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from atoken.metrics.ranking import ahead_of_own, in_top, interval, share_in_top
from tests.tolerances import LEAST_SQUARES


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_sort_of_the_scores(seed):
    rng = np.random.default_rng(seed)
    scores, own = rng.normal(size=(60, 9)), rng.random((60, 9)) < 0.2
    own[np.arange(60), rng.integers(0, 9, 60)] = True
    for k in (1, 3, 5):
        best_own = np.where(own, scores, -np.inf).max(1)
        plain = [
            (np.sort(row[~mine])[::-1] >= best).sum() < k for row, mine, best in zip(scores, own, best_own, strict=True)
        ]
        assert (in_top(ahead_of_own(scores, own)[0], k) == plain).all()
        assert share_in_top(scores, own, k) == np.mean(plain)


def test_ties_and_what_is_not_finite_are_misses():
    own = np.eye(3, dtype=bool)
    ahead, tied = ahead_of_own(np.ones((3, 3)), own)
    assert (ahead.tolist(), tied.tolist()) == ([2, 2, 2], [True] * 3)
    scores = np.diag([3.0, np.nan, np.inf])
    scores[0, 1] = np.nan
    ahead, tied = ahead_of_own(scores, own)
    assert (ahead.tolist(), tied.tolist()) == ([0, -1, -1], [False] * 3)
    assert share_in_top(scores, own, 3) == 1 / 3


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (5, 10), (123, 144), (48, 48), (1, 1000)])
def test_the_interval_is_wilsons(hits, count):
    wanted = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert interval(hits / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-4)  # 1.96 is rounded
    assert all(math.isnan(end) for end in interval(math.nan, 0))


def test_a_wider_sample_has_a_narrower_interval():
    widths = [np.subtract(*interval(0.3, count)[::-1]) for count in (10, 100, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert interval(0.5, 100)[0] == pytest.approx(1 - interval(0.5, 100)[1], rel=LEAST_SQUARES)
