"""Questions and answers: what counts as right, counts by type, what stands beside a model, and a whole run."""

import json
from collections import Counter

import numpy as np
import pytest

from atoken.errors import AtokenError
from atoken.io import Image, Mesh, Video
from eval.command import main
from eval.contract import Item, Output
from eval.metrics.answers import Accuracy
from eval.models.answers import MostFrequent, NearestLabel
from eval.prepare import Preparation
from eval.sources import questions
from eval.sources.entry import Entry, Listing
from eval.tasks import TASKS
from mllm.answers import plain
from mllm.assembly import assemble
from tests.mllm.labelled_shard import write_shard
from tests.mllm.tiny_language import write_language, write_tower

MEDIA = Image(np.zeros((16, 16, 3), np.uint8))


@pytest.mark.parametrize(
    ("answer", "same"),
    [("Red.", "red"), (" a red  ring\n", "A red ring"), ("the gala apple", "gala apple"), ("an", ""), ("", "."),
     ("Yes!", "yes")],
)  # fmt: skip
def test_case_a_first_article_and_a_full_stop_say_nothing(answer, same):
    assert plain(answer) == plain(same)


@pytest.mark.parametrize(("answer", "other"), [("red", "red ring"), ("no", "yes"), ("a ring a", "ring"), ("1", "one")])
def test_everything_else_counts(answer, other):
    assert plain(answer) != plain(other)


def outputs(*answers):
    return [
        Output(Item(str(n), MEDIA, label, ("What is it?", right)), answer=said, cut=said == "cut")
        for n, (label, right, said) in enumerate(answers)
    ]


def test_shares_of_all_and_of_each_type():
    metric = Accuracy(("colour", "yes/no", "motion"))
    state = metric.start()
    assert metric.add(state, outputs((0, "red", "Red."), (0, "blue", "red"))) == [{"accuracy": 1}, {"accuracy": 0}]
    more = metric.start()
    metric.add(more, outputs((1, "yes", "yes"), (1, "no", "cut")))
    found = metric.finish(metric.merge(state, more))
    low, high = found.pop("accuracy low"), found.pop("accuracy high")
    assert 0 < low < 0.5 < high < 1
    assert found == {"accuracy": 0.5, "accuracy, colour": 0.5, "accuracy, yes/no": 0.5, "answers cut": 1}
    with pytest.raises(AtokenError, match="has no answer"):
        metric.add(state, [Output(Item("a", MEDIA, 0, ("What?", "red")))])


@pytest.mark.parametrize(("modality", "type"), [("image", Image), ("video", Video), ("asset", Mesh)])
def test_generated_questions_are_those_of_the_seed_and_of_no_other(modality, type):
    listing = questions.synthetic(1, modality, 20)
    assert isinstance(listing.entries[3].media(), type)
    assert {entry.label for entry in listing.entries} == {*range(len(listing.classes))}
    assert [one.line() for one in questions.synthetic(1, modality, 20).entries] == [e.line() for e in listing.entries]
    others = {entry.captions for entry in questions.synthetic(2, modality, 20).entries}
    assert len(others & {entry.captions for entry in listing.entries}) < 10


def test_the_most_frequent_answer_of_each_type():
    rows = [(0, "red"), (0, "Red"), (0, "blue"), (1, "yes"), (1, "no")]
    listing = Listing([Entry(str(n), MEDIA, label, ("?", right)) for n, (label, right) in enumerate(rows)])
    model = MostFrequent(listing, {})
    items = [Item(entry.key, MEDIA, entry.label, entry.captions) for entry in listing.entries]
    assert [output.answer for output in model.answer(items)] == ["red", "red", "red", "no", "no"]
    with pytest.raises(AtokenError, match="asks questions"):
        model.reconstruct(items)


class Grey:
    """The vector of an image is its grey value and what it lacks to white; that of a text says how dark it is."""

    name, record = "grey", {"dtype": "float32"}

    def embed(self, items):
        greys = [np.array([item.media.pixels.mean(), 255 - item.media.pixels.mean()], np.float32) for item in items]
        return [Output(i, vector=grey / np.linalg.norm(grey)) for i, grey in zip(items, greys, strict=True)]

    def embed_texts(self, texts):
        return np.array([[0, 1] if "black" in text else [1, 0] for text in texts], np.float32)


def test_the_nearest_label_is_an_answer():
    media = {"a black cat": np.full((16, 16, 3), 20, np.uint8), "a white cat": np.full((16, 16, 3), 200, np.uint8)}
    listing = Listing([Entry(name, MEDIA, 0, ("?", name)) for name in media])
    items = [Item(name, Image(pixels), 0, ("?", name)) for name, pixels in media.items()]
    assert [output.answer for output in NearestLabel(Grey(), listing, Preparation()).answer(items)] == [*media]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A vision-language model of random weights."""
    folder = tmp_path_factory.mktemp("vl")
    parts = write_language(folder / "language"), write_tower(folder / "tower")
    found, processor = assemble(
        *parts, frames=4, slow_frames=2, video_pixels=48 * 48, image_pixels=64 * 64, asset_tokens=16
    )
    found.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return f"vl:{folder / 'model'}"


@pytest.mark.parametrize(("task", "items"), [("vqa-images", 14), ("vqa-videos", 10), ("vqa-assets", 4)])
def test_a_run_has_a_row_for_the_model_without_media_and_for_guessing(model, task, items, tmp_path, capsys):
    assert main(["run", task, "--model", model, "--items", str(items), "-o", str(tmp_path), "--device", "cpu"]) == 1
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["partial"] * 3  # of 1,000
    assert [row["model"].partition(model.partition(":")[2])[2] for row in rows[:2]] == ["", ", blind"]
    columns = [{(name, one["fingerprint"]) for name, one in row["numbers"].items()} for row in rows]
    assert columns[0] == columns[1] == columns[2]
    assert rows[0]["protocol"]["data"] == rows[1]["protocol"]["data"]
    assert {f"accuracy, {name}" for name in TASKS[task].open(1).classes} <= {name for name, _ in columns[0]}
    lines = [json.loads(line) for line in (tmp_path / rows[2]["items"]["file"]).read_text().splitlines()]
    assert Counter(line["accuracy"] for line in lines)[1] == round(items * rows[2]["numbers"]["accuracy"]["value"])
    assert all(isinstance(line["answer"], str) for line in lines)


def test_a_task_of_questions_needs_a_model_that_answers(tmp_path, capsys):
    assert main(["run", "vqa-images", "--model", "jpeg:80", "-o", str(tmp_path)]) == 1
    assert "choose a vision-language model, such as --model vl:vl-nano" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_photographs_are_asked_for_their_exact_label(tmp_path):
    groups = [("clothing", "a polo shirt", "clothing"), ("apple", "a gala apple", "an apple")]
    write_shard(tmp_path / "a.tar", [{"group": g, "a_label": label, "a_group": of} for g, label, of in groups])
    listing = questions.photographs(tmp_path)
    assert listing.classes == ("clothes", "groceries")
    assert [entry.captions[1] for entry in listing.entries] == ["a polo shirt", "a gala apple"]
    assert [entry.label for entry in listing.entries] == [0, 1]
