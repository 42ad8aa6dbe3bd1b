"""The words of captions: each of them one token, any other text in pieces, and the same numbers every time."""

from itertools import islice

import pytest
from transformers import Siglip2TextConfig

from atoken.data.synthetic.labelled import FIGURE_PROMPTS, SOLID_PROMPTS
from atoken.data.synthetic.words import COLOURS, NUMBERS
from atoken.pretrain.start.vocabulary import MOST, captions, vocabulary
from atoken.text import TextTokenizer, clean

LENGTH = 32


@pytest.fixture(scope="module")
def found():
    return list(captions(30))


@pytest.fixture(scope="module")
def texts(found):
    return vocabulary(found, LENGTH)


def pieces(texts, text):
    return texts.tokenizer.tokenize(clean(text))


def test_every_word_of_a_caption_is_one_token(found, texts):
    for caption in found:
        assert pieces(texts, caption) == clean(caption).split()


def test_captions_come_from_every_generator(found):
    said = {word for caption in found for word in clean(caption).split()}
    assert said > {word for prompt in FIGURE_PROMPTS + SOLID_PROMPTS for word in prompt.split()}
    assert said > {*COLOURS, *NUMBERS[2:4], "left", "moving", "texture", "camera", "bottle"}
    assert list(islice(captions(30), len(FIGURE_PROMPTS))) == list(FIGURE_PROMPTS)


@pytest.mark.parametrize("text", ["zebra", "reddish", "circleblue", "7up", "caf\u00e9", "\u00c5ngstr\u00f6m"])
def test_other_words_fall_into_pieces(texts, text):
    made = pieces(texts, text)
    assert len(made) > 1
    assert texts.tokenizer.unk_token not in made
    plain = {"caf\u00e9": "cafe", "\u00c5ngstr\u00f6m": "angstrom"}.get(text, text)
    assert "".join(piece.removeprefix("##") for piece in made) == plain


@pytest.mark.parametrize("text", ["\u6c34", "red \u2603 star", "\U0001f600", "x" * 1000, ""])
def test_no_text_is_beyond_it(texts, text):
    ids = texts([text])
    assert ids.shape == (1, LENGTH)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < len(texts.tokenizer)


def test_padding_has_the_number_that_the_tower_expects(texts):
    ids = texts(["a red circle"])[0]
    assert texts.tokenizer.pad_token_id == Siglip2TextConfig().pad_token_id == ids[-1]
    assert (ids != ids[-1]).sum() == 3


def test_the_order_of_texts_does_not_matter(found, texts):
    assert vocabulary(reversed(found), LENGTH).tokenizer.get_vocab() == texts.tokenizer.get_vocab()


def test_frequent_words_come_first_and_no_more_than_there_is_budget():
    said = ["ring ring ring", "star star", "cross cross", "a b cone"]
    least = len(vocabulary([], 4).tokenizer)
    numbers = vocabulary(said, 4, least + 3).tokenizer.get_vocab()
    assert [numbers[word] for word in ("ring", "cross", "star")] == [least, least + 1, least + 2]
    assert "cone" not in numbers
    assert len(numbers) == least + 3 <= MOST


def test_its_files_give_the_same_numbers(tmp_path, found, texts):
    texts.save(tmp_path)
    said = [*found[-20:], "zebra \u6c34", ""]
    assert TextTokenizer.load(tmp_path, LENGTH)(said).equal(texts(said))
