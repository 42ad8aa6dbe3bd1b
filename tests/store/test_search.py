"""What of a store is searched and shown: one row a key, texts to measure with, thumbnails from tokens."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch

from atoken.cameras import Cameras
from atoken.errors import StoreError
from atoken.io import Image, Video
from atoken.media.scaling import at_most
from atoken.store.reader import TokenStore
from atoken.store.search import opened, rows_of, texts_of, thumbnails
from atoken.tokenizer import Tokenizer
from tests.io.token_cases import make
from tests.model.sizes import small_model
from tests.store.written import Given, asset, images, mixed, write_store
from tests.tokenizer.small import random_frames, small_tokenizer
from tests.tolerances import FP32, PIXEL


def pixels(png):
    return np.asarray(PIL.Image.open(BytesIO(png)), int)


def test_one_row_of_a_key_is_searched(tmp_path):
    one, other = make(seed=1), make(seed=2)
    given = [
        Given(key, tokens, flipped=flipped, draw=draw)
        for key, tokens in (("a", one), ("b", other)) for flipped in (False, True) for draw in range(3)
    ]  # fmt: skip
    store = TokenStore(write_store(tmp_path / "store", given, draws=3, flip=True))
    assert rows_of(store).tolist() == [0, 6]
    index = opened(store)
    expected = torch.nn.functional.normalize(torch.stack([one.pooled, other.pooled]), dim=-1)
    np.testing.assert_allclose(index.vectors, expected, atol=FP32)
    assert index.nearest(expected[1].numpy(), 5)[0].tolist() == [6, 0]


def test_vectors_are_those_of_embed_for_items_of_all_kinds(tmp_path):
    items = mixed()
    store = TokenStore(write_store(tmp_path / "store", items))
    embed = small_tokenizer().embed
    np.testing.assert_array_equal(store.vectors(range(8)), torch.stack([embed(one.tokens) for one in items]))
    np.testing.assert_array_equal(store[5:].vectors([1]), store.vectors([6]))


def test_items_without_vectors_are_one_sentence(tmp_path):
    first, second = images(2)
    without = second._replace(tokens=replace(second.tokens, pooled=None))
    store = TokenStore(write_store(tmp_path / "store", [first, without]))
    assert store.vectors([0]).shape == (1, 3)
    with pytest.raises(StoreError, match=r"Row 1 of .* has no vector"):
        opened(store)


def test_texts_are_different_captions_or_labels_from_all_over(tmp_path):
    store = TokenStore(write_store(tmp_path / "captions", images(9)))
    assert len(texts_of(store, 100)) == 18
    assert texts_of(store, 3) == ["image 0", "image 4", "number 8"]
    labelled = [one._replace(captions=()) for one in images(9)]
    assert sorted(texts_of(TokenStore(write_store(tmp_path / "labels", labelled)), 100)) == ["a", "b", "c"]
    bare = [one._replace(label=None) for one in labelled]
    assert texts_of(TokenStore(write_store(tmp_path / "bare", bare)), 100) == []


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_thumbnails_are_what_decoding_gives_in_one_batch_or_several(kind, monkeypatch):
    tokenizer = small_tokenizer(kind)
    wide = Image(random_frames(20, 90, seed=1))
    clip = Video(np.stack([random_frames(18, 30, seed=n) for n in range(20)]), 8)
    clear = Image(random_frames(33, 17, seed=2), random_frames(33, 17, seed=3)[..., 0])
    items = [tokenizer.encode(media) for media in (wide, clip, clear)]
    batches = []
    monkeypatch.setattr(
        Tokenizer, "decode_batch", lambda self, batch: batches.append(len(batch)) or decode_batch(self, batch)
    )
    shown = thumbnails(tokenizer, items, 64)
    assert batches == [3]
    whole = [tokenizer.decode(tokens) for tokens in items]
    expected = [at_most(whole[0].pixels, 64), whole[1].frames[8], np.dstack([whole[2].pixels, clear.alpha])]
    for png, image in zip(shown, expected, strict=True):
        np.testing.assert_allclose(pixels(png), image, atol=PIXEL, rtol=0)
    batches.clear()
    monkeypatch.setattr("atoken.store.search.MOST_TOKENS", 20)
    for png, again in zip(shown, thumbnails(tokenizer, items, 64), strict=True):
        np.testing.assert_allclose(pixels(png), pixels(again), atol=PIXEL, rtol=0)
    assert len(batches) > 1
    assert thumbnails(tokenizer, []) == []


decode_batch = Tokenizer.decode_batch


def test_an_asset_is_shown_from_one_side():
    model = small_model(gaussian_decoder={"width": 48, "layers": 1, "heads": 4, "mlp": 64})
    tokenizer = Tokenizer(model, "small")
    voxels = asset(
        9, latents=torch.zeros(9, 48), pooled=torch.ones(96), model="small", fingerprint=tokenizer.fingerprint
    )
    (png,) = thumbnails(tokenizer, [voxels], 32)
    expected = tokenizer.decode(voxels).image_grid(Cameras.turntable(1), 32).pixels
    np.testing.assert_allclose(pixels(png), expected, atol=PIXEL, rtol=0)
    assert expected.any()
