"""Files of conversations are read by number, chosen by LLaVA's strategies, and mixed; what is wrong is one sentence."""

import json
import pickle
from pathlib import Path

import pytest

from atoken.errors import AtokenError
from mllm.data.mixture import expanded, read_mixture
from mllm.data.records import Records, chosen
from tests.mllm.labelled_shard import write_shard


def record(number):
    turns = [{"from": "human", "value": f"<image>\nWhich é is {number}?"}, {"from": "gpt", "value": str(number)}]
    return {"id": number, "image": f"{number}.png", "conversations": turns}


def write(path, count, first=0):
    """A JSON list, or lines with an empty one at the end."""
    records = [json.dumps(record(first + number), ensure_ascii=False) for number in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*records, ""]) if path.suffix == ".jsonl" else f"\n[{', '.join(records)}]")
    return path


def answers(conversations):
    return [int(conversations[index].messages[-1].text) for index in range(len(conversations))]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_is_read_by_number(tmp_path, name):
    records = Records(write(tmp_path / name, 30))
    assert answers(records) == list(range(30))
    assert records[7].media[0].source == tmp_path / "7.png"
    assert records[7].key == f"{tmp_path / name}, record 7"
    assert "é" in records[7].messages[0].text
    assert Records(tmp_path / name, folder="/media")[7].media[0].source == Path("/media/7.png")
    again = pickle.loads(pickle.dumps(records))  # noqa: S301 - as it goes to other processes
    assert answers(again) == answers(records)
    assert len(pickle.dumps(records)) < 1000


def test_strategies_choose_as_they_say():
    assert [*chosen("all", 7, 0)] == [0, 1, 2, 3, 4, 5, 6]
    assert [*chosen("first:3", 7, 0)] == [0, 1, 2]
    assert [*chosen("end:2", 7, 0)] == [5, 6]
    assert [*chosen("end:0", 7, 0)] == []
    assert [*chosen("first:50%", 7, 0)] == [0, 1, 2, 3]  # rounded up
    assert [*chosen("first:9", 7, 0)] == [*range(7)]
    some = [*chosen("random:30", 100, 1)]
    assert len({*some}) == 30
    assert some == sorted(some) == [*chosen("random:30", 100, 1)]
    assert some != [*chosen("random:30", 100, 2)]
    assert len(chosen("random:10%", 1000, 0)) == 100
    for wrong in ("", "last:3", "first", "first:x", "first:-3", "10%"):
        with pytest.raises(AtokenError, match="sampling_strategy; there are all, first:N"):
            chosen(wrong, 7, 0)


def test_a_mixture_has_each_data_set_once(tmp_path):
    write(tmp_path / "in/x.json", 10)
    write(tmp_path / "in/y.jsonl", 10, first=100)
    write_shard(tmp_path / "photos.tar", [{"a_label": "a hat", "a_group": "clothing"}] * 3)
    (tmp_path / "mix.yaml").write_text(
        """
datasets:
  - json_path: in/{x.json,y.jsonl}
    sampling_strategy: first:20%
    folder: media
  - json_path: in/x.json
    sampling_strategy: random:3
    seed: 5
  - {questions: video, samples: 4, size: [4, 32, 32], turns: 2, seed: 3}
  - photographs: photos.tar
"""
    )
    mixture = read_mixture(tmp_path / "mix.yaml")
    assert len(mixture) == 2 + 2 + 3 + 4 + 3
    assert [mixture[index].messages[-1].text for index in range(4)] == ["0", "1", "100", "101"]
    assert mixture[3].media[0].source == tmp_path / "media/101.png"
    assert mixture[4].media[0].source.parent == tmp_path / "in"
    assert [item.modality for index in range(7, 11) for item in mixture[index].media] == ["video"] * 4
    assert mixture[7].media[0].source.size == (4, 32, 32)
    assert isinstance(mixture[13].media[0].source, bytes)
    assert mixture.name_of(0) == "1: in/x.json"
    assert mixture.name_of(13) == "5: photos.tar"
    with pytest.raises(IndexError):
        mixture[14]
    assert answers(read_mixture(tmp_path / "in/y.jsonl")) == [*range(100, 110)]


def test_braces_stand_for_several_files():
    assert expanded("a/{x, y}.json") == ["a/x.json", "a/y.json"]
    assert expanded("a/x.json") == ["a/x.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets: []", "must have datasets"),
        ("datasets: [{json_path: x.json}]\nmore: 1", "must have datasets"),
        ("a: [", "not valid YAML"),
        ("datasets: [3]", "cannot be 3"),
        ("datasets: [{}]", "mix.yaml, 1 must have one of json_path, questions, photographs; it has none"),
        ("datasets: [{json_path: x.json, questions: image}]", "it has json_path and questions"),
        ("datasets: [{json_path: x.json, sampling_stratgy: all}]", "did you mean sampling_strategy"),
        ("datasets: [{json_path: x.json, samples: 3}]", "no key of json_path 'samples'"),
        ("datasets: [{json_path: 3}]", "json_path cannot be 3"),
        ("datasets: [{json_path: none.json}]", "Cannot read .*none.json: No such file"),
        ("datasets: [{json_path: x.json, sampling_strategy: half}]", "'half' is no sampling_strategy"),
        ("datasets: [{json_path: x.json, sampling_strategy: 'first:0'}]", "No record of .*x.json is left"),
        ("datasets: [{questions: sound, samples: 3}]", "not about 'sound'"),
        ("datasets: [{questions: image}]", "at least 1"),
        ("datasets: [{photographs: none.tar}]", "none.tar"),
    ],
)
def test_a_wrong_entry_is_said(tmp_path, text, said):
    write(tmp_path / "x.json", 2)
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(AtokenError, match=said):
        read_mixture(tmp_path / "mix.yaml")


def test_a_wrong_file_or_record_is_said(tmp_path):
    for text, said in (("", "is empty"), ("[{]", "neither a JSON list nor JSON lines"), ('{"a": 1}\n{b}', "neither")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(AtokenError, match=said):
            Records(tmp_path / "x.json")
    (tmp_path / "x.json").write_text(f'[{json.dumps(record(0))}, 3, {{"conversations": "?"}}]')
    records = Records(tmp_path / "x.json")
    assert records[0].media
    for number in (1, 2):
        with pytest.raises(AtokenError, match=f"x.json, record {number} "):
            records[number]
