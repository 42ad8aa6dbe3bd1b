"""Bundled generators: small enough, by name, with a README of their data; and the script that puts them in place."""

import json
import tarfile

import pytest

import atoken
from generation import presets
from generation.pipelines.class_to_image import ClassToImagePipeline
from generation.presets import BUNDLED
from scripts import bundle_generators
from tests.generation.test_pipeline import flow, masked
from tests.test_model_card import photograph

TOML = """
[image.figures]
procedural = "labelled"
items = 1200

[image.fruit]
shards = "fruit.tar"
"""


@pytest.mark.parametrize("name", [folder.name for folder in sorted(BUNDLED.glob("*/"))] or [None])
def test_what_is_bundled_is_small_and_of_the_bundled_tokenizer(name):
    if name is None:
        pytest.skip("no generators are bundled; make generators trains them")
    files = [file for file in (BUNDLED / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= bundle_generators.MOST
    pipeline = ClassToImagePipeline.from_pretrained(name)
    assert pipeline.config.fingerprint == atoken.load(pipeline.config.tokenizer).fingerprint
    assert len(pipeline.config.labels) == pipeline.transformer.config.classes == 108
    assert "## Data" in (BUNDLED / name / "README.md").read_text()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs that have ended, and the data that they were trained on."""
    photograph(tmp_path / "fruit", "a", source="GroceryStoreDataset", group="apple")
    with tarfile.open(tmp_path / "fruit.tar", "w") as shard:
        for file in sorted((tmp_path / "fruit").iterdir()):
            shard.add(file, file.name)
    (tmp_path / "data.toml").write_text(TOML)
    monkeypatch.setattr(bundle_generators, "DATA", tmp_path / "data.toml")
    started = {
        "recipe": {"steps": 1200}, "generator": {"samples": 32, "micro_batches": 2},
        "versions": {"python": "3.11.7", "torch": "2.13.0"}, "git": None,
    }  # fmt: skip
    for name, make in {"dit": flow, "tokenbridge": masked}.items():
        make().save_pretrained(tmp_path / "runs" / name / "model")
        (tmp_path / "runs" / name / "start-000000.json").write_text(json.dumps(started))
        (tmp_path / "runs" / name / "log.jsonl").write_text('{"seconds": 90}\n{"seconds": 30}\n')
    return tmp_path / "runs"


def test_finished_runs_are_put_in_place_and_found_by_name(runs, tmp_path, monkeypatch):
    bundle(runs, tmp_path / "bundled", monkeypatch)
    monkeypatch.setattr(presets, "BUNDLED", tmp_path / "bundled")
    for name in ("dit-nano", "tokenbridge-nano"):
        pipeline = ClassToImagePipeline.from_pretrained(name)
        assert list(pipeline.config.labels) == ["red ring", "blue star", "apple"]
        text = " ".join((tmp_path / "bundled" / name / "README.md").read_text().split())
        assert "Images of 48x48 pixels from 3 classes" in text
        assert "1,200 steps of 64 samples in 2 minutes" in text
        assert "1,200 figures of the project's own generator, and: | data |" in text
        assert "| GroceryStoreDataset | 1 | images | MIT | Marcus Klasson" in text
        config = pipeline.config
        assert f"Tokens of another tokenizer than `{config.tokenizer}` {config.fingerprint[:12]} are refused." in text


@pytest.mark.parametrize(("change", "said"), [("large", "dit-nano is too large"), ("unfinished", "no finished run")])
def test_nothing_is_put_in_place_of_what_does_not_fit(runs, tmp_path, monkeypatch, change, said):
    if change == "large":
        monkeypatch.setattr(bundle_generators, "MOST", 1000)
    else:
        (runs / "tokenbridge/model").rename(runs / "gone")
    with pytest.raises(SystemExit, match=f"Nothing was put in place: .*{said}"):
        bundle(runs, tmp_path / "bundled", monkeypatch)
    assert not (tmp_path / "bundled").exists()


def bundle(runs, weights, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bundle_generators", str(runs), "--weights", str(weights)])
    bundle_generators.main()
