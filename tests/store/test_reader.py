"""A store gives back what went into it, in any order, in any process; what is wrong with one is said in a sentence."""

import contextlib
import pickle
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from atoken import AtokenError, TokenStore, to_grid
from atoken.store.batches import StoreBatches
from atoken.store.layout import INDEX, MANIFEST, PLAN, SHARDS
from tests.io.token_cases import FINGERPRINT, assert_same
from tests.store import data
from tests.store.data import folder
from tests.store.written import Given, images, mixed, write_store
from tests.tokenizer.small import small_tokenizer
from tests.tolerances import FP32

dataset = pytest.importorskip("pyarrow.dataset")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return TokenStore(write_store(tmp_path_factory.mktemp("stores") / "mixed", mixed()))


@pytest.fixture(scope="module")
def discrete(tmp_path_factory):
    return TokenStore(write_store(tmp_path_factory.mktemp("stores") / "codes", images(5, discrete=True)))


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_what_a_tokenizer_made_of_files_is_read(tmp_path, kind):
    source, tokenizer = folder(tmp_path / "source"), small_tokenizer(kind)
    data.make(source, tmp_path / "store", kind, flip=True, batch_tokens=8)
    store = TokenStore(tmp_path / "store")
    store.check(tokenizer)
    plain = store.where(flipped=False)
    assert (len(store), store.labels, plain.label_counts.tolist()) == (14, ("class-0", "class-1"), [4, 3])
    for key, tokens in zip(plain.column("key").to_pylist(), plain, strict=True):
        torch.testing.assert_close(tokens.latents, tokenizer.encode(source / key).latents, rtol=0, atol=FP32)
    normalised = store.packed(slice(None)).feats
    assert torch.equal(normalised, store.statistics.normalise(torch.cat([tokens.latents for tokens in store])))
    assert normalised.mean(0).abs().max() < 1e-4  # statistics have six digits
    batch = StoreBatches(store, seed=0, tokens=64).batch(0)
    assert batch.samples == 7
    assert torch.equal(batch.latents.feats, store.packed(list(batch.rows)).feats)


def test_every_item_comes_back(store, discrete):
    assert len(store) == 8
    for given, tokens in zip(mixed(), store, strict=True):
        assert_same(tokens, given.tokens)
    assert_same(store[-1], mixed()[-1].tokens)
    assert_same(store[np.int64(2)], mixed()[2].tokens)
    for given, tokens in zip(images(5, discrete=True), discrete, strict=True):
        assert_same(tokens, given.tokens)


def test_packed_tokens_are_those_of_the_items_in_the_order_asked_for(store, discrete):
    order = [5, 0, 4, 5, 6, 1, 2, 7, 3]
    for tokens, row in zip(store.packed(order, normalised=False).unpack(), order, strict=True):
        assert torch.equal(tokens.feats, mixed()[row].tokens.latents)
        assert torch.equal(tokens.coords, mixed()[row].tokens.coords)
    assert torch.equal(discrete.packed([3], normalised=False).feats, images(5, discrete=True)[3].tokens.latents)
    assert store.packed([]).lengths == ()


def test_grids_of_images_have_four_axes_and_of_videos_five(store, discrete):
    for row in (0, 1, 2):
        expected = to_grid(mixed()[row].tokens)[0, :, 0]
        assert torch.equal(store.grid(row, normalised=False), expected)
        assert store.grids([row, row]).shape == (2, *expected.shape)
    for row in (3, 4, 7):
        assert torch.equal(store.grid(row, normalised=False), to_grid(mixed()[row].tokens)[0])
    video_7, video_5 = store.grids([3, 7], normalised=False)  # of other sizes, of one grid
    assert torch.equal(video_7, to_grid(mixed()[3].tokens)[0])
    assert torch.equal(video_5, to_grid(mixed()[7].tokens)[0])
    expected = to_grid(images(5, discrete=True)[2].tokens)[0, :, 0]
    assert torch.equal(discrete.grids([1, 2], normalised=False)[1], expected)


def test_latents_are_normalised_by_the_statistics_of_the_store_or_by_given_ones(store):
    packed = store.packed(range(len(store)))
    assert packed.feats.mean(0).abs().max() < FP32
    assert (packed.feats.std(0, correction=0) - 1).abs().max() < FP32
    raw = store.grids([1], normalised=False)
    assert torch.equal(store.grids([1]), store.statistics.normalise(raw))
    of_images = store.all_statistics["image"]
    view = store.with_statistics(of_images)
    assert torch.equal(view[1:].grid(0), of_images.normalise(raw)[0])
    assert not torch.equal(view.grid(1), store.grid(1))


