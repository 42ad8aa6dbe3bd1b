"""Inception Score, precision and recall against plain second implementations and against sets with known answers."""

import math

import numpy as np
import pytest

from eval.metrics import distribution
from eval.metrics.distribution import InceptionScore, PrecisionRecall
from tests.tolerances import MOMENTS


def probabilities(seed, count, classes=7):
    values = np.exp(2 * np.random.default_rng(seed).normal(size=(count, classes)))
    return values / values.sum(1, keepdims=True)


def plain_score(rows, split):
    scores = []
    for first in range(0, len(rows), split):
        part = rows[first : first + split]
        divergence = (part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()
        scores.append(math.exp(divergence))
    return np.mean(scores), np.std(scores), len(scores)


def plain_precision(prediction, target, neighbour):
    """Of points, one by one, with exact differences."""
    radii = [np.sort(np.square(target - one).sum(1))[neighbour] for one in target]
    return np.mean([any(np.square(one - target).sum(1) <= radii) for one in prediction])


def names(prefix, count):
    return [f"{prefix}{index}" for index in range(count)]


def measured(measure, prediction, target):
    state = {}
    measure.fold(state, "prediction", prediction, names("a", len(prediction)))
    measure.fold(state, "target", target, names("b", len(target)))
    return measure.finish(state)


@pytest.mark.parametrize("count", [40, 95, 100, 7])
def test_the_score_is_the_plain_one(count):
    rows, measure = probabilities(count, count), InceptionScore(split=20, cell=4)
    state = {}
    for first in range(0, count, 9):
        measure.fold(state, "prediction", rows[first : first + 9], [])
    measure.fold(state, "target", probabilities(0, 30), [])
    found = measure.finish(state)
    mean, deviation, splits = plain_score(rows, 20)
    assert found["inception score"] == pytest.approx(mean, rel=MOMENTS)
    assert found["inception score std"] == pytest.approx(deviation, rel=MOMENTS, abs=MOMENTS)
    assert (found["inception score splits"], found["inception score items"]) == (splits, count)


def test_scores_with_known_values():
    sure, split = np.eye(8)[np.arange(80) % 8], InceptionScore(split=80, cell=8)
    for rows, score in ((sure, 8), (np.full((80, 8), 1 / 8), 1), (np.eye(8)[np.zeros(80, int)], 1)):
        state = {}
        split.fold(state, "prediction", rows, [])
        assert split.finish(state)["inception score"] == pytest.approx(score, rel=MOMENTS)
    assert math.isnan(split.finish({})["inception score"])


def test_scores_do_not_depend_on_batches():
    rows, measure = probabilities(1, 58), InceptionScore(split=20, cell=4)
    whole, parts = {}, {}
    measure.fold(whole, "prediction", rows, [])
    for part in np.split(rows, [7, 12, 41]):
        measure.fold(parts, "prediction", part, [])
    assert measure.finish(parts) == measure.finish(whole)
    with pytest.raises(ValueError, match="whole cells"):
        InceptionScore(split=10, cell=4)


def test_a_probability_that_is_no_number_stays_so():
    rows, measure, state = probabilities(1, 20), InceptionScore(20, 4), {}
    rows[3, 2] = np.nan
    measure.fold(state, "prediction", rows, [])
    assert math.isnan(measure.finish(state)["inception score"])


@pytest.mark.parametrize("chunk", [10, 64, 1000])
@pytest.mark.parametrize("neighbour", [1, 3])
def test_precision_and_recall_are_the_plain_ones(chunk, neighbour, monkeypatch):
    monkeypatch.setattr(distribution, "CHUNK", chunk)
    rng = np.random.default_rng(neighbour)
    for shift in (0, 0.5, 2):
        prediction, target = (
            rng.normal(shift, 1, (150, 5)).astype(np.float32),
            rng.normal(0, 1.2, (120, 5)).astype(np.float32),
        )
        found = measured(PrecisionRecall(neighbour), prediction, target)
        exact = prediction.astype(float), target.astype(float)
        assert found["precision"] == plain_precision(*exact, neighbour)
        assert found["recall"] == plain_precision(*exact[::-1], neighbour)
        assert (found["precision items"], found["recall items"]) == (150, 120)


def test_ties_of_whole_numbers_count_as_within():
    rng = np.random.default_rng(5)
    prediction, target = (rng.integers(0, 3, (60, 3)).astype(np.float32) for _ in range(2))
    found = measured(PrecisionRecall(), prediction, target)
    assert found["precision"] == plain_precision(prediction, target, 3)
    assert found["recall"] == plain_precision(target, prediction, 3)


def test_crowds_with_known_answers():
    rows = np.random.default_rng(1).normal(100, 1, (50, 30)).astype(np.float32)
    same, apart = measured(PrecisionRecall(), rows, rows), measured(PrecisionRecall(), rows, rows + 50)
    assert (same["precision"], same["recall"]) == (1, 1)
    assert (apart["precision"], apart["recall"]) == (0, 0)
    copies = np.repeat(rows[:1], 50, 0)  # a generator that always draws one of the originals, at a distance of nothing
    collapsed = measured(PrecisionRecall(), copies, rows)
    assert (collapsed["precision"], collapsed["recall"]) == (1, 1 / 50)


def test_too_few_or_broken_rows_are_not_a_number():
    rows = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    assert math.isnan(measured(PrecisionRecall(), rows[:3], rows)["precision"])
    assert math.isnan(PrecisionRecall().finish({})["recall"])
    rows[7, 1] = np.inf
    assert math.isnan(measured(PrecisionRecall(), rows, rows)["precision"])


@pytest.mark.parametrize("limit", [5, 40, 64])
def test_which_items_count_does_not_depend_on_their_order(limit):
    rng = np.random.default_rng(2)
    measure = PrecisionRecall(references=limit, samples=limit + 3)
    rows, keys = {side: rng.normal(size=(64, 4)) for side in ("prediction", "target")}, names("x", 64)
    whole, shuffled = {}, {}
    for side in rows:
        measure.fold(whole, side, rows[side], keys)
        for part in np.array_split(rng.permutation(64), 5):
            measure.fold(shuffled, side, rows[side][part], [keys[index] for index in part])
    found = measure.finish(whole)
    assert measure.finish(shuffled) == found
    assert (found["precision items"], found["recall items"]) == (min(limit + 3, 64), limit)


def test_distances_far_from_the_origin_keep_copies_together():
    rows = np.random.default_rng(3).normal(1e4, 1, (20, 6))
    found, exact = distribution._squared(rows, rows), np.square(rows[:, None] - rows[None]).sum(2)
    assert (np.diag(found) == 0).all()
    np.testing.assert_allclose(found, exact, atol=distribution.NOISE * 4 * np.square(rows).sum(1).max(), rtol=0)
