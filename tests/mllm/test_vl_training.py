"""``python -m mllm train`` on tiny models: what learns, what is written, what a run goes on with, and what it costs."""

import json
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Qwen2Config

from atoken.errors import AtokenError
from atoken.train.cost import count
from atoken.train.engine import PlainEngine
from mllm import training
from mllm.assembly import assemble
from mllm.command import main
from mllm.data.batches import ConversationBatches
from mllm.data.features import FeatureFolder, keep
from mllm.data.lengths import measure
from mllm.data.mixture import Mixture, read_mixture
from mllm.evaluation import right_answers
from mllm.flops import flops_of
from mllm.lora import without_lora
from mllm.model import ATokenVLForConditionalGeneration
from mllm.objective import AnswerObjective
from mllm.processor import ATokenVLProcessor
from mllm.questions.synthetic import SyntheticQuestions
from tests.mllm.tiny_language import bpe
from tests.mllm.vl_data import CHANGES, words, write_sources
from tests.tolerances import FP32

pytest.importorskip("peft", reason="the extra mllm is not installed")
POOLING = {"image_pool": 2, "frames": 4, "slow_frames": 2, "fast_output": 2, "asset_tokens": 20}
WAYS = ("projector", "projector+language", "projector+lora")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources, and a run of six steps of each way to train."""
    folder = write_sources(tmp_path_factory.mktemp("vl"))
    for trains in WAYS:
        assert main(words(folder, folder / trains, trains=trains)) == 0
    return folder


@pytest.fixture(scope="module")
def both(folder):
    model, processor = assemble(folder / "language", folder / "tower", lora={"rank": 2}, **POOLING)
    return model, processor


def source_of(folder, processor, tokens=200, **options):
    mixture = read_mixture(folder / "mix.yaml")
    lengths = measure(mixture, processor, tokens)
    return ConversationBatches(mixture, processor, lengths, tokens, micro_batches=2, **options)


def rows(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("trains", WAYS)
def test_what_is_trained_changes_and_what_is_frozen_is_neither_changed_nor_written(folder, trains):
    run = folder / trains
    written = load_file(run / "model/model.safetensors")
    sections = {name.partition(".")[0] for name in written}
    assert sections == ({"projector"} if trains == "projector" else {"projector", "language_model"})
    state = load_file(folder / "language/model.safetensors")
    model = ATokenVLForConditionalGeneration.from_pretrained(run / "model")
    same = [
        torch.equal(weight, state[re.sub(r"\.base_layer", "", name)])
        for name, weight in model.language_model.named_parameters()
        if "lora" not in name
    ]
    assert not any(same) if trains == "projector+language" else all(same)
    assert (model.config.language_source is None) == (trains == "projector+language")
    if trains == "projector+lora":
        assert any(bool(weight.any()) for name, weight in model.named_parameters() if ".lora_B." in name)
    held = [load_file(path).keys() for path in run.glob("step-000006/rank-*.safetensors")]
    learned = {name.partition("/")[2] for name in held[0]}
    assert not {name for name in learned if "base_layer" in name or name.startswith("vision")}
    assert len([*run.glob("frozen-*.safetensors")]) == (trains != "projector+language")
    found = rows(run)
    assert [row["step"] for row in found] == list(range(6))
    assert all(np.isfinite(row["loss"]) and row["flops"] > 0 for row in found)
    processor = ATokenVLProcessor.from_pretrained(run / "model")
    assert processor.settings == model.config.settings == training.SlowFast(**POOLING)


def test_a_run_that_is_gone_on_with_equals_one_that_was_not_stopped(folder):
    calls = []

    def train(self, batches, whole=PlainEngine.train):
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainEngine, "train", train)
        with pytest.raises(SystemExit):
            main(words(folder, folder / "again"))
    assert main(words(folder, folder / "again")) == 0
    first, second = ((folder / run / "model/model.safetensors").read_bytes() for run in ("projector+lora", "again"))
    assert first == second
    assert [row["loss"] for row in rows(folder / "again")] == [row["loss"] for row in rows(folder / "projector+lora")]
    assert main(words(folder, folder / "again", changes=("rank=3",))) == 1


def test_activations_that_are_computed_again_change_nothing(folder):
    assert main(words(folder, folder / "checkpointing", changes=("checkpointing=true", "steps=3", "ema=0"))) == 0
    losses = [[row["loss"] for row in rows(folder / run)[:2]] for run in ("projector+lora", "checkpointing")]
    assert losses[0] == pytest.approx(losses[1], rel=FP32)


def test_the_loss_of_a_step_is_the_mean_over_its_targets(folder, both):
    model, processor = both
    objective = AnswerObjective(model.eval())
    source = source_of(folder, processor)
    batches = [source.batch(key) for key in source.keys(1)]
    assert len({batch.supervised for batch in batches}) == 2
    assert [batch.mean_supervised for batch in batches] == [sum(batch.supervised for batch in batches) / 2] * 2
    with torch.no_grad():
        losses = [float(objective(batch)[0]) for batch in batches]
        sums = 0.0
        for batch in batches:
            logits = model(
                batch.input_ids, batch.media, batch.attention_mask, batch.position_ids, use_cache=False
            ).logits
            sums += float(torch.nn.functional.cross_entropy(logits[0, :-1], batch.labels[0, 1:], reduction="sum"))
    assert np.mean(losses) == pytest.approx(sums / sum(batch.supervised for batch in batches), rel=FP32)


def test_attention_that_adds_its_mask_gives_the_same_loss(folder, both):
    model, processor = both
    objective, batch = AnswerObjective(model.eval()), source_of(folder, processor).batch(0)
    assert batch.samples > 1
    with torch.no_grad():
        expected = float(objective(batch)[0])
        model.language_model.set_attn_implementation("eager")
        assert float(objective(batch)[0]) == pytest.approx(expected, rel=FP32)
    model.language_model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("trains", WAYS)
def test_flops_are_those_of_the_matrices(folder, trains):
    how = training.training(trains, 2, CHANGES)
    model, processor = training.model_of(how, folder / "language", folder / "tower", None, in_fp32=True)
    batch = next(batch for batch in map(source_of(folder, processor).batch, range(9)) if batch.media)
    objective = AnswerObjective(model)
    seen = sum(length for one in batch.media for length in one.patches.lengths)
    whole = flops_of(model)(batch)
    batch = replace(batch, media=model.encode_media(batch.media))
    with sdpa_kernel(SDPBackend.MATH):  # the others are not counted on the CPU
        found, expected = flops_of(model)(batch), count(objective, batch)
    assert found.forward == pytest.approx(expected.forward, rel=1e-3)
    assert found.backward == pytest.approx(expected.backward, rel=1e-3)
    layers = [module for module in model.vision_tower.encoder.modules() if isinstance(module, torch.nn.Linear)]
    matrices = sum(layer.weight.numel() for layer in layers)
    assert 0 <= whole.forward - found.forward - 2 * seen * matrices < seen * matrices


def test_kept_features_equal_live_ones(folder, both, tmp_path):
    model, processor = both
    live = source_of(folder, processor)
    kept = source_of(folder, processor, features=FeatureFolder(tmp_path / "features", "nano"))
    key = next(key for key in range(9) if {one.modality for one in live.batch(key).media} == {"image", "video"})
    objective = AnswerObjective(model.eval())
    with torch.no_grad():
        losses = [float(objective(source.batch(key))[0]) for source in (live, kept, kept)]
    assert all(one.patches is None and one.features is not None for one in kept.batch(key).media)
    assert losses[0] == losses[1] == losses[2]
    other = FeatureFolder(tmp_path / "features", "other")
    assert all(one.features is None for one in source_of(folder, processor, features=other).batch(key).media)
    (file, *_) = sorted((tmp_path / "features").rglob("*.safetensors"))
    file.write_bytes(b"cut short")
    again = kept.batch(key)
    with torch.no_grad():
        assert float(objective(again)[0]) == losses[0]
    keep(again.media)


def test_stage_1_is_of_images_and_texts(folder, both):
    _, processor = both
    mixture = read_mixture(folder / "mix.yaml")
    how = training.training("projector", 1, ["tokens=200", "micro_batches=2"])
    first = training.batches_of(mixture, processor, how, 0.1, 2)
    assert (first.lengths.tokens > 0).tolist() == [True] * 24 + [False] * 8 + [True] * 6
    assert first.lengths.broken == ()
    assert training.recipe_of(how, first).steps == -(-first._order.order.epoch // 2)
    with pytest.raises(AtokenError, match="such as --set micro_batches=3"):
        training.batches_of(mixture, processor, how, 0.1, 3)
    videos = Mixture({"videos": SyntheticQuestions("video", 4, size=(4, 32, 32))})
    with pytest.raises(AtokenError, match="no conversations for stage 1"):
        training.batches_of(videos, processor, how, 0.1, 1)


def test_right_answers_are_those_of_generation(folder, both):
    model, processor = both
    mixture, model = read_mixture(folder / "checked.yaml"), model.eval()
    found = right_answers(model, processor, mixture, 200)
    assert set(found) == {"right", "right 1: questions about image"}
    right = []
    for number in range(len(mixture)):
        encoded = processor.encode(mixture[number], supervised=True)
        target = encoded.labels[encoded.labels >= 0]
        start = int((encoded.labels >= 0).nonzero()[0])
        made = model.generate(
            encoded.input_ids[None, :start], encoded.media, max_new_tokens=len(target), do_sample=False
        )
        right.append(made[0, start:].tolist() == target.tolist())
    assert found["right"] == np.mean(right)


def test_a_second_stage_goes_on_and_answers_are_checked(folder, capsys):
    more = ["--start", str(folder / "projector/model"), "--validation", str(folder / "checked.yaml"), "--stage", "1"]
    assert main(words(folder, folder / "second", *more, changes=("steps=2",))) == 0
    checks = [json.loads(line) for line in (folder / "second/evaluation.jsonl").read_text().splitlines()]
    assert all("right 1: questions about image" in check for check in checks)
    model = ATokenVLForConditionalGeneration.from_pretrained(folder / "second/model")
    before = ATokenVLForConditionalGeneration.from_pretrained(folder / "projector/model")
    assert model.config.lora["rank"] == 2
    assert not torch.equal(model.projector.up.weight, before.projector.up.weight)
    with without_lora(model):
        assert model.config.language_source == str(folder / "language")
    lora = ["--start", str(folder / "second/model")]
    assert main(words(folder, folder / "third", *lora, changes=("rank=4",))) == 1
    assert "merge it first" in capsys.readouterr().err


def test_a_plan_of_7b_reads_no_weights(folder, tmp_path, capsys):
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
             "num_key_value_heads": 4, "vocab_size": 152064, "bos_token_id": None, "eos_token_id": 2}  # fmt: skip
    Qwen2Config(**sizes, architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    for trains, trained in (("projector+language", "7,628.6"), ("projector+lora", "18.0")):
        more = ["--plan", "--gpus", "2", "--llm", str(tmp_path)]
        assert main(words(folder, tmp_path / "none", *more, trains=trains, changes=("checkpointing=true",))) == 0
        said = capsys.readouterr().out
        assert f"{trained} million trained" in said
        assert "ZeRO 3" in said
    assert not (tmp_path / "none").exists()


def test_wrong_words_are_one_sentence(folder, tmp_path, capsys):
    assert main(words(folder, tmp_path / "run", changes=("rate=1",))) == 1
    assert main(words(folder, tmp_path / "run", changes=("tokens=20",))) == 1
    assert main(words(folder, tmp_path / "run", trains="projector+lora", changes=("targets=query",))) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "there is no field 'rate'" in lines[0]
    assert "over the limit of 10%" in lines[1]
    assert "no layers for LoRA named query" in lines[2]