def test_codes(discrete, store):
    expected = torch.stack([given.tokens.codes for given in images(5, discrete=True)])
    assert torch.equal(discrete.codes(slice(None)), expected)
    with pytest.raises(AtokenError, match="continuous"):
        store.codes([0])


def test_float16_is_the_rounded_latents(tmp_path):
    with TokenStore(write_store(tmp_path / "half", images(2), latents="float16")) as half:
        expected = images(2)[1].tokens.latents.half().float()
        assert torch.equal(half.packed([1], normalised=False).feats, expected)
        assert torch.equal(half[1].latents, expected)


def test_views(store):
    view = store[[6, 2, 0, 3, -1]]
    assert view.rows.tolist() == [6, 2, 0, 3, 7]
    assert view[1:4].rows.tolist() == [2, 0, 3]
    assert view[view.label_ids == 0].rows.tolist() == [0, 3]
    assert view.column("key").to_pylist() == ["g", "c", "a", "d", "h"]
    assert_same(view[3], mixed()[3].tokens)
    assert torch.equal(view.grids([2]), store.grids([0]))
    assert len(store[[]]) == 0


def test_where(store):
    assert store.where(modality="image").rows.tolist() == [0, 1, 2]
    assert store.where(label=["cat", "chair"], modality=["asset", "video"]).rows.tolist() == [3, 5, 6]
    assert store.where(label=None).rows.tolist() == [2]
    assert store.where(dataset.field("tokens") < 10, modality=["image", "asset"]).rows.tolist() == [0, 1, 2, 6]
    assert store.where().rows.tolist() == list(range(8))
    assert store[::-1].where(label="dog").rows.tolist() == [7, 4, 1]


def test_labels_that_are_numbers_are_sorted_as_numbers(tmp_path):
    labels = ("10", "9", "tench", "2", "100")
    given = [one._replace(label=label) for one, label in zip(images(5), labels, strict=True)]
    store = TokenStore(write_store(tmp_path / "s", given))
    assert store.labels == ("2", "9", "10", "100", "tench")
    assert store.label_ids.tolist() == [2, 1, 4, 0, 3]


def test_labels_are_those_of_the_whole_store(store):
    assert store.labels == store.where(label="dog").labels == ("cat", "chair", "dog")
    assert store.label_ids.tolist() == [0, 2, -1, 0, 2, 1, 1, 2]
    assert store.where(modality="image").label_counts.tolist() == [1, 0, 1]


def test_a_split_is_of_keys_and_keeps_its_sides_when_a_store_grows(tmp_path):
    some = [replaced for one in images(200, (16, 16)) for replaced in (one, one._replace(flipped=True))]
    grown = TokenStore(write_store(tmp_path / "grown", some, 400, flip=True))
    before = TokenStore(write_store(tmp_path / "before", some[100:200], 400, flip=True))
    chosen, rest = ({*view.column("key").to_pylist()} for view in grown.split(0.25))
    assert not chosen & rest
    assert len(chosen | rest) == 200
    assert 25 < len(chosen) < 75
    assert {*before.split(0.25)[0].column("key").to_pylist()} <= chosen
    assert {*grown.split(0.25, seed=1)[0].column("key").to_pylist()} != chosen
    assert [len(view) for view in grown.split(0)] == [0, 400]
    assert [len(view) for view in grown.split(1)] == [400, 0]


def latents_of(view):
    return view.packed(slice(None)).feats


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_goes_to_other_processes(store, method):
    view = store.where(modality=["image", "asset"]).with_statistics(store.all_statistics["image"])
    expected = latents_of(view)
    loaded = [*DataLoader(view, batch_size=None, num_workers=1, multiprocessing_context=method)]
    assert torch.equal(view.statistics.normalise(torch.cat([tokens.latents for tokens in loaded])), expected)
    assert torch.equal(latents_of(pickle.loads(pickle.dumps(view))), expected)  # noqa: S301 - its own


def test_nothing_stays_open(store):
    store.close()
    before = {*Path("/proc/self/fd").iterdir()}
    first = latents_of(store)
    assert {*Path("/proc/self/fd").iterdir()} == before
    store.close()
    assert torch.equal(latents_of(store), first)


def test_tables_of_contents_are_not_read(tmp_path):
    path = write_store(tmp_path / "store", images(3))
    shard = path / SHARDS / "000000.atok"
    shard.write_bytes(shard.read_bytes()[:-60] + bytes(60))
    assert_same(TokenStore(path)[2], images(3)[2].tokens)
    assert TokenStore(path).grids([0, 1, 2]).isfinite().all()


