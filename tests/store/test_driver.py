"""Stores: what is in them, that any way to make one gives the same bytes, and what is refused in one sentence."""

import hashlib
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from atoken.errors import AtokenError, MissingExtraError, StoreError
from atoken.io.contents import Item
from atoken.io.token_file import TokenFile
from atoken.store import driver
from atoken.store.layout import FAILURES, INDEX, MANIFEST, SHARDS, WORK, index_name, shard_name
from atoken.store.plan import locked
from atoken.train.manifest import sha256
from tests.store.data import Here, contents, folder, make
from tests.tokenizer.small import small_tokenizer

TWO_SHARDS = {"batch_tokens": 8, "shard_mb": 1}


@pytest.fixture(scope="module", autouse=True)
def _small_shards():
    """A shard takes few items, so that a small store has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atoken.store.plan.MOST_CONTENTS", 1500)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """An uninterrupted store."""
    store = tmp_path_factory.mktemp("whole") / "store"
    make(source, store, **TWO_SHARDS)
    return contents(store)


def rows_of(store):
    return [row for path in sorted((store / INDEX).iterdir()) for row in parquet.read_table(path).to_pylist()]


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("latents", ["float32", "float16"])
def test_a_store_holds_what_the_tokenizer_makes_of_each_file(source, tmp_path, kind, latents):
    make(source, tmp_path / "s", kind, latents=latents, vectors=True, **TWO_SHARDS)
    rows, tokenizer = rows_of(tmp_path / "s"), small_tokenizer(kind)
    assert [row["key"] for row in rows] == [f"class-{i % 2}/{i:04d}.png" for i in (0, 2, 4, 6, 1, 3, 5)]
    assert len({row["shard"] for row in rows}) > 1
    for row in rows:
        path = tmp_path / "s" / SHARDS / shard_name(row["shard"])
        expected = tokenizer.encode(source / row["key"])
        with TokenFile(path) as file:
            found, item = file.read(row["number"]), file.items[row["number"]]
        wanted = expected.latents.half().float() if (kind, latents) == ("continuous", "float16") else expected.latents
        torch.testing.assert_close(found.latents, wanted, rtol=0, atol=1e-5 if latents == "float32" else 1e-2)
        assert torch.equal(found.coords, expected.coords)
        assert (found.size, found.modality, len(found.latents)) == (
            (row["height"], row["width"]),
            "image",
            row["tokens"],
        )
        assert msgspec.msgpack.decode(row["entry"], type=Item) == item
        stored = path.read_bytes()[row["offset"] : row["offset"] + row["size_bytes"]]
        assert row["checksum"] == hashlib.sha256(stored).digest()
        assert (row["label"], row["captions"], row["flipped"], row["draw"]) == (row["key"][:7], [], False, 0)
        assert np.linalg.norm(row["vector"]) == pytest.approx(1, abs=1e-5)


def test_statistics_are_those_of_all_tokens_and_the_manifest_names_every_file(source, tmp_path):
    stats = make(source, tmp_path / "s", **TWO_SHARDS)
    latents = []
    for path in sorted((tmp_path / "s" / SHARDS).iterdir()):
        with TokenFile(path) as file:
            latents += [file.read(index).latents.double() for index in range(len(file))]
    every, every_token = stats["latents"]["all"], torch.cat(latents)
    np.testing.assert_allclose(every["mean"], every_token.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(every["std"], every_token.std(0, unbiased=False), rtol=1e-5)
    assert every["least"] == every_token.amin(0).tolist()
    assert every["most"] == every_token.amax(0).tolist()
    assert (every["tokens"], every["samples"], stats["failures"]) == (len(every_token), 7, 0)
    assert stats["labels"] == {"class-0": 4, "class-1": 3}
    listed = json.loads((tmp_path / "s" / MANIFEST).read_bytes())["files"]
    assert {*listed, MANIFEST} == {*contents(tmp_path / "s")}
    for name, about in listed.items():
        path = tmp_path / "s" / name
        assert (about["size_bytes"], about["sha256"]) == (path.stat().st_size, sha256(path))


def test_codes_are_counted(source, tmp_path):
    stats = make(source, tmp_path / "s", "discrete")
    counts = np.array(stats["codes"])
    assert counts.shape == (8, 4096)
    assert set(counts.sum(1)) == {stats["latents"]["all"]["tokens"]}


def test_the_order_of_units_and_an_interruption_after_each_leave_no_trace(source, tmp_path, whole):
    make(source, tmp_path / "backwards", backwards=True, **TWO_SHARDS)
    assert contents(tmp_path / "backwards") == whole
    for _ in range(20):
        try:
            make(source, tmp_path / "s", units=1, **TWO_SHARDS)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "s" / MANIFEST).exists()
    assert contents(tmp_path / "s") == whole


def killed_at(number, source, store):
    """Make a store in a process that ends, as by kill -9, at its ``number``-th renaming of a file."""
    renamed, replace = count(1), Path.replace

    def dying(self, target):
        if next(renamed) == number:
            os._exit(9)
        return replace(self, target)

    Path.replace = dying
    make(source, store, **TWO_SHARDS)
    os._exit(0)


def test_killed_at_any_write_it_goes_on_to_the_same_bytes(source, tmp_path, whole):
    context, deaths = multiprocessing.get_context("fork"), 0
    for number in count(1):
        store = tmp_path / f"s{number}"
        process = context.Process(target=killed_at, args=(number, source, store))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        assert not (store / MANIFEST).exists()
        make(source, store, **TWO_SHARDS)
        assert contents(store) == whole, f"killed at write {number}"
        deaths += 1
    assert deaths > 15
    assert contents(store) == whole


def test_what_is_complete_is_not_touched_again(source, tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "s", units=6, **TWO_SHARDS)
    first = tmp_path / "s" / SHARDS / shard_name(0)
    before = first.stat()
    make(source, tmp_path / "s", **TWO_SHARDS)
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert first.stat().st_ino == before.st_ino
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
    make(source, tmp_path / "s", engine=Here(None), **TWO_SHARDS)  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()} == finished


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "note"])
def test_a_damaged_unit_is_made_again(source, tmp_path, whole, damage):
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "s", units=1, **TWO_SHARDS)
    (unit,), (note,) = (list((tmp_path / "s" / WORK).glob(f"*{suffix}")) for suffix in (".atok", ".unit"))
    data = bytearray(unit.read_bytes())
    if damage == "truncated":
        unit.write_bytes(data[:-40])
    elif damage == "flipped":
        data[100] ^= 1
        unit.write_bytes(data)
    elif damage == "missing":
        unit.unlink()
    else:
        note.write_bytes(note.read_bytes()[:50])
    make(source, tmp_path / "s", **TWO_SHARDS)
    assert contents(tmp_path / "s") == whole


def test_a_unit_that_is_damaged_meanwhile_is_named_and_made_again_by_the_next_run(source, tmp_path, whole):
    class Damaging(Here):
        def encode(self, job, units):
            for report in super().encode(job, units):
                path = job.unit_files(report.unit)[0]
                path.write_bytes(path.read_bytes()[:-60])
                yield report

    with pytest.raises(StoreError, match=r"Unit 0 in \S+ is damaged; run the command again\."):
        make(source, tmp_path / "s", engine=Damaging(small_tokenizer()), **TWO_SHARDS)
    make(source, tmp_path / "s", **TWO_SHARDS)
    assert contents(tmp_path / "s") == whole


@pytest.mark.parametrize("file", [f"{SHARDS}/{shard_name(0)}", f"{INDEX}/{index_name(0)}"])
def test_a_shard_that_was_truncated_before_the_end_is_made_again(source, tmp_path, whole, file):
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "s", units=6, **TWO_SHARDS)
    path = tmp_path / "s" / file
    path.write_bytes(path.read_bytes()[:100])
    make(source, tmp_path / "s", **TWO_SHARDS)
    assert contents(tmp_path / "s") == whole


def test_another_model_source_or_option_is_refused_by_name(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "s", units=1, **TWO_SHARDS)
    before = contents(tmp_path / "s")
    others = folder(tmp_path / "others", count=8)
    for changes, words in [
        ({"kind": "discrete"}, r"the model was small-continuous .*, now it is small-discrete"),
        ({"source": others}, r"the source was 7 items .*, now it is 8 items"),
        ({"flip": True}, "flip was False, now it is True"),
        ({"crop": 16, "latents": "float16"}, "latents was float32, now it is float16; crop was None, now it is 16"),
    ]:
        with pytest.raises(StoreError, match=words):
            make(**({"source": source, "store": tmp_path / "s"} | TWO_SHARDS | changes))
    assert contents(tmp_path / "s") == before


def test_two_drivers_and_foreign_files_are_one_sentence(source, tmp_path):
    with locked(tmp_path / "s"), pytest.raises(StoreError, match="Another process is writing"):
        make(source, tmp_path / "s")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(StoreError, match=r"holds other files, such as thesis\.txt"):
        make(source, tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"all of it"}
    with pytest.raises(StoreError, match="Cannot list"):
        make(source, tmp_path / "mine" / "thesis.txt")


def without_space(source, store, bytes_left, said):
    """Make a store in a process whose files may not be longer, which the system says as it says that a disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))
    try:
        make(source, store, **TWO_SHARDS)
    except AtokenError as error:
        os.write(said, str(error).encode())


