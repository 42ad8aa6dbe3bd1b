"""The words of captions: each of them one token, any other text in pieces, and the same numbers every time."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Siglip2TextConfig

from atoken.data.synthetic.labelled import FIGURE_PROMPTS, SOLID_PROMPTS
from atoken.data.synthetic.placed import MOTIONS, RELATIONS
from atoken.data.synthetic.words import COLOURS, NUMBERS
from atoken.pretrain.curriculum import CURRICULA
from atoken.pretrain.data_file import Data, read_data
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.start import vocabulary as module
from atoken.pretrain.start.vocabulary import captions, vocabulary
from atoken.text import TextTokenizer, clean

LENGTH, MOST = 32, 896  # tokens of a text, entries
FIRST = CURRICULA["nano"]["1"]


@pytest.fixture(scope="module")
def found():
    return list(captions(load_datasets("procedural", FIRST).data, FIRST, 48))


@pytest.fixture(scope="module")
def texts(found):
    return vocabulary(found, LENGTH, MOST)


def pieces(texts, text):
    return texts.tokenizer.tokenize(clean(text))


def test_every_word_of_a_caption_is_one_token(found, texts):
    for caption in found:
        assert pieces(texts, caption) == clean(caption).split()


def test_captions_come_from_every_generator(found):
    said = {word for caption in found for word in clean(caption).split()}
    assert said > {word for prompt in FIGURE_PROMPTS + SOLID_PROMPTS for word in prompt.split()}
    assert said > {*COLOURS, *NUMBERS[1:5], "left", "moving", "texture", "camera", "bottle"}
    assert said > {word for words in (*MOTIONS, *RELATIONS) for word in words.split()}


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
    assert vocabulary(reversed(found), LENGTH, MOST).tokenizer.get_vocab() == texts.tokenizer.get_vocab()


def test_frequent_words_come_first_and_no_more_than_there_is_budget():
    said = ["ring ring ring", "star star", "cross cross", "a b cone"]
    least = len(vocabulary([], 4, 0).tokenizer)
    numbers = vocabulary(said, 4, least + 3).tokenizer.get_vocab()
    assert [numbers[word] for word in ("ring", "cross", "star")] == [least, least + 1, least + 2]
    assert "cone" not in numbers
    assert len(numbers) == least + 3


def test_its_files_give_the_same_numbers(tmp_path, found, texts):
    texts.save(tmp_path)
    said = [*found[-20:], "zebra \u6c34", ""]
    assert TextTokenizer.load(tmp_path, LENGTH)(said).equal(texts(said))


SHOWN = ["a photo of a {label}", "a {group}"]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Shards with labels for images with texts, figures that move, and captions that no task reads."""
    (tmp_path / "more").mkdir()
    for name, caption in (("a", "unread"), ("b", "unheard")):
        (tmp_path / "more" / f"{name}.png").write_bytes(b"")
        (tmp_path / "more" / f"{name}.txt").write_text(caption)
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for number, label in enumerate(["shirt", "pear", "pear", "oat milk", 3]):
            described = json.dumps({"label": label, "group": "thing"}).encode()
            for suffix, content in ((".webp", b"x"), (".json", described)):
                member = tarfile.TarInfo(f"{number:06d}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    (tmp_path / "data.toml").write_text(f"""
        [image.more]
        folder = "more"
        [image-text.photos]
        shards = "photos.tar"
        templates = {SHOWN}
        [image-text.figures]
        procedural = "counted"
        [video-text.figures]
        procedural = "moving"
    """)
    return read_data(tmp_path / "data.toml", FIRST.tasks)


def test_words_are_those_of_the_captions_that_any_task_of_the_curriculum_reads(data: Data) -> None:
    found = list(captions(data, FIRST, 48))
    assert [caption for caption in found if "photo" in caption] == [
        f"a photo of a {label}" for label in ("shirt", "pear", "pear", "oat milk")
    ]
    assert found.count("a thing") == 5
    assert sum(" moving " in caption or " standing " in caption for caption in found) == 48  # in stage 2, and words now
    assert not {"unread", "unheard"} & set(found)
    assert len(found) == 4 + 5 + 48 + 48
    assert list(captions(data, CURRICULA["nano"]["3"], 48)) == found


def test_of_a_large_source_some_are_read_evenly(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ", 3)
    found = [caption for caption in captions(data, FIRST, 1) if "photo" in caption]
    assert found == ["a photo of a shirt", "a photo of a pear"]  # numbers 0, 2 and 4


def test_a_source_of_a_later_stage_that_is_missing_is_no_error_yet(data: Data) -> None:
    tables = {**data.tables, "image-text": data.tables["image"]}
    tables["image-text"] = {"gone": replace(tables["image-text"]["more"], folder="/gone")}
    assert len(list(captions(replace(data, tables=tables), FIRST, 9))) == 9
