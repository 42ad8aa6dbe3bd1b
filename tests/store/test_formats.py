"""Other programs read what is exported by the rules of their own readers; a store made of it holds the same tokens."""

import io
import json
import re
import resource
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from atoken import TokenStore, to_grid
from atoken.errors import AtokenWarning, StoreError, TokenFileError
from atoken.store import formats, lightningdit, webdataset
from atoken.store.layout import MANIFEST, PLAN, SHARDS, STATS
from tests.io.token_cases import FINGERPRINT, LEVELS, assert_same, make
from tests.store.data import contents, folder
from tests.store.data import make as make_store
from tests.store.written import Given, asset, images, mixed, write_store
from tests.tokenizer.small import small_tokenizer
from tests.tolerances import FP32

pytest.importorskip("pyarrow")
COLUMNS = ("key", "label", "captions", "flipped", "draw", "modality", "height", "width", "frames", "fps", "tokens")


def tokenizer(levels=None, fingerprint=FINGERPRINT):
    """What an import asks of a tokenizer."""
    config = SimpleNamespace(latent_channels=12, fsq_levels=levels, encoder_width=3)
    model = SimpleNamespace(config=config, dtype=torch.float32, check_latents=lambda packed: None)
    return SimpleNamespace(name="nano", fingerprint=fingerprint, model=model)


def mirrored(items):
    """Each item followed by one with other numbers that stands for the mirrored one."""
    turned = [replace(one.tokens, latents=one.tokens.latents.flip(0)) for one in items]
    flipped = [one._replace(tokens=tokens, flipped=True) for one, tokens in zip(items, turned, strict=True)]
    return [one for pair in zip(items, flipped, strict=True) for one in pair]


def rounded(items):
    """The items as a store in float16 holds them."""
    return [one._replace(tokens=replace(one.tokens, latents=one.tokens.latents.half().float())) for one in items]


def assert_alike(one, other, **changes):
    """Two stores hold the same rows, but for ``changes`` of the tokens of the second."""
    for name in COLUMNS:
        assert one.column(name).to_pylist() == other.column(name).to_pylist(), name
    for left, right in zip(one, other, strict=True):
        assert_same(replace(left, **changes), right)
    assert one.statistics == other.statistics
    assert one.labels == other.labels


@pytest.fixture
def paired(tmp_path):
    """A store for LightningDiT: seven images with their mirrored ones in shards of three pairs."""
    items = [one._replace(tokens=replace(one.tokens, name=one.key.replace("/", "_"))) for one in images(7)]
    return TokenStore(write_store(tmp_path / "paired", mirrored(items), shard_items=6, flip=True))


@pytest.mark.parametrize(
    ("items", "levels", "options"),
    [
        (mixed(), None, {}),
        (images(5, discrete=True), LEVELS, {}),
        (rounded(mirrored(images(2))), None, {"latents": "float16"}),
    ],
    ids=["mixed", "discrete", "float16"],
)
def test_a_webdataset_makes_the_same_store_again(tmp_path, items, levels, options):
    store = TokenStore(write_store(tmp_path / "store", items, **options))
    formats.export(store, tmp_path / "out", "webdataset")
    stats = formats.bring(tmp_path / "out", tmp_path / "again", "webdataset", tokenizer(levels))
    again = TokenStore(tmp_path / "again")
    assert_alike(store, again)
    assert stats["items"] == len({one.key for one in items})
    assert again.options == store.options
    for shard in sorted((tmp_path / "store" / SHARDS).iterdir()):
        assert (tmp_path / "again" / SHARDS / shard.name).read_bytes() == shard.read_bytes()


def test_a_store_of_a_model_comes_back_to_the_byte(tmp_path):
    options = {"flip": True, "draws": 2, "vectors": True, "shuffle": 1, "latents": "float16"}
    make_store(folder(tmp_path / "images", count=3), tmp_path / "store", **options)
    formats.export(TokenStore(tmp_path / "store"), tmp_path / "out", "webdataset")
    formats.bring(tmp_path / "out", tmp_path / "again", "webdataset", small_tokenizer())
    before, after = contents(tmp_path / "store"), contents(tmp_path / "again")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {PLAN, STATS, MANIFEST}
    stats = [json.loads(one[STATS]) for one in (before, after)]
    assert [(one["items"], one["labels"], one["size_bytes"]) for one in stats[:1]] == [
        (one["items"], one["labels"], one["size_bytes"]) for one in stats[1:]
    ]


