"""Retrieval against a plain second implementation over many small cases, with ties and vectors that are not finite."""

import math

import numpy as np
import pytest

from atoken.errors import AtokenError
from atoken.io import Image
from eval.contract import Item, Output
from eval.metrics.retrieval import BEST, Retrieval
from tests.tolerances import EXACT

MEDIA = Image(np.zeros((1, 1, 3), np.uint8))
CASES = 1000


class Captions:
    """A model that has the vectors of texts, and counts how often it was asked."""

    name, record = "captions", {}

    def __init__(self, vectors):
        self.vectors, self.asked = vectors, []

    def embed_texts(self, texts):
        self.asked += texts
        return np.stack([self.vectors[text] for text in texts])


def units(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def case(items, captions, owners):
    """Samples of items, and the model of their captions."""
    texts = [f"caption {place}" for place in range(len(captions))]
    some = [
        Output(
            Item(str(place), MEDIA, captions=tuple(texts[k] for k in np.flatnonzero(owners == place))), vector=vector
        )
        for place, vector in enumerate(items)
    ]
    return some, Captions(dict(zip(texts, captions, strict=True)))


def finished(metric, some):
    """The numbers but for the intervals."""
    state = metric.start()
    assert metric.add(state, some) == [{}] * len(some)
    return {name: value for name, value in metric.finish(state).items() if not name.endswith(("low", "high"))}


def plain(items, captions, owners):
    """Candidate by candidate; products of these small whole numbers over a power of two are exact."""

    def found(query, candidates, own, best):
        scores = [float(np.dot(query.astype(float), candidate.astype(float))) for candidate in candidates]
        finite = [(score, is_own) for score, is_own in zip(scores, own, strict=True) if math.isfinite(score)]
        mine = max((score for score, is_own in finite if is_own), default=math.inf)
        return math.isfinite(mine) and sum(score >= mine for score, is_own in finite if not is_own) < best

    results = {}
    for best in BEST:
        asked = [
            found(c, items, np.arange(len(items)) == owner, best) for c, owner in zip(captions, owners, strict=True)
        ]
        results[f"text to item R@{best}"] = np.mean(asked)
        asked = [found(item, captions, owners == place, best) for place, item in enumerate(items)]
        results[f"item to text R@{best}"] = np.mean(asked)
    return results


def coarse(rng, count):
    """Unit vectors of few directions, so that many scores tie: signs on four of eight places, each 1/2."""
    vectors = np.zeros((count, 8), np.float32)
    for vector in vectors:
        vector[rng.permutation(8)[:4] if rng.random() < 0.7 else slice(4)] = rng.choice([-0.5, 0.5], 4)
    return vectors


@pytest.mark.parametrize("part", range(4))
def test_it_is_the_plain_one_in_1000_cases_with_ties_and_faults(part):
    shares = []
    for seed in range(part, CASES, 4):
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 14))
        owners = np.repeat(np.arange(count), rng.integers(1, 4, count))
        items = coarse(rng, count)
        captions = np.where(rng.random((len(owners), 1)) < 0.4, items[owners], coarse(rng, len(owners)))
        if seed % 3 == 0:
            items[rng.integers(count), 3] = rng.choice([np.nan, np.inf])
            captions[rng.integers(len(owners), size=2), 1] = rng.choice([np.nan, -np.inf])
        some, model = case(items, captions, owners)
        with np.errstate(invalid="ignore"):
            expected = plain(items, captions, owners)
        numbers = finished(Retrieval(model, scores=int(rng.integers(1, 60))), some)
        assert {name: numbers[name] for name in expected} == expected
        shares.append(list(expected.values()))
    assert (np.std(shares, axis=0) > 0.05).all()


def lifelike(seed, count=60, width=48):
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(count), rng.integers(1, 6, count))
    items = units(rng.normal(size=(count, width)))
    captions = units(items[owners] + 0.35 * rng.normal(size=(len(owners), width)))
    items[7], captions[11] = items[8], captions[30]
    items[9, 4] = captions[20, 0] = np.nan
    return case(items, captions, owners)


