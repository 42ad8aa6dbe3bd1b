"""``embed``, ``classify`` and ``search``: the same vectors as Python's, from files of media and from token files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Siglip2TextConfig, Siglip2TextModel

import atoken
from atoken.checkpoint import load_official
from atoken.io import Image, Video, read_video
from atoken.io.token_file import Tokens
from tests.cli.cases import film, image, published_yaml, says_one_sentence
from tests.model.sizes import small_model
from tests.model.test_checkpoint import ARCH, OFFICIAL
from tests.tokenizer.texts import save_with_text, text_sizes, words
from tests.tolerances import FP32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model with a text side."""
    return save_with_text(tmp_path_factory.mktemp("models") / "texts")


def answer(result):
    assert result[0] == 0, result[2]
    return json.loads(result[1])


def test_embed_writes_the_vectors_of_media_token_files_and_texts(run, there, tokenizer):
    image(there / "a.png")
    film(there / "b.mp4", 21)
    assert run("encode", "a.png", "b.mp4", "-o", "set.atok")[0] == 0
    rows = answer(run("embed", "a.png", "b.mp4", "set.atok", "--text", "a red box", "-o", "v.npz", "--json"))
    names = ["a.png", "b.mp4", "set.atok:a.png", "set.atok:b.mp4", "a red box"]
    assert [row["name"] for row in rows] == names
    with np.load("v.npz") as stored:
        assert stored["names"].tolist() == names
        vectors = torch.from_numpy(stored["vectors"])
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(torch.tensor([row["vector"] for row in rows]), vectors, atol=0, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5), atol=FP32, rtol=0)
    expected = [tokenizer.embed("a.png"), tokenizer.embed("b.mp4")] * 2 + [tokenizer.embed_text(["a red box"])[0]]
    torch.testing.assert_close(vectors, torch.stack(expected), atol=FP32, rtol=0)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


def test_a_folder_stands_for_the_media_below_it(run, there):
    image(there / "folder" / "more" / "a.png")
    image(there / "folder" / "b.jpg")
    (there / "folder" / "b.json").write_text("{}")
    (there / "empty").mkdir()
    code, printed, said = run("search", "a red box", "folder", "empty", "--json")
    assert code == 1
    assert {row["name"] for row in json.loads(printed)} == {"folder/b.jpg", "folder/more/a.png"}
    assert "empty" in said
    assert run("encode", "folder", "-o", "set.atok")[0] == 0
    found = {row["name"] for row in answer(run("search", "a red box", "set.atok", "--json"))}
    assert found == {"set.atok:b.jpg", "set.atok:a.png"}


def test_videos_can_be_pooled_as_the_mean_of_their_frames(run, there, tokenizer):
    film(there / "b.mp4", 19)
    (row,) = answer(run("embed", "b.mp4", "--pool", "frames", "--json"))
    frames = read_video("b.mp4").frames
    mean = torch.stack([tokenizer.embed(Image(frame)) for frame in frames]).mean(0)
    torch.testing.assert_close(torch.tensor(row["vector"]), mean / mean.norm(), atol=FP32, rtol=0)
    torch.testing.assert_close(tokenizer.embed_frames(Video(frames)), mean / mean.norm(), atol=FP32, rtol=0)
    run("encode", "b.mp4")
    says_one_sentence(run("search", "x", "b.atok", "--pool", "frames"), "vectors of whole videos")


def test_classify_ranks_labels_by_the_models_own_logits(run, there, tokenizer):
    image(there / "a.png")
    image(there / "b.png", seed=4)
    labels = ["a red box", "a blue cone", "two spheres"]
    for row in answer(run("classify", "a.png", "b.png", "--json", "--labels", *labels)):
        logits = tokenizer.logits(tokenizer.embed(row["name"])[None], tokenizer.embed_text(labels))[0]
        order = logits.argsort(descending=True)
        assert [one["label"] for one in row["labels"]] == [labels[i] for i in order]
        assert [one["logit"] for one in row["labels"]] == pytest.approx(logits[order].tolist(), abs=1e-3)
        assert [one["probability"] for one in row["labels"]] == pytest.approx(
            logits[order].sigmoid().tolist(), abs=FP32
        )
    code, out, _ = run("classify", "a.png", "--labels", *labels)
    assert code == 0
    assert out.splitlines()[0].split() == ["name", "label", "probability"]


def test_search_puts_the_best_first_and_reads_token_files_without_pixels(run, there, tokenizer, monkeypatch):
    for seed in range(4):
        image(there / f"{seed}.png", seed=seed)
    files = [f"{seed}.png" for seed in range(4)]
    run("encode", *files, "-o", "set.atok")
    query = "a green cylinder"
    scores = {name: float(tokenizer.embed(name) @ tokenizer.embed_text([query])[0]) for name in files}
    best = sorted(scores, key=scores.get, reverse=True)
    from_media = answer(run("search", query, *files, "--json"))
    assert [row["name"] for row in from_media] == best
    assert [row["cosine"] for row in from_media] == pytest.approx([scores[name] for name in best], abs=FP32)
    for name in files:
        Path(name).unlink()
    monkeypatch.setattr(Tokens, "__init__", None)  # no item is read whole, either
    from_tokens = answer(run("search", query, "set.atok", "--top", 2, "--json"))
    assert [row["name"] for row in from_tokens] == [f"set.atok:{name}" for name in best[:2]]


def test_what_cannot_be_matched_gets_one_sentence(run, there, tmp_path_factory):
    image(there / "a.png")
    other = save_with_text(tmp_path_factory.mktemp("models") / "other", seed=1)
    run("encode", "a.png")
    says_one_sentence(run("search", "x", "a.atok", model=other), "made by model texts")
    plain = tmp_path_factory.mktemp("models") / "plain"
    small_model().save_pretrained(plain)
    for command in (
        ("search", "x", "a.png"),
        ("classify", "a.png", "--labels", "x"),
        ("embed", "a.png", "--text", "x"),
    ):
        says_one_sentence(run(*command, model=plain), "plain has no text side")
    assert run("embed", "a.png", model=plain)[0] == 0  # needs none
    code, out, error = run("search", "x", "nowhere.png", "a.png", "--json")
    assert (code, len(json.loads(out))) == (1, 1)
    assert "nowhere.png" in error
    (there / "vectors.npz").unlink()
    code, out, error = run("embed", "nowhere.png")
    assert (code, out) == (1, "")
    assert not Path("vectors.npz").exists()
    says_one_sentence(run("embed", "a.png", "-o", "no/such/v.npz"), "Cannot write")


def test_a_siglip2_text_tower_and_its_tokenizer_become_the_text_side(run, there):
    width = load_official(OFFICIAL, ARCH).config.encoder_width
    tower = Siglip2TextModel(Siglip2TextConfig(**text_sizes(width))).eval()
    tower.save_pretrained("siglip2")
    words().save("siglip2")
    official = ["convert", OFFICIAL, "--config", published_yaml(there / "soc.yaml")]
    assert run(*official, "--text", "siglip2", "-o", "mine")[0] == 0
    with torch.no_grad():
        expected = tower(words()(["a red box"])).pooler_output
    vectors = atoken.load("./mine", device="cpu").embed_text(["A Red, box!"])
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(expected, dim=-1), atol=FP32, rtol=0)
    says_one_sentence(run(*official, "--text", "nowhere", "-o", "x"), "no SigLIP2 text tower")
    Siglip2TextModel(Siglip2TextConfig(**text_sizes(width + 8))).save_pretrained("wide")
    says_one_sentence(run(*official, "--text", "wide", "-o", "x"), "SigLIP2 of the same size")
    assert not Path("x").exists()