def grouped(path):
    """Samples of a shard as the package webdataset groups and decodes them: names up to the first dot, .npy, .json."""
    samples = {}
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            key, suffix = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name).groups()
            data = tar.extractfile(member).read()
            ending = suffix.rpartition(".")[2]
            value = json.loads(data) if ending == "json" else np.load(io.BytesIO(data), allow_pickle=False)
            assert suffix not in samples.setdefault(key, {})
            samples[key][suffix] = value
    return list(samples.values())


def test_a_plain_reader_of_webdataset_reads_it(tmp_path):
    store = TokenStore(write_store(tmp_path / "store", mixed(), shard_items=5))
    formats.export(store, tmp_path / "out", "webdataset")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.tar", "000001.tar", "export.json"]
    samples = grouped(tmp_path / "out" / "000000.tar") + grouped(tmp_path / "out" / "000001.tar")
    for given, sample in zip(mixed(), samples, strict=True):
        about, latents = sample["json"], sample["latents.npy"]
        assert (about["key"], about["label"], tuple(about["captions"])) == (given.key, given.label, given.captions)
        assert latents.dtype == np.float32
        assert np.array_equal(latents, given.tokens.latents)
        assert np.array_equal(sample["coords.npy"], given.tokens.coords)
        if about["modality"] == "asset":
            assert about["grid"] is None
        else:
            dense = latents.reshape(*about["grid"], -1).transpose(3, 0, 1, 2)
            assert np.array_equal(dense, to_grid(given.tokens)[0])


def test_codes_and_rounded_latents_are_written_as_small_numbers(tmp_path):
    store = TokenStore(write_store(tmp_path / "codes", images(1, discrete=True)))
    formats.export(store, tmp_path / "a", "webdataset")
    (sample,) = grouped(tmp_path / "a" / "000000.tar")
    assert set(sample) == {"json", "codes.npy", "coords.npy", "pooled.npy"}
    assert sample["codes.npy"].dtype == np.int32
    assert np.array_equal(sample["codes.npy"], images(1, discrete=True)[0].tokens.codes)
    formats.export(
        TokenStore(write_store(tmp_path / "half", images(1), latents="float16")), tmp_path / "b", "webdataset"
    )
    assert grouped(tmp_path / "b" / "000000.tar")[0]["latents.npy"].dtype == np.float16


def latents_of(folder):
    """All images as LightningDiT's ``ImgLatentDataset`` reads them: (latents, mirrored, label), normalised."""
    stats = torch.load(folder / "latents_stats.pt")
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device="cpu") as file:
            for number in range(file.get_slice("labels").get_shape()[0]):
                here = slice(number, number + 1)
                both = [file.get_slice(name)[here] for name in ("latents", "latents_flip")]
                normal = [((one - stats["mean"]) / stats["std"]).squeeze(0) for one in both]
                found.append((*normal, file.get_slice("labels")[here].squeeze(0)))
    return found


def test_lightningdit_reads_normalised_images_and_their_classes(tmp_path, paired):
    formats.export(paired, tmp_path / "out", "lightningdit")
    (first, *_) = sorted((tmp_path / "out").glob("*.safetensors"))
    arrays = load_file(first)
    assert {name: (one.dtype, tuple(one.shape)) for name, one in arrays.items()} == {
        "latents": (torch.float32, (3, 12, 2, 3)),
        "latents_flip": (torch.float32, (3, 12, 2, 3)),
        "labels": (torch.int64, (3,)),
    }
    assert torch.equal(arrays["latents"][1], to_grid(images(7)[1].tokens)[0, :, 0])
    found = latents_of(tmp_path / "out")
    assert [label.item() for *_, label in found] == ["abc".index(one.label) for one in images(7)]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["labels"] == ["a", "b", "c"]
    for flipped in (0, 1):
        torch.testing.assert_close(
            torch.stack([row[flipped] for row in found]), paired.where(flipped=bool(flipped)).grids(slice(None)),
            rtol=FP32, atol=FP32,
        )  # fmt: skip


