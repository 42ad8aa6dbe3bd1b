"""Questions and answers in turns, in Python and on the command line, on a tiny model."""

import contextlib
import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from atoken.cameras import Cameras
from atoken.errors import AtokenError
from atoken.io import load_media
from atoken.modalities.views import render_views
from mllm import Chat, MediaItem, assemble
from mllm.command import main, parser
from tests.folder_of_views import write_views
from tests.mllm.tiny_language import write_language, write_tower

SETTINGS = {"frames": 8, "slow_frames": 2, "video_pixels": 64 * 80, "image_pool": 2, "asset_tokens": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, its processor, and media."""
    folder = tmp_path_factory.mktemp("chat")
    torch.manual_seed(0)
    model, processor = assemble(write_language(folder / "language"), write_tower(folder / "tower"), **SETTINGS)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    noise = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Pil.fromarray(noise).save(folder / "noise.png")
    Pil.fromarray(noise[::-1]).save(folder / "other.png")
    return folder


def answer_of(chat, messages, new):
    """Without ``Chat``: everything anew."""
    batch = chat.processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    ids = chat.model.generate(**batch, max_new_tokens=new, do_sample=False)[0, batch["input_ids"].shape[1] :]
    return chat.processor.decode(ids, skip_special_tokens=True).strip()


def test_turns_are_one_conversation_and_media_are_seen_once(folder):
    chat = Chat.load(folder / "model")
    image = MediaItem("image", folder / "noise.png")
    first = chat.ask("What is it?", image, max_new_tokens=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            chat.model.vision_tower,
            "encode_samples",
            lambda *samples, **_: pytest.fail("seen again") if samples[0] else [],
        )
        second = chat.ask("How many?", max_new_tokens=6)
    messages = [{"role": "user", "content": [{"type": "image", "path": str(folder / "noise.png")}, "What is it?"]}]
    assert first.text == answer_of(chat, messages, 6)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "How many?"}]
    assert second.text == answer_of(chat, messages, 6)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2


def test_an_answer_says_whether_it_was_cut(folder):
    chat = Chat.load(folder / "model")
    answer = chat.ask("What is it?", max_new_tokens=3)
    assert answer.cut
    chat.model.generation_config.eos_token_id = list(range(320))  # whatever comes ends it
    assert not chat.ask("What is it?", max_new_tokens=3).cut


def test_without_a_length_an_answer_may_take_all_positions(folder, monkeypatch):
    chat = Chat.load(folder / "model")
    batch = chat.processor(text="What is it?")
    length = batch["input_ids"].shape[1]
    monkeypatch.setattr(chat.model.config.text_config, "max_position_embeddings", length + 30)
    assert chat.model.generate(**batch, eos_token_id=-1).shape[1] == length + 30


def test_after_an_error_the_conversation_is_as_it_was(folder):
    chat = Chat.load(folder / "model")
    chat.ask("What is it?", max_new_tokens=2)
    before = chat.messages
    frames = np.zeros((10_000, 2, 2, 3), np.uint8)
    for said, media, new in [
        ("answer may have 4,096", [], 4096),
        ("1 on, got 0", [], 0),
        ("b.png", [MediaItem("image", "b.png")], 2),
        ("1 on, got 0", [MediaItem("video", frames, {"frames": 0})], 2),
        ("160,000|16\\d,\\d\\d\\d tokens", [MediaItem("video", frames, {"frames": 10_000})], 2),
    ]:
        with pytest.raises(AtokenError, match=said):
            chat.ask("How many?", *media, max_new_tokens=new)
    with pytest.raises(AtokenError, match="language model reads 4,096"):
        chat.ask("z" * 100_000)
    assert chat.messages == before


def test_lora_is_merged_into_a_whole_folder(folder, tmp_path):
    pytest.importorskip("peft", reason="the extra mllm is not installed")
    model, processor = assemble(folder / "language", folder / "tower", lora={"rank": 2}, **SETTINGS)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "lora")
    processor.save_pretrained(tmp_path / "lora")
    assert main(["merge", str(tmp_path / "lora"), "-o", str(tmp_path / "merged")]) == 0
    merged = Chat.load(tmp_path / "merged")
    assert (merged.model.config.lora, merged.model.config.vision_source) == (None, None)
    image = MediaItem("image", folder / "noise.png")
    assert merged.ask("What is it?", image, max_new_tokens=8) == Chat(model, processor).ask(
        "What is it?", image, max_new_tokens=8
    )
    assert main(["merge", str(tmp_path / "merged"), "-o", str(tmp_path / "again")]) == 1


def test_views_are_an_asset(folder, tmp_path):
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    write_views(render_views(load_media("examples/tower.glb"), Cameras.sphere(2), 32), tmp_path / "views")
    chat = Chat.load(folder / "model")
    chat.ask("What is it?", MediaItem("asset", tmp_path / "views"), max_new_tokens=2)
    ((seen, _),) = [message.content for message in chat.messages if message.role == "user"]
    assert 2 < len(seen.source) <= SETTINGS["asset_tokens"] + 2


def test_a_folder_without_a_model_gets_one_sentence(folder):
    for source, said in ((folder / "language", "type qwen2"), (folder / "nothing", "Cannot load"), ("vl", "is no vis")):
        with pytest.raises(AtokenError, match=said):
            Chat.load(source)


def said(*arguments, typed=""):
    """Exit code, output and errors of ``python -m mllm chat``."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(typed))
        code = main(["chat", *map(str, arguments)])
    return code, output.getvalue(), errors.getvalue()


def test_the_command_streams_the_answer(folder):
    chat = Chat.load(folder / "model")
    media = [MediaItem("image", folder / name) for name in ("noise.png", "other.png")]
    expected = chat.ask("What is it?", *media, max_new_tokens=8)
    paths = [word for one in media for word in ("--image", one.source)]
    code, output, errors = said(folder / "model", *paths, "What is it?", "--max-new-tokens", 8)
    assert (code, output.strip()) == (0, expected.text)
    assert ("cut after 8 tokens" in errors) == expected.cut


def test_without_a_question_each_line_is_one(folder):
    chat = Chat.load(folder / "model")
    expected = [chat.ask(question, max_new_tokens=4).text for question in ("What?", "How many?")]
    code, output, _ = said(folder / "model", "--max-new-tokens", 4, typed="What?\n\nHow many?\n")
    assert code == 0
    assert [line.strip() for line in output.split("\n")] == [*expected, ""]


def test_an_error_of_the_command_is_one_sentence(folder):
    code, output, errors = said(folder / "model", "--video", folder / "noise.png", "--frames", 0, "Why?")
    assert (code, output) == (1, "")
    assert errors.startswith("mllm: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["M", "q", "--image", "a", "--video", "b"],
        ["M", "--image", "a", "--video", "b", "q"],
        ["--image", "a", "M", "--video", "b", "q"],
    ],
)
def test_a_question_may_stand_anywhere(words):
    options = parser().parse_args(["chat", *words])
    assert (options.model, options.question) == ("M", "q")
    assert options.media == [("image", "a"), ("video", "b")]
    assert parser().parse_args(["chat", "M", "--image", "a"]).question is None
