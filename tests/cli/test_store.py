"""``atoken store``: what is in a store, whether it is whole, and its tokens as files of other programs and back."""

import json

import pytest

from tests.cli.cases import files_in, says_one_sentence
from tests.store.data import folder, make

pytest.importorskip("pyarrow")


@pytest.fixture
def store(there):
    make(folder(there / "images", count=3), there / "s", vectors=True)
    return there / "s"


def test_info_and_verify_of_a_store(run, store):
    code, out, _ = run("store", "info", "s")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:7]] == [
        "store",
        "source",
        "model",
        "options",
        "shards",
        "MB",
        "items",
    ]
    assert [line.split() for line in out.splitlines()[-2:]] == [["class-0", "2", "rows"], ["class-1", "1", "rows"]]
    facts = json.loads(run("store", "info", "s", "--json")[1])
    assert (facts["finished"], facts["statistics"]["items"], facts["plan"]["options"]["vectors"]) == (True, 3, True)
    assert run("store", "verify", "s")[0] == 0
    (store / "stats.json").unlink()
    code, out, _ = run("store", "verify", "s", "--json")
    assert code == 1
    assert [(one["file"], one["fault"]) for one in json.loads(out)["damaged"]] == [("stats.json", "is missing")]
    assert "1 damaged" in run("store", "verify", "s")[1]


def test_an_unfinished_store_is_shown_as_far_as_it_is(run, there, monkeypatch):
    monkeypatch.setattr("atoken.store.plan.MOST_CONTENTS", 1500)  # several shards
    with pytest.raises(KeyboardInterrupt):
        make(folder(there / "images", count=7), there / "s", batch_tokens=8, units=5)
    code, out, _ = run("store", "info", "s")
    assert code == 0
    assert "unfinished" in out
    code, out, said = run("store", "verify", "s")
    assert code == 0
    assert "unfinished" in said
    says_one_sentence(run("store", "export", "s", "-o", "x", "--format", "webdataset"), "not finished")
    next((there / "s" / "shards").iterdir()).write_bytes(b"")
    assert run("store", "verify", "s")[0] == 1


def test_an_export_and_back(run, store):
    assert run("store", "export", "s", "-o", "out", "--format", "webdataset")[0] == 0
    assert files_in(store.parent / "out") == ["000000.tar", "export.json"]
    code, out, _ = run("store", "import", "out", "-o", "again", "--format", "webdataset", "--json")
    assert code == 0
    assert json.loads(out)["items"] == 3
    for name in ("shards/000000.atok", "index/000000.parquet"):
        assert (store.parent / "again" / name).read_bytes() == (store / name).read_bytes()
    says_one_sentence(run("store", "export", "s", "-o", "out", "--format", "webdataset"), "out is already there")
    says_one_sentence(run("store", "export", "s", "-o", "x", "--format", "lightningdit"), "images of one size")


@pytest.mark.parametrize("task", [("info",), ("verify",), ("export", "-o", "x", "--format", "webdataset")])
def test_what_is_no_store_is_one_sentence(run, there, task):
    (there / "empty").mkdir()
    says_one_sentence(run("store", task[0], "empty", *task[1:]), "no token store")
