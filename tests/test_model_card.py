"""The README of a bundled model says what its runs recorded: data with their makers and licences, teachers, time."""

import json

import numpy as np
import pytest

from atoken.errors import AtokenError
from atoken.io import Image
from atoken.model import ATokenModel
from atoken.presets import preset
from scripts.model_card import model_card

SOURCE = {"folder": None, "shards": None, "table": None, "procedural": None, "filmed": False}


def trained(run, tables, start=None, teachers=()):
    """A run that has ended after two starts of 90 and 30 seconds."""
    run.mkdir(parents=True)
    record = {
        "recipe": {"steps": 1200}, "start": start and str(start / "model"), "data": {"tables": tables},
        "stage": {"tasks": {"image-text": {"modality": "image"}}},
        "launch": {"data": "nano.toml", "teachers": dict.fromkeys(teachers, "")},
        "versions": {"python": "3.11.7", "torch": "2.13.0"}, "git": None,
    }  # fmt: skip
    (run / "start-000000.json").write_text(json.dumps(record))
    (run / "log.jsonl").write_text('{"seconds": 30}\n{"seconds": 90}\n{"seconds": 30}\n')
    return run


def photograph(folder, name, **record):
    folder.mkdir(exist_ok=True)
    Image(np.zeros((16, 16, 3), np.uint8)).save(folder / f"{name}.png")
    (folder / f"{name}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def model():
    return ATokenModel(preset("nano"))


def card(run, model):
    return " ".join(model_card(run, "nano", model, 4 << 20).split())


def test_it_names_the_data_of_all_runs_with_makers_and_licences_once(tmp_path, model):
    media = tmp_path / "media"
    photograph(media, "a", source="clothing-dataset", label="hat")
    photograph(media, "b", creator="Ann", licence="CC-BY-3.0", label="chair")
    photograph(media, "c", creator="Ann", licence="CC-BY-3.0", label="chair")
    photograph(media, "d", creator="Bob", licence="CC0", label="table")
    first = trained(tmp_path / "1", {"image": {"mine": SOURCE | {"folder": str(media)}}})
    second = trained(
        tmp_path / "2",
        {"image": {"unused": SOURCE | {"folder": "nowhere"}},
         "image-text": {"made": SOURCE | {"procedural": "mixed"}, "mine": SOURCE | {"folder": str(media)}}},
        first, ["alex_shift_tolerant.pth"],
    )  # fmt: skip
    text = card(second, model)
    assert "| clothing-dataset | 1 | images | CC0-1.0 | Alexey Grigorev and contributors | https://github.com/" in text
    assert "| media | 3 | images | CC-BY-3.0 (2), CC0 (1) | not recorded |" in text
    assert "- Ann: chair (2)." in text
    assert "Bob" not in text
    assert "| 1 | 1,200 | 2 | | 2 | 1,200 | 2 |" in text  # minutes
    assert "a perceptual distance; BSD-2-Clause; from stlpips-pytorch==0.0.2." in text


def test_of_generated_media_alone_it_names_nobody(tmp_path, model):
    text = card(trained(tmp_path / "1", {"image": {"made": SOURCE | {"procedural": "mixed"}}}), model)
    assert "own generator, with captions. ## Networks that it learned from None." in text
    assert text.endswith("Apache-2.0.")


def test_data_that_are_gone_are_an_error(tmp_path, model):
    with pytest.raises(AtokenError, match="media"):
        card(trained(tmp_path / "1", {"image": {"mine": SOURCE | {"folder": str(tmp_path / "media")}}}), model)
