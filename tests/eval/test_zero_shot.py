"""Zero-shot classification: its prompts and vectors in closed form, a plain second implementation, chance and ties."""

import hashlib
import math
import re

import numpy as np
import pytest

from atoken.errors import AtokenError
from atoken.io import Image
from eval.contract import Item, Output
from eval.metrics.zero_shot import CLASS_NAME_ONLY, OPENAI, Choice, Templates, ZeroShot, class_vectors
from tests.tolerances import EXACT

MEDIA = Image(np.zeros((1, 1, 3), np.uint8))
EPS = 1e-12
NEITHER = {"zero-shot ties": 0, "zero-shot not finite": 0}


class Words:
    """A model of texts alone: the vector of a text is drawn from its letters, not normalised."""

    name, record = "words", {}

    def __init__(self, width=32):
        self.width, self.asked = width, []

    def embed_texts(self, texts):
        self.asked += texts
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        return np.random.default_rng(seed).normal(size=self.width).astype(np.float32)


def units(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def samples(vectors, labels):
    return [
        Output(Item(str(place), MEDIA, label=label), vector=vector)
        for place, (vector, label) in enumerate(zip(vectors, labels, strict=True))
    ]


def metric_of(vectors):
    return ZeroShot(vectors, [f"class {place}" for place in range(len(vectors))], CLASS_NAME_ONLY)


def finished(metric, some):
    """The numbers but for the interval, and those of each output."""
    state = metric.start()
    alone = metric.add(state, some)
    found = metric.finish(state)
    low, high = (found.pop(f"zero-shot top-1 {end}") for end in ("low", "high"))
    assert not some or low <= found["zero-shot top-1"] <= high + EPS
    return found, alone


def random_case(seed, count=200, classes=12, width=6):
    rng = np.random.default_rng(seed)
    vectors = units(rng.normal(size=(classes, width)))
    labels = rng.integers(0, classes, count).tolist()
    return vectors, units(vectors[labels] + rng.normal(size=(count, width))), labels


def test_the_80_templates_are_pinned():
    assert len(OPENAI.sentences) == len(set(OPENAI.sentences)) == 80
    assert sum(sentence.startswith("itap") for sentence in OPENAI.sentences) == 3
    assert all(re.fullmatch(r"[a-z{} -]+\.", sentence) for sentence in OPENAI.sentences)
    assert OPENAI.prompts("tench")[0] == "a bad photo of a tench."
    assert OPENAI.prompts("tench")[-1] == "a tattoo of the tench."
    assert CLASS_NAME_ONLY.prompts("a {} of {0}") == ["a {} of {0}"]
    for sentences in ((), ("a photo.",), ("{} and {}",)):
        with pytest.raises(AtokenError, match=r"Each template of mine needs one \{\} for the name of the class"):
            Templates("mine", sentences)


def test_the_vector_of_a_class_is_the_normalised_mean_of_normalised_vectors():
    model, labels = Words(), ["tench", "goldfish", "hen"]
    found = class_vectors(model, labels, OPENAI)
    for vector, label in zip(found, labels, strict=True):
        lines = [model.vector(prompt).astype(float) for prompt in OPENAI.prompts(label)]
        mean = sum(line / math.sqrt(line @ line) for line in lines) / 80
        assert vector == pytest.approx(mean / math.sqrt(mean @ mean), rel=1e-12)
    assert len(model.asked) == 3 * 80
    assert np.array_equal(class_vectors(Words(), labels[::-1], OPENAI), found[::-1])
    only = class_vectors(Words(), labels, CLASS_NAME_ONLY)
    assert only[1] == pytest.approx(units(Words().vector("goldfish").astype(float)), abs=1e-7)
    with pytest.raises(AtokenError, match="There are no classes"):
        class_vectors(Words(), [], OPENAI)


def test_the_record_tells_templates_and_classes_apart():
    model = Words()
    pairs = (["a", "b"], OPENAI), (["a", "c"], OPENAI), (["b", "a"], OPENAI), (["a", "b"], CLASS_NAME_ONLY)
    records = [ZeroShot(class_vectors(model, *pair), *pair).record for pair in pairs]
    assert len({record["classes"] for record in records}) == 3
    assert len({record["templates"] for record in records}) == 2
    assert records[0]["templates"] == "80 of OpenAI, SHA-256 e30aa9d7fb289e07"  # compared with open_clip's, in order


def test_oracle_vectors_are_always_right():
    vectors = class_vectors(Words(), [f"class {place}" for place in range(50)], OPENAI)
    labels = np.random.default_rng(0).integers(0, 50, 300).tolist()
    means, alone = finished(metric_of(vectors), samples(vectors[labels].astype(np.float32), labels))
    assert means == {"zero-shot top-1": 1, "zero-shot top-5": 1} | NEITHER
    assert alone == [{"zero-shot top-1": 1, "zero-shot top-5": 1}] * 300


def test_shuffled_labels_are_right_by_chance():
    count, classes = 4000, 20
    vectors, found, labels = random_case(1, count, classes, width=16)
    means = finished(metric_of(vectors), samples(found, np.random.default_rng(2).permutation(labels).tolist()))[0]
    for best in (1, 5):
        chance = best / classes
        sigma = math.sqrt(chance * (1 - chance) / count)
        assert abs(means[f"zero-shot top-{best}"] - chance) < 3 * sigma


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_sort_of_the_scores(seed):
    vectors, found, labels = random_case(seed)
    means, alone = finished(metric_of(vectors), samples(found, labels))
    for best in (1, 5):
        right = [
            label in np.argsort(-(vectors.astype(float) @ vector))[:best]
            for vector, label in zip(found, labels, strict=True)
        ]
        assert 0.1 < np.mean(right) < 1
        assert [numbers[f"zero-shot top-{best}"] for numbers in alone] == right
        assert means[f"zero-shot top-{best}"] == np.mean(right)


def test_order_of_items_and_classes_and_shards_do_not_matter_to_the_last_bit():
    vectors, found, labels = random_case(7, count=300, classes=33, width=24)
    vectors[5] = vectors[6]
    found[3, 2] = np.nan
    whole = finished(metric_of(vectors), samples(found, labels))[0]
    assert whole["zero-shot ties"] > 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        classes, order = rng.permutation(33), rng.permutation(300)
        moved = np.argsort(classes)[labels].tolist()
        metric, some = metric_of(vectors[classes]), samples(found, moved)
        merged = metric.start()
        for part in np.split(order, np.sort(rng.integers(0, 300, 4))):
            shard = metric.start()
            metric.add(shard, [some[place] for place in part])
            merged = metric.merge(merged, shard)
        numbers = metric.finish(merged)
        for name, value in whole.items():
            assert numbers[name] - value == EXACT


def test_a_tie_is_a_miss_and_is_told():
    vectors = np.eye(8, dtype=np.float32)[[0, 0, 1, 2, 3, 4, 5, 6]]
    right, tied = vectors[2], vectors[1]
    assert finished(metric_of(vectors), samples([right, tied], [2, 1]))[1] == [
        {"zero-shot top-1": 1, "zero-shot top-5": 1}, {"zero-shot top-1": 0, "zero-shot top-5": 1},
    ]  # fmt: skip
    even = units(np.ones(8))  # as near to six classes as to the own one
    means = finished(metric_of(np.eye(8, dtype=np.float32)[:7]), samples([even], [3]))[0]
    assert means == {"zero-shot top-1": 0, "zero-shot top-5": 0} | NEITHER | {"zero-shot ties": 1}


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_a_miss_and_is_told(broken):
    vectors = np.eye(3, dtype=np.float32)
    some = np.eye(3, dtype=np.float32)
    some[1, 1] = broken
    means, alone = finished(metric_of(vectors), samples(some, [0, 1, 2]))
    assert means == {"zero-shot top-1": 2 / 3, "zero-shot top-5": 2 / 3} | NEITHER | {"zero-shot not finite": 1}
    assert alone[1] == {"zero-shot top-1": 0, "zero-shot top-5": 0}
    assert math.isnan(finished(metric_of(vectors), [])[0]["zero-shot top-1"])


def test_what_does_not_fit_is_refused():
    vectors = np.eye(3, dtype=np.float32)
    for vector, label, match in (
        (None, 0, "0 has no vector; zero-shot"),
        (vectors[0], None, "0 has no label below 3"),
        (vectors[0], 3, "0 has no label below 3"),
        (vectors[0], -1, "0 has no label below 3"),
        (2 * vectors[0], 0, "A vector of 0 has length 2 instead of 1"),
    ):
        with pytest.raises(AtokenError, match=match):
            finished(metric_of(vectors), samples([vector], [label]))
    with pytest.raises(AtokenError, match="There are 3 vectors for 2 classes; give one for each"):
        ZeroShot(vectors, ["a", "b"], OPENAI)
    for wrong in (0.0, np.nan):
        with pytest.raises(AtokenError, match="The vector of a class is zero or not finite"):
            metric_of(np.where(np.eye(3)[:, :1] == 1, wrong, vectors).astype(np.float32))


def asked(vector, label, *captions):
    return Output(Item("item", MEDIA, label=label, captions=captions), vector=vector)


def test_a_choice_is_among_the_captions_of_each_item():
    model = Words()
    left, right, other = (units(model.vector(text)) for text in ("left", "right", "other"))
    some = [
        asked(left, 0, "left", "right"), asked(left, 1, "right", "left", "up"), asked(left, 1, "left", "right"),
        asked(right, 0, "right", "right"), asked(other * np.nan, 0, "left", "right"),
    ]  # fmt: skip
    metric = Choice(model)
    state = metric.start()
    assert [one["choice top-1"] for one in metric.add(state, some)] == [1, 1, 0, 0, 0]
    found = metric.finish(metric.merge(state, metric.start()))
    low, high = (found.pop(f"choice top-1 {end}") for end in ("low", "high"))
    assert low < found["choice top-1"] < high
    assert found == {"choice top-1": 0.4, "choice ties": 1, "choice not finite": 1}


@pytest.mark.parametrize(
    ("vector", "label", "captions", "match"),
    [
        (None, 0, ("a", "b"), "item has no vector; a choice"),
        (np.eye(32, dtype=np.float32)[0], 2, ("a", "b"), "item has no caption with the number of its label"),
        (np.eye(32, dtype=np.float32)[0], None, ("a", "b"), "item has no caption with the number of its label"),
    ],
)
def test_a_choice_needs_a_vector_and_a_right_caption(vector, label, captions, match):
    with pytest.raises(AtokenError, match=match):
        Choice(Words()).add(Choice(Words()).start(), [asked(vector, label, *captions)])
