"""Sums and products that do not depend on order or pieces, against fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

from atoken.errors import AtokenError
from atoken.io import Image
from eval.contract import Item, Output
from eval.metrics.exact import GRID, Mean, on_grid
from tests.tolerances import EXACT


class Told(Mean):
    """The numbers that the key of a sample tells."""

    name, record, numbers = "told", {}, ("value", "root")

    def measure(self, sample):
        value = float(sample.item.key)
        return {"value": value} | ({"root": math.sqrt(value)} if value >= 0 else {})


def told(values):
    media = Image(np.zeros((1, 1, 3), np.uint8))
    return [Output(Item(repr(float(value)), media)) for value in values]


def wild(seed, count=300):
    rng = np.random.default_rng(seed)
    return rng.normal(size=count) * 10.0 ** rng.integers(-12, 13, count)


def state_of(metric, values):
    state = metric.start()
    metric.add(state, told(values))
    return state


@pytest.mark.parametrize("seed", range(5))
def test_a_mean_is_the_exact_one_rounded_once_in_any_order_and_any_shards(seed):
    metric, values = Told(), wild(seed)
    exact = float(sum(map(Fraction, values.tolist()))) / len(values)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        cuts = np.sort(rng.integers(0, len(values), rng.integers(0, 9)))
        shards = [state_of(metric, part) for part in np.split(rng.permutation(values), cuts)]
        state = metric.start()
        for shard in shards:
            state = metric.merge(state, shard)
        assert metric.finish(state)["value"] - exact == EXACT


def test_a_number_that_a_sample_lacks_is_in_no_mean_and_without_samples_there_is_none():
    metric = Told()
    assert metric.finish(state_of(metric, [-4, 4, 16])) == {"value": 16 / 3, "root": 3.0}
    assert all(math.isnan(mean) for mean in metric.finish(metric.start()).values())


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_wherever_it_comes(broken):
    metric = Told()
    for values in ([broken, 1, 2], [1, broken, 2]):
        for cut in range(3):
            merged = metric.merge(*(state_of(metric, part) for part in (values[:cut], values[cut:])))
            assert repr(metric.finish(merged)["value"]) == repr(broken)
    both = state_of(metric, [math.inf, 1, -math.inf])
    assert math.isnan(metric.finish(both)["value"])


def test_what_is_kept_does_not_grow_with_the_samples():
    metric = Told()
    sizes = [len(state_of(metric, wild(9, count))["value"]) for count in (10, 1000)]
    assert max(sizes) < 12


def units(seed, count, width):
    values = np.random.default_rng(seed).normal(size=(count, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_products_of_vectors_on_the_grid_are_exact():
    first, second = (on_grid(units(seed, 20, 96), "a test") for seed in (0, 1))
    assert np.abs(first - units(0, 20, 96)).max() <= 0.5 / GRID
    whole = [[int(value * GRID) for value in row] for row in (*first, *second)]
    scores = first @ second.T
    for i in range(20):
        for j in range(20):
            product = Fraction(sum(a * b for a, b in zip(whole[i], whole[20 + j], strict=True)), int(GRID) ** 2)
            assert Fraction(scores[i, j]) == product
    order = np.random.default_rng(2).permutation(96)
    assert np.array_equal((second[:, order] @ first[:, order].T).T, scores)


def test_vectors_that_are_no_units_are_refused_and_what_is_not_finite_is_so_as_a_whole():
    vectors = units(3, 4, 8)
    vectors[1, 2], vectors[2, 5] = math.inf, math.nan
    vectors[3] = 0
    found = on_grid(vectors, "a test")
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, False]
    assert np.isfinite(found[[0, 3]]).all()
    with pytest.raises(AtokenError, match="A vector of a test has length 2 instead of 1; let the model normalise it"):
        on_grid(2 * vectors[:1], "a test")
