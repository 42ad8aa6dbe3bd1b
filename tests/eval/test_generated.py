"""Samples of a generator as files, and as a model under test."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import atoken
from atoken.errors import AtokenError
from atoken.io import Image
from eval.contract import Item, Output
from eval.models.samples import Samples
from eval.prepare import Preparation
from eval.sources.entry import Entry, Prepared
from eval.sources.generated import entries_of, samples_of
from generation.dit import DiT
from generation.pipelines.class_to_image import ClassToImagePipeline


@pytest.fixture
def generator(tmp_path):
    """The folder of a small pipeline of two labels."""
    torch.manual_seed(0)
    model, nano = DiT(side=2, channels=48, width=16, depth=1, heads=2, classes=2), atoken.load("nano")
    means = nano.statistics.mean, nano.statistics.std
    ClassToImagePipeline(model, ("red ring", "apple"), "nano", nano.fingerprint, *means).save_pretrained(tmp_path / "g")
    return tmp_path / "g"


def test_samples_are_made_in_a_process_of_their_own_and_are_read_by_key(generator, tmp_path):
    found = samples_of(str(generator), tmp_path / "s", 3, labels=["apple", "red ring"], options=["--steps", "2"])
    entries = entries_of(found, ["a", "b", "c"])
    assert [entry.key for entry in entries] == ["a", "b", "c"]
    assert {entry.media().pixels.shape for entry in entries} == {(32, 32, 3)}
    with np.load(found) as arrays:
        assert arrays["arr_1"].tolist() == [1, 0, 1]
        assert np.array_equal(arrays["arr_0"][2], entries[2].media().pixels)
    assert json.loads((tmp_path / "s/asked.json").read_text())["num_inference_steps"] == 2


def test_a_generator_that_is_not_there_is_one_sentence(tmp_path, capfd):
    with pytest.raises(AtokenError, match="gave no samples; the reason is in the lines before"):
        samples_of(str(tmp_path / "none"), tmp_path / "s", 3)
    assert "There is no pipeline in" in capfd.readouterr().err


class Brightness:
    """A judge whose vector of an image is its first pixel."""

    name, record = "brightness", {"fingerprint": "1234"}

    def embed(self, items):
        return [Output(item, vector=item.media.pixels[0, 0].astype(np.float32)) for item in items]

    def embed_texts(self, texts):
        return np.ones((len(texts), 3), np.float32)


def test_an_image_stands_for_the_item_of_its_key():
    def grey(value):
        return Image(np.full((4, 4, 3), value, np.uint8))

    images = Prepared([Entry("b", partial(grey, 2)), Entry("a", partial(grey, 1))], Preparation())
    model = Samples("some", {"of": "b, a"}, images, Brightness(), lambda key: key.startswith("train/"))
    assert model.record == {"of": "b, a", "judge": "brightness 1234"}
    assert model.name == "some, seen by brightness"
    items = [Item("a", grey(7), 0), Item("train/x", grey(8), 1), Item("b", grey(9), 1)]
    outputs = model.embed(items)
    assert [output.vector[0] for output in outputs] == [1, 8, 2]
    assert [output.item for output in outputs] == items
    pair = model.reconstruct(items[:1])[0]
    assert (pair.target.shape, pair.target.max(), pair.prediction.max()) == ((1, 4, 4, 3), 7, 1)
    with pytest.raises(AtokenError, match="No image of some, seen by brightness stands for c"):
        model.embed([Item("c", grey(7))])
