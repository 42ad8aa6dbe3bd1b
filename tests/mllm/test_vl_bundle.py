"""What ``make vl-nano`` does around its training: questions about Python, and the model in place with its README."""

import json
import sys

import pytest

from mllm.data.mixture import read_mixture
from mllm.data.records import Records
from mllm.model import ATokenVLForConditionalGeneration
from scripts import bundle_vl, vl_texts
from tests.mllm.labelled_shard import write_shard
from tests.mllm.vl_data import words, write_sources

LABELS = [{"a_label": f"a {fruit}", "a_group": "a fruit", "source": "clothing-dataset"} for fruit in ("pear", "plum")]

pytest.importorskip("peft", reason="the extra mllm is not installed")


def test_questions_about_python_are_conversations(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vl_texts", str(tmp_path / "new/texts.jsonl")])
    vl_texts.main()
    records = Records(tmp_path / "new/texts.jsonl")
    assert len(records) > 1000
    answers = [records[number].messages[1].text for number in range(len(records))]
    assert all(answer[0].isupper() and answer.endswith(".") for answer in answers)
    assert len({records[number].messages[0].text for number in range(len(records))}) == len(records)


def test_a_finished_run_is_put_in_place(tmp_path, monkeypatch, capsys):
    from mllm import sources
    from mllm.command import main

    folder = write_sources(tmp_path)
    write_shard(shard := tmp_path / "photographs.tar", LABELS)
    (tmp_path / "vl.yaml").write_text(json.dumps({"datasets": [{"photographs": str(shard)}]}))
    monkeypatch.setattr(bundle_vl, "DATA", tmp_path / "vl.yaml")
    monkeypatch.setattr(sources, "BUNDLED", tmp_path / "bundled")
    bundle = ["bundle_vl", str(tmp_path / "run"), "--weights", str(tmp_path / "bundled")]
    monkeypatch.setattr(sys, "argv", bundle)
    with pytest.raises(SystemExit, match="no finished run"):
        bundle_vl.main()
    more = ("--validation", str(folder / "checked.yaml"))
    assert main(words(folder, tmp_path / "run", *more, changes=("steps=2",))) == 0
    bundle_vl.main()
    card = (tmp_path / "bundled/vl-nano/README.md").read_text()
    assert "2 steps of at most 400 tokens" in card
    assert "| right | " in card
    assert "LoRA of rank 2" in card
    assert ATokenVLForConditionalGeneration.from_pretrained("vl-nano").config.lora["rank"] == 2
    monkeypatch.setattr(bundle_vl, "MOST", 1000)
    with pytest.raises(SystemExit, match="too large"):
        bundle_vl.main()


def test_the_mixture_of_vl_nano_is_one(tmp_path):
    bundle_vl.DATA.with_name("vl-nano-validation.yaml").read_text()
    text = bundle_vl.DATA.read_text().replace("../runs/vl-nano/", "").replace("fetched:photos/train", "p.tar")
    (tmp_path / "mix.yaml").write_text(text)
    write_shard(tmp_path / "p.tar", LABELS)
    said = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes."}]}
    (tmp_path / "texts.jsonl").write_text(json.dumps(said))
    assert len(read_mixture(tmp_path / "mix.yaml")) > 20_000
