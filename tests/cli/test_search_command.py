"""``search`` and ``index`` of token stores: the nearest by plain products, and pages that are decoded from tokens."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from atoken.io import Image, Video
from atoken.store import vectors
from tests.cli.cases import film, image, says_one_sentence
from tests.report.pages import Page
from tests.store.written import Given, asset, write_store
from tests.tokenizer.small import random_frames
from tests.tokenizer.texts import save_with_text
from tests.tolerances import FP32, PIXEL

QUERY = "a green cylinder"
LABELS = "cat", "dog", None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model with a text side."""
    return save_with_text(tmp_path_factory.mktemp("models") / "texts")


@pytest.fixture(scope="module")
def items(tokenizer):
    """Nine images with flips, a video of 20 frames, an asset."""
    pictures = [random_frames(19 + n, 35, seed=n) for n in range(9)]
    given = [
        Given(f"{n}.png", replace(tokenizer.encode(Image(np.ascontiguousarray(pixels))), name=f"{n}.png"),
              LABELS[n % 3], (f"photo of {n}",), flipped)
        for n, picture in enumerate(pictures) for flipped, pixels in ((False, picture), (True, picture[:, ::-1]))
    ]  # fmt: skip
    clip = Video(np.stack([random_frames(18, 30, seed=n) for n in range(20)]), 8)
    voxels = asset(
        20, latents=torch.zeros(20, tokenizer.model.config.latent_channels), pooled=-tokenizer.encode(clip).pooled,
        model=tokenizer.name, fingerprint=tokenizer.fingerprint,
    )  # fmt: skip
    return [*given, Given("clip <b>", tokenizer.encode(clip), "dog"), Given("chair", voxels, "chair")]


@pytest.fixture
def store(items, there):
    return write_store(Path("store"), items, shard_items=7)


def answer(result):
    assert result[0] == 0, result[2]
    return json.loads(result[1])