def test_lightningdits_files_make_the_same_store_again_without_pooled_vectors(tmp_path, paired):
    formats.export(paired, tmp_path / "out", "lightningdit")
    formats.bring(tmp_path / "out", tmp_path / "again", "lightningdit", tokenizer())
    assert_alike(paired, TokenStore(tmp_path / "again"), pooled=None)


def test_discrete_latents_become_the_same_codes_again(tmp_path):
    items = [one._replace(flipped=flip) for one in images(2, discrete=True) for flip in (False, True)]
    store = TokenStore(write_store(tmp_path / "store", items, shard_items=4, flip=True))
    formats.export(store, tmp_path / "out", "lightningdit")
    formats.bring(tmp_path / "out", tmp_path / "again", "lightningdit", tokenizer(LEVELS))
    for one, other in zip(store, TokenStore(tmp_path / "again"), strict=True):
        assert torch.equal(one.codes, other.codes)


def test_files_of_lightningdits_own_extraction_become_a_store(tmp_path):
    latents = torch.randn(2, 3, 12, 2, 2, generator=torch.Generator().manual_seed(0))
    (tmp_path / "theirs").mkdir()
    arrays = {"latents": latents[0], "latents_flip": latents[1].clone(), "labels": torch.tensor([7, 7, 130])}
    save_file(arrays, tmp_path / "theirs" / "latents_rank00_shard000.safetensors", metadata={"total_size": "3"})
    formats.bring(tmp_path / "theirs", tmp_path / "store", "lightningdit", tokenizer())
    store = TokenStore(tmp_path / "store")
    assert store.column("key").to_pylist()[::2] == [f"latents_rank00_shard000/{number}" for number in range(3)]
    assert store.column("label").to_pylist() == ["7", "7", "7", "7", "130", "130"]
    assert store[0].size == (32, 32)
    assert torch.equal(store.where(flipped=True).grids(slice(None), normalised=False), latents[1])


def test_what_a_form_cannot_hold_is_said(tmp_path):
    more = [*mirrored(images(2)), *(one._replace(draw=1) for one in mirrored(images(2)))]
    items = sorted([*more, Given("z/chair", asset(5), "a")], key=lambda one: one.key)
    store = TokenStore(write_store(tmp_path / "store", items, shard_items=9, draws=2, flip=True))
    with pytest.warns(AtokenWarning) as said:
        about = formats.export(store, tmp_path / "out", "lightningdit")
    assert [str(one.message).partition(",")[0] for one in said] == [
        "1 videos and assets are left out",
        "4 further draws are left out",
    ]
    assert about.left_out == {"videos and assets": 1, "further draws": 4}
    assert about.rows == 4


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (images(2), "needs each image mirrored as well; make .* with --flip"),
        (mirrored([*images(1), Given("b", make((48, 48)), "a")]), "grids of 2x3 and 3x3: use --crop"),
        (mirrored([Given("b", make((48, 48)))]), "images without a label|needs a label of each image"),
        ([Given("b", asset(3), "a")], "grids of no image"),
    ],
    ids=["flip", "sizes", "labels", "assets"],
)
def test_what_lightningdit_cannot_train_on_is_refused(tmp_path, items, sentence):
    store = TokenStore(write_store(tmp_path / "store", items))
    with pytest.raises(StoreError, match=sentence):
        formats.export(store, tmp_path / "out", "lightningdit")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("format", ["webdataset", "lightningdit"])
