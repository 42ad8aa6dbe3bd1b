"""The text side: cleaning, numbers of words, vectors equal to transformers' own, saved with the model."""

import numpy as np
import pytest
import torch
from transformers import Siglip2TextModel

import atoken
from atoken.checkpoint import fingerprint, load_folder, with_text
from atoken.errors import AtokenError, CheckpointError
from atoken.model import ATokenConfig
from atoken.text import TextTokenizer, clean
from tests.model.sizes import small_config, small_model
from tests.tokenizer.small import random_frames, small_tokenizer
from tests.tokenizer.texts import LENGTH, WORDS, save_with_text, small_texts_model, text_sizes, words
from tests.tolerances import FP32


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A Photo of a CAT.", "a photo of a cat"),
        ("  two\n\tspheres ", "two spheres"),
        ("fire_truck; (red)", "fire truck red"),
        ("don't", "dont"),
        ("café", "café"),
        ("...", ""),
        ("", ""),
    ],
)
def test_texts_are_cleaned_as_siglip_does(text, cleaned):
    assert clean(text) == cleaned
    assert clean(cleaned) == cleaned


def test_ids_are_padded_and_cut_to_one_length():
    ids = words()(["A red box!", "", "zebra", " ".join(["red"] * 40)])
    red, box, a = WORDS.index("red"), WORDS.index("box"), WORDS.index("a")
    assert ids.tolist()[:3] == [[a, red, box] + [0] * (LENGTH - 3), [0] * LENGTH, [1] + [0] * (LENGTH - 1)]
    assert ids[3].tolist() == [red] * LENGTH
    assert words()([]).shape == (0, LENGTH)


def test_vectors_are_those_of_transformers_tower():
    model = small_texts_model().eval()
    ids = words()(["a red box", "two blue spheres"])
    tower = Siglip2TextModel(model.text_tower.config).eval()
    tower.load_state_dict(model.text_tower.state_dict())
    with torch.no_grad():
        actual, expected = model.encode_text(ids), tower(ids).pooler_output
    torch.testing.assert_close(actual, expected, atol=FP32, rtol=0)


def test_the_text_side_is_saved_with_the_model_bit_for_bit(tmp_path):
    save_with_text(tmp_path)
    loaded, again = atoken.load(tmp_path, device="cpu"), atoken.load(tmp_path, device="cpu")
    texts = ["a red box", "the green cone and a sphere"]
    vectors = loaded.embed_text(texts)
    assert torch.equal(vectors, again.embed_text(texts))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2), atol=FP32, rtol=0)
    with torch.no_grad():
        fresh = small_texts_model().eval().encode_text(words()(texts))
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(fresh, dim=-1), atol=FP32, rtol=0)
    assert fingerprint(load_folder(tmp_path)) == loaded.fingerprint != fingerprint(small_model())
    image = random_frames(33, 18)
    logits = loaded.logits(loaded.embed(image)[None], vectors)
    cosines = loaded.embed(image) @ vectors.T
    torch.testing.assert_close(logits[0], cosines * np.exp(4.8438).astype(np.float32) - 15.5625, atol=1e-3, rtol=0)


def test_alone_equals_in_a_batch_for_texts():
    model = small_texts_model().eval()
    ids = words()(["a red box", "two spheres", "", "the cone"])
    with torch.no_grad():
        together = model.encode_text(ids)
        alone = torch.cat([model.encode_text(one[None]) for one in ids])
    torch.testing.assert_close(together, alone, atol=FP32, rtol=0)


def test_a_model_without_text_side_says_so(tmp_path):
    with pytest.raises(AtokenError, match="has no text side"):
        small_tokenizer().embed_text(["a"])
    with pytest.raises(ValueError, match="no text side"):
        small_model().encode_text(torch.zeros(1, 4, dtype=torch.long))
    small_texts_model().save_pretrained(tmp_path)  # without the tokenizer's files
    without = atoken.load(tmp_path, device="cpu")
    assert without.encode(random_frames(16, 16)).latents.shape == (1, 48)
    with pytest.raises(AtokenError, match="without a text tokenizer, whose files its folder lacks"):
        without.embed_text(["a"])


def test_a_tokenizer_is_saved_with_its_texts(tmp_path):
    save_with_text(tmp_path / "a")
    atoken.load(tmp_path / "a", device="cpu").save_pretrained(tmp_path / "b" / "c")
    one, other = (atoken.load(folder, device="cpu") for folder in (tmp_path / "a", tmp_path / "b" / "c"))
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.embed_text("a red box"), other.embed_text(["a red box"]))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"Cannot write .*file"):
        one.save_pretrained(tmp_path / "file")


def test_one_text_is_one_vector_and_none_is_a_sentence(tmp_path):
    save_with_text(tmp_path)
    tokenizer = atoken.load(tmp_path, device="cpu")
    assert tokenizer.embed_text("a red star").shape == (1, tokenizer.model.config.encoder_width)
    for wrong in ([], [1], None, ["a", b"b"]):
        with pytest.raises(AtokenError, match="a text or a list of at least one text"):
            tokenizer.embed_text(wrong)


def test_a_text_tower_of_another_width_is_refused():
    width = small_model().config.encoder_width
    with pytest.raises(ValueError, match=f"projection_size 40 is not the encoder's {width}"):
        small_model(text=text_sizes(40))
    with pytest.raises(CheckpointError, match="vectors of 40"):
        with_text(small_model(), small_model(encoder_width=40, encoder_heads=1, text=text_sizes(40)).text_tower)


def test_a_tower_taken_up_from_transformers_is_the_same_after_saving(tmp_path):
    width = small_model().config.encoder_width
    tower = small_model(3, text=text_sizes(width)).text_tower
    model = with_text(small_model(), tower)
    model.save_pretrained(tmp_path)
    ids = words()(["a red box"])
    with torch.no_grad():
        assert torch.equal(load_folder(tmp_path).encode_text(ids), tower.eval()(ids).pooler_output)
    assert ATokenConfig.from_pretrained(tmp_path).text["projection_size"] == width
    assert small_config().text is None


def test_a_folder_without_tokenizer_files_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="no text tokenizer"):
            TextTokenizer.load(folder, 64)
