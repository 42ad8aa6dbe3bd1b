"""Real test sets: classes by what the .json of a sample says, probes, and what a classifier says of images."""

import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest

from atoken.errors import AtokenError, MediaError
from atoken.io import Image
from eval.contract import Item, Output
from eval.metrics.classes import ClassAccuracy, ClassAgreement
from eval.metrics.probe import LinearProbe
from eval.prepare import Preparation
from eval.sources import samples
from eval.sources.entry import Prepared
from eval.tasks import TASKS

SHOES = {"a_label": "a pair of shoes", "group": "clothing"}
HAT = {"a_label": "a hat", "group": "clothing"}
MILK = {"a_label": "arla milk", "group": "milk", "a_group": "milk"}
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"


def shard(path, *records):
    """A WebDataset shard with an image for each record, as bright as its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, record in enumerate(records):
            pixels = io.BytesIO()
            PIL.Image.new("RGB", (20, 17), (number,) * 3).save(pixels, "png")
            for suffix, data in ((".png", pixels.getvalue()), (".json", json.dumps(record).encode())):
                member = tarfile.TarInfo(f"{number:06d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path.parent


def test_photographs_have_the_class_that_is_asked_for_and_others_are_left_out(tmp_path):
    root = shard(tmp_path / "test" / "a.tar", SHOES, MILK, HAT, SHOES)
    clothes, groceries = (samples.photos(root, of) for of in (samples.clothes, samples.groceries))
    assert (clothes.classes, groceries.classes) == (("a hat", "a pair of shoes"), ("milk",))
    assert [entry.label for entry in clothes.entries] == [1, 0, 1]
    assert [item.media.pixels[0, 0, 0] for item in Prepared(clothes.entries, Preparation())] == [0, 2, 3]
    assert [entry.label for entry in samples.photos(root).entries] == [None] * 4


def test_bytes_of_a_photograph_in_a_shard_are_part_of_the_hash_of_the_data(tmp_path):
    small, large = (shard(tmp_path / name / "a.tar", SHOES) for name in ("x", "y"))
    assert samples.photos(small).entries[0].line() == samples.photos(large).entries[0].line()
    (entry,) = samples.photos(small).entries
    assert json.loads(entry.line())[1] == entry.size > 0


def test_a_sample_that_does_not_say_what_it_shows_is_named(tmp_path):
    root = shard(tmp_path / "a.tar", SHOES, {"label": "hat"})
    with pytest.raises(MediaError, match=r"The \.json of a\.tar/000001 does not say what it shows"):
        samples.photos(root, samples.clothes)


def test_a_probe_learns_from_the_training_split_and_classes_are_those_of_both(tmp_path):
    shard(tmp_path / "train" / "a.tar", SHOES, HAT, MILK)
    shard(tmp_path / "test" / "b.tar", {**HAT, "a_label": "an apron"}, HAT)
    listing = samples.photos_to_probe(tmp_path, samples.clothes, "test")
    assert listing.classes == ("a hat", "a pair of shoes", "an apron")
    assert [(entry.key.partition("/")[0], entry.label) for entry in listing.entries] == [
        ("train", 1), ("train", 0), ("test", 2), ("test", 0),
    ]  # fmt: skip


def test_nouns_of_furniture_are_last_words_and_the_commonest_count(tmp_path, monkeypatch):
    labels = ["corner sofa 2", "sofa", "table", "old lamp", "bed 140x190", "42"]
    for number, label in enumerate(labels):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "model.obj").write_text(OBJ)
        (tmp_path / f"{number}" / "model.json").write_text(json.dumps({"label": label}))
    assert [samples.noun({"label": label}) for label in labels] == [
        "a sofa", "a sofa", "a table", "a lamp", "a bed", None,
    ]  # fmt: skip
    assert samples.noun({"label": "old umbrella"}) == "an umbrella"
    monkeypatch.setattr(samples, "FURNITURE_NOUNS", 2)
    listing = samples.furniture(tmp_path, samples.noun)
    assert listing.classes == ("a bed", "a sofa")
    assert [entry.key[0] for entry in listing.entries] == ["0", "1", "4"]
    assert len(samples.furniture(tmp_path).entries) == len(labels)


def test_what_is_not_fetched_is_said_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path))
    with pytest.raises(AtokenError, match="run `atoken fetch photos`"):
        TASKS["photos-test"].listing(tmp_path, None)
    shard(tmp_path / "photos" / "test" / "a.tar", SHOES, HAT)
    assert len(TASKS["photos-test"].listing(tmp_path / "elsewhere", None).entries) == 2


def vector(label, learned, noise):
    """Three classes, each around an axis."""
    towards = np.eye(3)[label] + 0.1 * noise
    key = f"{'train' if learned else 'test'}/{label}/{noise[0]}"
    return Output(Item(key, Image(np.zeros((1, 1, 3), np.uint8)), label), vector=towards.astype(np.float32))


def test_a_linear_probe_is_exact_on_classes_that_a_line_divides_and_blind_without():
    noise = iter(np.random.default_rng(0).normal(size=(400, 3)))
    outputs = [vector(number % 3, number < 60, next(noise)) for number in range(90)]
    metric = LinearProbe("train/")
    whole = metric.start()
    assert metric.add(whole, outputs) == [{}] * 90
    found = metric.finish(whole)
    assert (found["linear probe"], found["k-NN"], found["items tested"]) == (1, 1, 30)
    assert found["commonest class"] == pytest.approx(1 / 3)
    shards = [metric.start() for _ in range(4)]
    for number, state in enumerate(shards[1:]):
        metric.add(state, outputs[30 * number : 30 * number + 30])
    merged = shards[0]
    for state in shards[1:]:
        merged = metric.merge(merged, state)
    assert metric.finish(merged) == found
    swapped = [Output(Item(one.item.key, one.item.media, (one.item.label + (number >= 60)) % 3), vector=one.vector)
               for number, one in enumerate(outputs)]  # fmt: skip
    state = metric.start()
    metric.add(state, swapped)
    assert metric.finish(state)["linear probe"] == 0


def test_a_linear_probe_needs_both_parts_and_a_label():
    metric, state = LinearProbe("train/"), LinearProbe("train/").start()
    metric.add(state, [vector(0, True, np.zeros(3))])
    with pytest.raises(AtokenError, match="items to learn from and items to test on"):
        metric.finish(state)
    with pytest.raises(AtokenError, match="lacks a vector or a label"):
        metric.add(state, [Output(Item("train/x", Image(np.zeros((1, 1, 3), np.uint8)), 1))])


def test_agreement_is_of_the_most_probable_classes_and_merges():
    measure, classes = ClassAgreement("agreement"), np.eye(4)
    whole, first, second = {}, {}, {}
    predicted, known = [0, 1, 2, 3, 3], [0, 1, 1, 3, 0]
    for side, rows in (("prediction", classes[predicted]), ("target", classes[known])):
        measure.fold(whole, side, rows, None)
        measure.fold(first, side, rows[:2], None)
        measure.fold(second, side, rows[2:], None)
    assert measure.finish(whole) == {"agreement": 3 / 5} == measure.finish(measure.merge(first, second))
    assert np.isnan(measure.finish({})["agreement"])


def test_accuracy_counts_samples_of_their_known_class():
    measure, state = ClassAccuracy("accuracy", {"a/x.png": 2, "b/y.png": 1}), {}
    measure.fold(state, "prediction", np.eye(3)[[2, 0]], ["a/x.png#0", "b/y.png#0"])
    measure.fold(state, "target", np.eye(3)[[0]], ["other#0"])
    assert measure.finish(state) == {"accuracy": 0.5}
