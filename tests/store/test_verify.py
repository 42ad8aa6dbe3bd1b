"""Whatever is changed in a store is found, and named with the items that it damages."""

import numpy as np
import pytest

from atoken.errors import StoreError
from atoken.store import vectors
from atoken.store.layout import INDEX, MANIFEST, SHARDS, STATS
from atoken.store.verify import known_files, verify
from tests.store.written import images, write_store

pytest.importorskip("pyarrow")


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", images(5))


def faults(store):
    found = verify(store, known_files(store))
    return {finding.file: (finding.fault, finding.items) for finding in found if finding.fault}


def test_a_store_as_it_was_written_has_no_fault(store):
    names = [finding.file for finding in verify(store, known_files(store))]
    assert {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()} - {MANIFEST} == {*names}
    assert faults(store) == {}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_names_the_item(store):
    flip(store / SHARDS / "000001.atok", 8)
    assert faults(store) == {f"{SHARDS}/000001.atok": ("has another SHA-256", ("images/0003.png",))}


def test_a_flipped_bit_of_the_table_of_contents_damages_no_item(store):
    flip(store / SHARDS / "000000.atok", -60)
    assert faults(store) == {f"{SHARDS}/000000.atok": ("has another SHA-256", ())}


def test_a_truncated_shard_names_the_items_that_are_lost(store):
    path = store / SHARDS / "000000.atok"
    path.write_bytes(path.read_bytes()[:500])
    ((fault, items),) = faults(store).values()
    assert fault.startswith("has 500 bytes instead of ")
    assert items == ("images/0001.png", "images/0002.png")


def test_lost_changed_and_foreign_files_are_found(store):
    (store / SHARDS / "000000.atok").unlink()
    (store / INDEX / "000001.parquet").write_bytes(b"")
    flip(store / STATS, 3)
    (store / SHARDS / "000007.atok").write_bytes(b"x")
    found = faults(store)
    assert found[f"{SHARDS}/000000.atok"] == ("is missing", tuple(f"images/{number:04}.png" for number in range(3)))
    assert found[f"{SHARDS}/000007.atok"] == ("is not of this store", ())
    assert found[STATS] == ("has another SHA-256", ())
    assert len(found) == 4


def test_the_index_of_search_is_verified_as_well(store):
    vectors.build(store, np.eye(5, 4, dtype=np.float32), np.arange(5))
    assert [one.fault for one in verify(store, known_files(store)) if one.file == "vectors"] == [None]
    flip(store / "vectors" / "vectors.npy", -1)
    said = f"The index of {store} is damaged; make it again with atoken index {store}."
    assert faults(store) == {"vectors": (said, ())}


def test_a_folder_that_is_no_store_and_a_damaged_manifest_are_one_sentence(store, tmp_path):
    (store / MANIFEST).write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        known_files(store)
    (store / MANIFEST).unlink()
    with pytest.raises(StoreError, match=r"no token store, or its manifest\.json is lost"):
        known_files(store)