def nearest(items, query, **equal):
    """Keys and cosines of those that are no flips, by plain products."""
    facts = [({"label": one.label, "modality": one.tokens.modality, "flipped": one.flipped}, one) for one in items]
    found = {
        one.key: float(torch.nn.functional.normalize(one.tokens.pooled, dim=-1) @ query)
        for fact, one in facts
        if fact == fact | equal | {"flipped": False}
    }
    return sorted(found.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize("indexed", [False, True])
def test_a_store_gives_the_nearest_of_all_its_keys_by_text(run, store, items, tokenizer, indexed):
    if indexed:
        assert answer(run("index", store, "--json"))["count"] == 11
    query = tokenizer.embed_text(QUERY)[0]
    found, expected = answer(run("search", QUERY, store, "--top", 20, "--json")), nearest(items, query)
    assert [row["name"] for row in found] == [key for key, _ in expected]
    assert [row["cosine"] for row in found] == pytest.approx([cosine for _, cosine in expected], abs=FP32)
    chances = tokenizer.logits(torch.tensor([[cosine] for _, cosine in expected]), torch.ones(1, 1)).sigmoid()
    assert [row["probability"] for row in found] == pytest.approx(chances[:, 0].tolist(), abs=FP32)
    assert all(items[row["row"]].key == row["key"] and not items[row["row"]].flipped for row in found)
    assert {row["key"]: row["captions"] for row in found}["3.png"] == ["photo of 3"]
    for equal in ({"label": "dog"}, {"modality": "video"}, {"modality": "image", "label": "cat"}):
        named = [word for name, value in equal.items() for word in (f"--{name}", value)]
        found = answer(run("search", QUERY, store, "--top", 2, "--json", *named))
        assert [row["name"] for row in found] == [key for key, _ in nearest(items, query, **equal)][:2]
    assert answer(run("search", QUERY, store, "--label", "zebra", "--json")) == []
    code, printed, _ = run("search", QUERY, store)
    assert (code, printed.splitlines()[0].split()) == (0, ["name", "cosine", "probability"])


def test_images_videos_and_token_files_find_their_like(run, store, items, there):
    image(there / "a.png", 21, 35, seed=2)
    for query in ("a.png", "a.atok"):
        found = answer(run("search", "--like", query, store, "--top", 3, "--json"))
        assert (found[0]["name"], found[0]["probability"]) == ("2.png", None)
        assert found[0]["cosine"] == pytest.approx(1, abs=FP32)
        run("encode", "a.png")
    film(there / "b.mp4", 5)
    assert len(answer(run("search", store, "--like", "b.mp4", "--modality", "video", "--json"))) == 1
    assert run("search", "--like", "b.mp4", "a.png")[1].splitlines()[0].split() == ["name", "cosine"]
    run("encode", "a.png", "b.mp4", "-o", "two.atok")
    says_one_sentence(run("search", "--like", "two.atok", store), "holds 2 items; --like takes one")


def test_a_page_shows_what_was_found_decoded_from_tokens(run, store, items, tokenizer):
    found = answer(run("search", QUERY, store, "--top", 20, "--json", "-o", "page.html"))
    page = Page(Path("page.html"))
    assert [caption.split(", ")[0] for _, caption, _ in page.images] == [
        f"{row['name']}cosine {row['cosine']:.4f}" for row in found if row["modality"] != "asset"
    ]
    assert "1 others that texts cannot decode are not shown" in page.text
    shown = {caption.partition("cosine")[0]: data for _, caption, data in page.images}
    for key, one in {one.key: one for one in reversed(items) if one.key in ("3.png", "clip <b>")}.items():
        media = tokenizer.decode(one.tokens)
        expected = media.pixels if isinstance(media, Image) else media.frames[8]
        np.testing.assert_allclose(np.asarray(PIL.Image.open(BytesIO(shown[key])), int), expected, atol=PIXEL, rtol=0)
    code, _, table = run("search", QUERY, store, "-o", "-")  # the page goes past what captures Python's output
    assert (code, table.split()[0]) == (0, "name")


def test_many_items_need_an_index_which_tells_how_much_it_finds(run, store, items, tokenizer, monkeypatch):
    monkeypatch.setattr(vectors, "MANY", 10)
    monkeypatch.setattr("atoken.store.search.MANY", 10)
    monkeypatch.setattr("atoken.cli.search.MANY", 10)
    says_one_sentence(run("search", QUERY, store), "holds 11 items and has no index yet; run atoken index store")
    code, printed, _ = run("index", store)
    assert (code, "a graph, which finds of the 10 nearest 100.0% for items and 100.0% for texts" in printed) == (
        0,
        True,
    )
    query = tokenizer.embed_text(QUERY)[0]
    found = answer(run("search", QUERY, store, "--top", 4, "--json"))
    assert [row["name"] for row in found] == [key for key, _ in nearest(items, query)][:4]
    manifest = Path(store) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    says_one_sentence(run("search", QUERY, store), "of other contents than it has now; make it again")


def test_what_cannot_be_searched_gets_one_sentence(run, store, there, tmp_path_factory):
    image(there / "a.png")
    says_one_sentence(run("search", "x", store, "a.png"), "is a token store; search it alone")
    says_one_sentence(run("search", "x", "a.png", "-o", "page.html"), "are for a token store")
    says_one_sentence(run("search", "x", "a.png", "--label", "cat"), "are for a token store")
    says_one_sentence(run("search", "x", store, "--pool", "frames"), "vectors of whole videos")
    says_one_sentence(run("search", "x", store, "--modality", "sound"), "no modality sound; say image, video, asset")
    says_one_sentence(run("index", "nowhere"), "no token store nowhere")
    other = save_with_text(tmp_path_factory.mktemp("models") / "other", seed=1)
    says_one_sentence(run("search", "x", store, model=other), "made by model texts")
    (Path(store) / "manifest.json").unlink()
    says_one_sentence(run("search", "x", store), "is not finished")
    with pytest.raises(SystemExit, match="2"):
        run("search", "x", store, "--like", "a.png")
    with pytest.raises(SystemExit, match="2"):
        run("search", store)