def test_order_chunks_and_shards_do_not_matter_to_the_last_bit():
    some, model = lifelike(0)
    whole = finished(Retrieval(model), some)
    assert 0.2 < whole["text to item R@1"] < whole["text to item R@10"] < 1
    assert whole["text to item ties"] > 0
    for seed, scores in enumerate((1, 77, 1000)):
        rng, metric = np.random.default_rng(seed), Retrieval(model, scores=scores)
        merged = metric.start()
        for part in np.split(rng.permutation(len(some)), np.sort(rng.integers(0, len(some), 5))):
            shard = metric.start()
            metric.add(shard, [some[place] for place in part])
            merged = metric.merge(merged, shard)
        found = metric.finish(merged)
        for name, value in whole.items():
            assert found[name] - value == EXACT


def test_a_caption_is_embedded_once_and_with_those_of_its_item():
    some, model = lifelike(1)
    metric = Retrieval(model)
    first, second = metric.start(), metric.start()
    metric.add(first, some[:20])
    metric.add(second, some[20:])
    metric.finish(metric.merge(first, second))
    assert model.asked == [text for sample in some for text in sample.item.captions]


def test_oracle_vectors_are_always_found_and_shuffled_ones_by_chance():
    rng, count = np.random.default_rng(3), 1000
    owners, items = np.arange(count), units(rng.normal(size=(count, 32)))
    right = finished(Retrieval(case(items, items, owners)[1]), case(items, items, owners)[0])
    assert all(value == ("R@" in name) for name, value in right.items())

    groups = items.reshape(50, 20, 32)  # sets of 20 items, so that chance is not near 0
    asked = {f"{way} R@{best}": [] for way in ("text to item", "item to text") for best in BEST}
    for group in groups:
        some, model = case(group, group[rng.permutation(20)], np.arange(20))
        numbers = finished(Retrieval(model), some)
        for name, values in asked.items():
            values.append(numbers[name])
    for name, values in asked.items():
        chance = int(name.partition("@")[2]) / 20
        assert abs(np.mean(values) - chance) < 3 * math.sqrt(chance * (1 - chance) / count)


def test_where_all_are_equal_nothing_is_found_and_that_is_told():
    count = 30
    same = units(np.ones((count, 16)))
    some, model = case(same, same, np.arange(count))
    numbers = finished(Retrieval(model), some)
    assert all(value == 0 for name, value in numbers.items() if "R@" in name)
    assert numbers["text to item ties"] == numbers["item to text ties"] == count


def test_what_is_not_finite_is_missed_and_told_and_stands_in_nobodys_way():
    items = np.eye(4, dtype=np.float32)
    broken = items.copy()
    broken[2] = np.nan
    some, model = case(broken, items, np.arange(4))
    numbers = finished(Retrieval(model), some)
    assert numbers["text to item R@1"] == numbers["item to text R@10"] == 3 / 4
    assert numbers["text to item not finite"] == numbers["item to text not finite"] == 1
    empty = Retrieval(model)
    assert all(math.isnan(value) for name, value in empty.finish(empty.start()).items() if "R@" in name)


def test_what_does_not_fit_is_refused():
    vector = np.eye(2, dtype=np.float32)[0]
    metric = Retrieval(Captions({"x": vector, "y": 3 * vector}))
    with pytest.raises(AtokenError, match="a has no vector; retrieval needs both of every item"):
        finished(metric, [Output(Item("a", MEDIA, captions=("x",)))])
    with pytest.raises(AtokenError, match="a has no captions; retrieval needs both of every item"):
        finished(metric, [Output(Item("a", MEDIA), vector=vector)])
    with pytest.raises(AtokenError, match="A vector of captions has length 3 instead of 1"):
        finished(metric, [Output(Item("a", MEDIA, captions=("y",)), vector=vector)])