@pytest.mark.parametrize("bytes_left", [500, 1500, 4000, 9000])
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(source, tmp_path, whole, bytes_left):
    read, said = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=without_space, args=(source, tmp_path / "s", bytes_left, said)
    )
    process.start()
    process.join()
    os.close(said)
    with os.fdopen(read) as pipe:
        assert re.fullmatch(rf"Cannot write {tmp_path}/\S+: File too large\.", pipe.read())
    make(source, tmp_path / "s", **TWO_SHARDS)
    assert contents(tmp_path / "s") == whole


@pytest.fixture
def disk(tmp_path):
    """Mounts a file system of a size, such as 16k."""
    (tmp_path / "disk").mkdir()

    def mount(size, *, again=False):
        options = f"{'remount,' if again else ''}size={size}"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", tmp_path / "disk"], check=False).returncode:
            pytest.skip("Only root can mount a small disk.")
        return tmp_path / "disk"

    yield mount
    subprocess.run(["umount", tmp_path / "disk"], check=False)


@pytest.mark.parametrize("size", ["4k", "12k", "24k"])
def test_a_disk_that_is_really_full_is_one_sentence_and_with_more_space_it_goes_on(source, disk, whole, size):
    store = disk(size) / "s"
    with pytest.raises(AtokenError, match=rf"^Cannot write {store}\S*: No space left on device\.$"):
        make(source, store, **TWO_SHARDS)
    disk("4m", again=True)
    make(source, store, **TWO_SHARDS)
    assert contents(store) == whole


