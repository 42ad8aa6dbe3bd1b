"""The usage of codes against a plain count and closed forms; merged, it is that of one pass."""

import numpy as np
import pytest

from atoken.errors import AtokenError
from atoken.io import Image
from atoken.metrics.usage import code_usage
from eval.contract import Item, Output
from eval.metrics.usage import CodeUsage
from tests.tolerances import EXACT, LEAST_SQUARES


def samples_of(codes):
    item = Item("a", Image(np.zeros((1, 1, 3), np.uint8)))
    return [Output(item, codes=part) for part in codes]


def test_usage_is_that_of_a_count():
    rng, metric = np.random.default_rng(3), CodeUsage(64)
    codes = [np.minimum(rng.geometric(0.05, (n, 3)) - 1, 63) for n in (40, 1, 0, 70)]
    state = metric.start()
    assert metric.add(state, samples_of(codes)) == [{}, {}, {}, {}]
    found, every = metric.finish(state), np.concatenate(codes)
    for group in range(3):
        counts = np.bincount(every[:, group], minlength=64)
        shares = counts[counts > 0] / 111
        assert found[f"codes used/{group}"] == (counts > 0).mean()
        assert found[f"codes dead/{group}"] == (counts == 0).sum()
        entropy = -(shares * np.log(shares)).sum()
        assert found[f"code perplexity/{group}"] == pytest.approx(np.exp(entropy), rel=LEAST_SQUARES)
    for name in ("codes used", "codes dead", "code perplexity"):
        assert found[name] == pytest.approx(np.mean([found[f"{name}/{g}"] for g in range(3)]), rel=LEAST_SQUARES)
    assert found["tokens counted"] == 111
    assert found["codes used at best"] == pytest.approx(1 - (63 / 64) ** 111, rel=LEAST_SQUARES)


def test_usage_merged_is_usage_of_one_pass():
    rng, metric = np.random.default_rng(4), CodeUsage()
    codes = [rng.integers(0, 4096, (30, 8)) for _ in range(6)]
    whole, parts = metric.start(), [metric.start() for _ in range(4)]  # the last has no samples
    metric.add(whole, samples_of(codes))
    for part, of in zip(parts, (codes[:1], codes[1:4], codes[4:]), strict=False):
        metric.add(part, samples_of(of))
    merged = metric.start()
    for part in parts:
        merged = metric.merge(merged, part)
    assert np.abs(merged["counts"] - whole["counts"]).max() == EXACT
    assert metric.finish(merged) == metric.finish(whole)


def test_usage_has_closed_forms():
    metric = CodeUsage(16)
    even, one = metric.start(), metric.start()
    metric.add(even, samples_of([np.arange(16)[:, None]]))
    metric.add(one, samples_of([np.full((9, 1), 5)]))
    assert metric.finish(even)["code perplexity"] == pytest.approx(16, rel=LEAST_SQUARES)
    assert metric.finish(even)["codes dead"] == 0
    assert metric.finish(one)["code perplexity"] == 1
    assert metric.finish(one)["codes dead/0"] == 15
    assert np.isnan([*metric.finish(metric.start()).values()]).all()


def test_codes_that_cannot_be_counted_are_refused():
    metric, state = CodeUsage(16), CodeUsage(16).start()
    pairs = [np.zeros((2, 1), int), np.zeros((2, 2), int)]
    wrong = [([None], "has no codes"), ([np.full((2, 1), 16)], "outside"), ([np.full((2, 1), -1)], "outside")]
    for codes, message in [*wrong, (pairs, "1 and 2 groups")]:
        with pytest.raises(AtokenError, match=message):
            metric.add(state, samples_of(codes))
        assert len(state["counts"]) == 0


def test_a_group_without_tokens_has_no_usage_and_leaves_the_others_alone():
    found = code_usage(np.array([[0, 0, 0, 0], [1, 0, 3, 0]]))
    assert {name for name, of in found.items() if np.isnan(of[0])} == {"codes used", "codes dead", "code perplexity"}
    assert (found["codes used"][1], found["codes dead"][1]) == (0.5, 2)
    assert found["tokens counted"].tolist() == [0, 4]
