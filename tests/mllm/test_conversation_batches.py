"""Packed conversations equal separate ones; every epoch has each once; broken ones are counted and replaced."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from atoken.data.mixing import Broken
from atoken.errors import AtokenError
from atoken.image_processor import ATokenImageProcessor
from atoken.io import Video, write_video
from atoken.train.loader import batches
from mllm.assembly import assemble
from mllm.conversation import MediaItem
from mllm.data.batches import ConversationBatches
from mllm.data.lengths import measure, most_tokens
from mllm.data.mixture import Mixture
from mllm.data.records import Records
from mllm.processor import ATokenVLProcessor
from mllm.questions.synthetic import SyntheticQuestions
from tests.mllm.tiny_language import LANGUAGES, bpe, write_language, write_tower
from tests.tolerances import FP32

SETTINGS = {"frames": 4, "slow_frames": 2, "fast_output": 2, "image_pool": 2, "asset_tokens": 20}


@pytest.fixture(scope="module")
def processor():
    return ATokenVLProcessor(ATokenImageProcessor(), bpe(), SETTINGS)


@pytest.fixture(scope="module")
def mixture():
    return Mixture({
        "images": SyntheticQuestions("image", 24, size=(32, 48), turns=3),
        "videos": SyntheticQuestions("video", 10, size=(4, 32, 32), turns=2),
        "assets": SyntheticQuestions("asset", 2),
    })  # fmt: skip


@pytest.fixture(scope="module")
def source(mixture, processor):
    return ConversationBatches(mixture, processor, measure(mixture, processor, 400), 400, seed=3, micro_batches=2)


def test_lengths_are_known_before_anything_is_made(mixture, processor, source):
    for index in range(34):
        assert source.lengths.tokens[index] == len(processor.encode(mixture[index], supervised=True).input_ids)
    asset = processor.encode(mixture[34], supervised=True)
    assert len(asset.input_ids) <= source.lengths.tokens[34] <= len(asset.input_ids) + SETTINGS["asset_tokens"]
    assert source.lengths.broken == ()


def test_lengths_of_files_come_from_their_headers(tmp_path, processor):
    noise = np.random.default_rng(0).integers(0, 256, (9, 70, 50, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise[0]).save(tmp_path / "a.jpg", exif=turned)
    write_video(Video(noise[:, :64, :48]), tmp_path / "a.mp4")
    sources = {"image": [tmp_path / "a.jpg", noise[0], (tmp_path / "a.jpg").read_bytes()],
               "video": [tmp_path / "a.mp4", noise, [*noise], noise[:3]]}  # fmt: skip
    for modality, found in sources.items():
        for one in found:
            for options in ({}, {"frames": 2}) if modality == "video" else ({},):
                item = MediaItem(modality, one, options)
                assert most_tokens(item, processor) == len(processor.read(item, "k"))


@pytest.mark.parametrize(
    ("modality", "source", "options"),
    [("video", [], {}), ("video", np.zeros((2, 8, 8, 3), np.uint8), {"frames": 0}),
     ("video", np.zeros((2, 8, 8, 3), np.uint8), {"fps": 2}), ("image", 3, {}), ("image", "none.png", {}),
     ("video", b"?", {}), ("asset", "none.glb", {}), ("image", "https://x.org/a.png", {})],
)  # fmt: skip
def test_media_without_a_length_are_refused_in_one_sentence(processor, modality, source, options):
    with pytest.raises(AtokenError):
        most_tokens(MediaItem(modality, source, options), processor)


@pytest.mark.parametrize("language", LANGUAGES)
def test_packed_equals_separate(source, processor, tmp_path, language):
    model, _ = assemble(write_language(tmp_path / "l", language), write_tower(tmp_path / "t"), **SETTINGS)
    torch.nn.init.normal_(model.eval().projector.separators.weight)
    found = map(replace(source, tokens=1200).batch, range(10))
    batch = next(batch for batch in found if len({one.modality for one in batch.media}) == 3)
    options = {"use_cache": False}
    with torch.no_grad():
        packed = model(batch.input_ids, media=batch.media, attention_mask=batch.attention_mask,
                       position_ids=batch.position_ids, **options).logits[0]  # fmt: skip
        media = iter(batch.media)
        for ids, labels, logits in zip(
            *(x.split(batch.lengths) for x in (batch.input_ids[0], batch.labels[0], packed)), strict=True
        ):
            counts, own = int((ids == processor.media_token_id).sum()), []
            while counts > sum(map(len, own)):
                own.append(next(media))
            torch.testing.assert_close(logits, model(ids[None], media=own, **options).logits[0], atol=FP32, rtol=0)
            assert labels[0] == -100
    assert next(media, None) is None


def test_every_epoch_has_each_conversation_once(source, mixture):
    epochs, length = [], round(source.steps_per_epoch * 2)
    for epoch in range(2):
        drawn = [source.batch(epoch * length + number) for number in range(length)]
        assert all(len(batch) <= 400 and batch.samples == len(batch.keys) for batch in drawn)
        epochs.append([batch.keys for batch in drawn])
        assert Counter(key for batch in drawn for key in batch.keys) == Counter(mixture[i].key for i in range(36))
    assert epochs[0] != epochs[1]
    assert sum(map(len, epochs[0])) / length > 2.5  # they are packed


def test_answers_and_their_ends_are_targets(source, mixture, processor):
    batch = source.batch(0)
    number = {mixture[index].key: index for index in range(36)}
    for key, ids, labels in zip(
        batch.keys, *(x[0].split(batch.lengths) for x in (batch.input_ids, batch.labels)), strict=True
    ):
        answers = [message.text for message in mixture[number[key]].messages if message.role == "assistant"]
        assert processor.tokenizer.decode(labels[labels >= 0]) == "".join(f"{text}<|im_end|>" for text in answers)
        assert torch.equal(labels[labels >= 0], ids[labels >= 0])
    assert batch.supervised == int((batch.labels >= 0).sum())


def test_ranks_and_processes_share_the_same_batches(source):
    one = [batch for step in batches(source, 1, 3, 0) for batch in step]
    two = [list(batches(source, 1, 3, 0, rank, 2)) for rank in range(2)]
    shared = [two[rank][step][0] for step in range(2) for rank in range(2)]
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - as it goes to other processes
    for first, second, third in zip(one, shared, map(again.batch, source.keys(1) + source.keys(2)), strict=True):
        for other in (second, third):
            assert torch.equal(first.input_ids, other.input_ids)
            assert torch.equal(first.labels, other.labels)
            assert first.keys == other.keys
            assert all(
                torch.equal(a.patches.feats, b.patches.feats) for a, b in zip(first.media, other.media, strict=True)
            )


def written(folder, records):
    (folder / "x.json").write_text(json.dumps(records))
    return Mixture({"x": Records(folder / "x.json")})


def turns(question="<image>\n?", answer="yes", **media):
    said = [{"from": "human", "value": question}, *([{"from": "gpt", "value": answer}] if answer is not None else [])]
    return {**media, "conversations": said}


def test_broken_conversations_are_counted_with_their_numbers(tmp_path, processor):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    good = [turns(image="a.png")] * 16
    mixture = written(tmp_path, [
        turns(image="b.png"), turns(answer=None, image="a.png"), turns("x" * 300, image=None), turns(), *good,
    ])  # fmt: skip
    lengths = measure(mixture, processor, 100, most_broken=0.2)
    assert [(one.at, one.source, one.key) for one in lengths.broken] == [
        (number, "x", f"{tmp_path / 'x.json'}, record {number}" if number < 3 else "conversation 3")
        for number in range(4)
    ]
    for one, said in zip(
        lengths.broken, ("no such file", "no answer to learn", "over the budget of 100", "slot"), strict=True
    ):
        assert said in one.reason
    source = ConversationBatches(mixture, processor, lengths, 100)
    seen = [key for number in range(round(source.steps_per_epoch)) for key in source.batch(number).keys]
    assert len(seen) == len(set(seen)) == 16
    with pytest.raises(
        AtokenError, match=r"4 of 20 conversations are broken, over the limit of 10%. The first: .*b.png"
    ):
        measure(mixture, processor, 100)


def test_what_breaks_later_is_replaced(tmp_path, processor):
    for number in range(8):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{number}.png")
    mixture = written(tmp_path, [turns(image=f"{number}.png") for number in range(8)])
    source = ConversationBatches(mixture, processor, measure(mixture, processor, 1000), 1000)
    before = source.batch(0)
    assert before.samples == 8
    (tmp_path / "3.png").write_bytes(b"no image")
    batch = source.batch(0)
    assert batch.samples == 8
    assert {(one.at, one.source) for one in batch.broken} == {(3, "x")}
    assert isinstance(batch.broken[0], Broken)
    assert len(set(batch.keys)) == 7
    for number in range(8):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(AtokenError, match="100 conversations in a row are broken"):
        source.batch(0)


def test_budgets_are_checked(mixture, processor, source):
    for tokens, micro_batches in ((100, 1), (400, 0), (0, 1)):
        with pytest.raises(AtokenError):
            ConversationBatches(mixture, processor, source.lengths, tokens, micro_batches=micro_batches)
    assert len(measure(mixture, processor, 100, most_broken=1).broken) > 0
    with pytest.raises(AtokenError, match="has 0 tokens"):
        ConversationBatches(mixture, processor, measure(mixture, processor, 1, most_broken=1), 400)