def test_where_nothing_can_be_written_is_one_sentence(source):
    with pytest.raises(StoreError, match=r"^Cannot write .*/proc/nowhere: No such file or directory"):
        make(source, "/proc/nowhere")


def test_broken_items_are_listed_and_too_many_end_the_run_which_can_go_on(tmp_path):
    source, store = folder(tmp_path / "source", broken=(1, 4)), tmp_path / "s"
    with pytest.raises(StoreError, match="1 of 7 items could not be used, over the limit of 10%: class-0/0004"):
        make(source, store, **TWO_SHARDS)
    stats = make(source, store, most_broken=0.5, **TWO_SHARDS)
    failures = [json.loads(line) for line in (store / FAILURES).read_text().splitlines()]
    assert [failure["key"] for failure in failures] == ["class-0/0004.png", "class-1/0001.png"]
    assert all("png" in failure["reason"] for failure in failures)
    assert (stats["items"], stats["failures"], len(rows_of(store))) == (5, 2, 5)
    make(source, tmp_path / "once", most_broken=0.5, **TWO_SHARDS)
    assert contents(store) == contents(tmp_path / "once")


def test_a_source_without_a_sound_item_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match="None of 3 items of folder source can be read"):
        make(folder(tmp_path / "source", 3, broken=(0, 1, 2)), tmp_path / "s", most_broken=1.0)


def test_flips_and_draws_are_rows_of_their_own(source, tmp_path):
    make(source, tmp_path / "s", flip=True, draws=2, items=3)
    rows = rows_of(tmp_path / "s")
    assert [(row["flipped"], row["draw"]) for row in rows] == [(False, 0), (False, 1), (True, 0), (True, 1)] * 3
    with TokenFile(tmp_path / "s" / SHARDS / shard_name(0)) as file:
        first, second, mirrored = (file.read(number).latents for number in range(3))
    assert not torch.equal(first, second)
    assert not torch.equal(first, mirrored)


def test_draws_and_latents_do_not_depend_on_where_an_item_stands(source, tmp_path):
    make(source, tmp_path / "a", draws=1, seed=3, batch_tokens=4)
    make(source, tmp_path / "b", draws=1, seed=3, shuffle=5)

    def by_key(store):
        found = {}
        for row in rows_of(store):
            with TokenFile(store / SHARDS / shard_name(row["shard"])) as file:
                found[row["key"]] = file.read(row["number"]).latents
        return found

    a, b = by_key(tmp_path / "a"), by_key(tmp_path / "b")
    assert list(a) != list(b)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-5)


def test_a_plan_is_printed_and_nothing_is_made(source, tmp_path):
    from atoken.store.layout import Options
    from atoken.store.source import open_source

    options = Options(flip=True)
    table = dict(driver.forecast(open_source(str(source), options), small_tokenizer(), options, 2))
    assert (table["items"], table["tokens"]) == ("7", str(2 * sum(2 * (2 + i % 3) for i in range(7))))


def test_a_missing_package_is_said_before_anything_is_made(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'atoken\[store\]'"):
        make(source, tmp_path / "s")
    assert not (tmp_path / "s").exists()