def test_an_export_goes_on_where_it_was_interrupted_and_replaces_nothing(tmp_path, paired, format, monkeypatch):
    formats.export(paired, tmp_path / "whole", format)
    module = {"webdataset": webdataset, "lightningdit": lightningdit}[format]
    write, written = module.write, []

    def dies_at_the_second(*arguments):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(arguments[-1].name)
        write(*arguments)

    monkeypatch.setattr(module, "write", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        formats.export(paired, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "write", lambda *arguments: (written.append(arguments[-1].name), write(*arguments)))
    formats.export(paired, tmp_path / "out", format)
    assert len(written) == len(set(written)) == 3
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(StoreError, match="out is already there; name a new folder"):
        formats.export(paired, tmp_path / "out", format)


@pytest.mark.parametrize("format", ["webdataset", "lightningdit"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_at_the_target(tmp_path, paired, format):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # bytes of a file
    try:
        with pytest.raises(StoreError, match=r"Cannot write .*000000\."):
            formats.export(paired, tmp_path / "out", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out").exists()
    formats.export(paired, tmp_path / "out", format)


def test_the_rest_of_another_export_is_not_gone_on_with(tmp_path, paired):
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "export.json").write_text("{}")
    with pytest.raises(StoreError, match="what is left of another export"):
        formats.export(paired, tmp_path / "out", "webdataset")


def test_an_import_goes_on_and_refuses_other_files(tmp_path, paired, monkeypatch):
    formats.export(paired, tmp_path / "out", "webdataset")
    read = webdataset.read
    monkeypatch.setattr(webdataset, "read", lambda path: 1 / 0 if "2.tar" in path.name else read(path))
    with pytest.raises(ZeroDivisionError):
        formats.bring(tmp_path / "out", tmp_path / "again", "webdataset", tokenizer())
    assert not (tmp_path / "again" / MANIFEST).exists()
    seen = []
    monkeypatch.setattr(webdataset, "read", lambda path: (seen.append(path.name), read(path))[1])
    formats.bring(tmp_path / "out", tmp_path / "again", "webdataset", tokenizer())
    assert seen == ["000002.tar"]
    assert_alike(paired, TokenStore(tmp_path / "again"))
    (tmp_path / "out" / "000002.tar").unlink()
    with pytest.raises(StoreError, match="begun differently"):
        formats.bring(tmp_path / "out", tmp_path / "again", "webdataset", tokenizer())


@pytest.mark.parametrize("format", ["webdataset", "lightningdit"])
def test_tokens_of_another_model_are_refused(tmp_path, paired, format):
    formats.export(paired, tmp_path / "out", format)
    with pytest.raises((StoreError, TokenFileError), match="nano"):
        formats.bring(tmp_path / "out", tmp_path / "again", format, tokenizer(fingerprint="f" * 64))


def test_damaged_files_are_one_sentence(tmp_path, paired):
    formats.export(paired, tmp_path / "tars", "webdataset")
    formats.export(paired, tmp_path / "tensors", "lightningdit")
    for where, name, format in (
        ("tars", "000001.tar", "webdataset"),
        ("tensors", "000001.safetensors", "lightningdit"),
    ):
        path = tmp_path / where / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(Exception, match=name) as caught:
            formats.bring(tmp_path / where, tmp_path / f"{where}-again", format, tokenizer())
        assert type(caught.value).__module__ == "atoken.errors"
    with pytest.raises(StoreError, match=r"no \.tar file in"):
        formats.bring(tmp_path / "tensors", tmp_path / "x", "webdataset", tokenizer())


@pytest.mark.parametrize(
    "damage",
    [
        {"latents.npy": None},
        {"latents.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 12)}"},
        {"latents.npy": np.zeros((5, 12), np.float32)},
        {"coords.npy": np.zeros((6, 4), np.int32)},
        {"json": b"{}"},
        {"json": b"\xff"},
        {"pooled.npy": np.array(["a", {}], object)},
    ],
    ids=lambda damage: str(damage)[:30],
)
def test_a_sample_that_holds_no_tokens_is_one_sentence(tmp_path, damage):
    formats.export(TokenStore(write_store(tmp_path / "store", images(1))), tmp_path / "out", "webdataset")
    path = tmp_path / "out" / "000000.tar"
    with tarfile.open(path) as tar:
        members = {member.name.partition(".")[2]: tar.extractfile(member).read() for member in tar}
    for name, value in damage.items():
        if isinstance(value, np.ndarray):
            file = io.BytesIO()
            np.save(file, value)
            value = file.getvalue()
        members[name] = value
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            if data is not None:
                header = tarfile.TarInfo(f"x.{name}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    with pytest.raises(StoreError, match=r"The sample x in .* holds no tokens"):
        list(webdataset.read(path))