def one_sentence(error):
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 400
    return text


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def overwrite(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: (path / MANIFEST).unlink(), "is not finished; run the command that made it"),
        (lambda path: (path / PLAN).unlink(), "There is no token store"),
        (lambda path: (path / PLAN).write_text('{"version": 99}'), "version 99"),
        (lambda path: (path / "stats.json").write_text("{"), "stats.json is damaged"),
        (lambda path: flip_byte(path / SHARDS / "000000.atok"), "another check sum"),
        (lambda path: (path / SHARDS / "000000.atok").write_bytes(b"ATOK"), "it has 4 bytes and not"),
        (lambda path: (path / SHARDS / "000000.atok").unlink(), "Cannot read"),
        (lambda path: (path / INDEX / "000000.parquet").write_bytes(b"PAR1"), "it has 4 bytes and not"),
        (lambda path: (path / INDEX / "000000.parquet").unlink(), "Cannot read"),
        (lambda path: overwrite(path / INDEX / "000000.parquet"), "index is damaged; get another copy"),
    ],
)
def test_what_is_wrong_with_a_store_is_one_sentence(tmp_path, harm, said):
    path = write_store(tmp_path / "store", images(3))
    harm(path)
    with pytest.raises(AtokenError, match=re.escape(said)) as error:
        TokenStore(path).grids([0, 1])
    one_sentence(error)


def all_of(path):
    store = TokenStore(path)
    latents = torch.cat([tokens.latents for tokens in store])
    assert torch.equal(store.packed(slice(None), normalised=False).feats, latents)
    return latents.tolist(), store.label_ids.tolist(), store.column("key").to_pylist()


def test_every_flipped_byte_of_an_index_is_found_or_changes_nothing(tmp_path):
    path = write_store(tmp_path / "store", images(3))
    index, expected, found = path / INDEX / "000000.parquet", all_of(path), 0
    whole = index.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(whole), 60).tolist():
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with contextlib.suppress(AtokenError):
            assert all_of(path) == expected
            continue
        found += 1
    assert found > 20


def test_damage_is_found_by_single_items_too(tmp_path):
    path = write_store(tmp_path / "store", images(3))
    flip_byte(path / SHARDS / "000000.atok")
    store = TokenStore(path)
    with pytest.raises(AtokenError, match="check sum") as error:
        store[0]
    one_sentence(error)
    assert_same(store[1], images(3)[1].tokens)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda store: store[8], "rows 0 to 7"),
        (lambda store: store[[-9]], "rows 0 to 7"),
        (lambda store: store[[True]], "rows 0 to 7"),
        (lambda store: store[["a"]], "rows 0 to 7"),
        (lambda store: store.grids([0, 2]), "make no dense batch"),
        (lambda store: store.grids([0, 3]), "make no dense batch"),
        (lambda store: store.grids([5]), "20 tokens in a grid of 1 x 8 x 8 (asset) make no dense batch"),
        (lambda store: store.grids([]), "make no dense batch"),
        (lambda store: store.where(colour="red"), "does not fit the columns of the store (key, shard"),
        (lambda store: store.where(tokens="many"), "does not fit the columns"),
        (lambda store: store.where(dataset.field("x") > 1), "does not fit the columns"),
        (lambda store: store.column("colour"), "has no column 'colour'"),
        (lambda store: TokenStore("nowhere"), "There is no token store nowhere"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(store, ask, said):
    with pytest.raises(AtokenError, match=re.escape(said)) as error:
        ask(store)
    one_sentence(error)


def test_a_store_is_of_its_model(store):
    assert (store.model, store.fingerprint) == ("nano", FINGERPRINT)
    store.check(SimpleNamespace(fingerprint=FINGERPRINT, name="nano"))
    with pytest.raises(AtokenError, match="made by model nano"):
        store.check(SimpleNamespace(fingerprint="f" * 64, name="other"))


def test_what_a_shard_holds_where_the_index_says_so_is_not_believed(tmp_path):
    given = images(1)[0]
    path = write_store(tmp_path / "store", [given])
    tokens = replace(given.tokens, latents=given.tokens.latents + 1)
    other = write_store(tmp_path / "other", [Given("x", tokens)])
    (other / SHARDS / "000000.atok").replace(path / SHARDS / "000000.atok")
    with pytest.raises(AtokenError, match="check sum"):
        TokenStore(path).grids([0])
