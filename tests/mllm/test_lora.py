"""LoRA beside a frozen language model: new, trained, switched off, saved, loaded, merged."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from atoken.errors import AtokenError
from mllm.assembly import assemble
from mllm.config import ATokenVLConfig
from mllm.lora import is_lora, merge_lora, without_lora
from mllm.model import ATokenVLForConditionalGeneration
from tests.mllm.test_vl_model import CHATS, inputs, logits
from tests.mllm.tiny_language import LANGUAGES, write_language, write_tower
from tests.tolerances import FP32

pytest.importorskip("peft", reason="the extra mllm is not installed")
SETTINGS = {"frames": 4, "slow_frames": 2, "image_pool": 2, "asset_tokens": 20}
PROMPT = CHATS["image"]


def trained(folder, kind):
    """A model whose LoRA does something, its processor, and where its parts come from."""
    language, tower = write_language(folder / "language", kind), write_tower(folder / "tower")
    model, processor = assemble(language, tower, lora={"rank": 2}, **SETTINGS)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.eval(), processor, language


@pytest.fixture(params=LANGUAGES)
def both(request, tmp_path):
    return trained(tmp_path, request.param)


def test_off_it_is_the_language_model_bit_for_bit(both):
    model, processor, language = both
    plain = assemble(language, model.config.vision_source, **SETTINGS)[0].eval()
    plain.projector.load_state_dict(model.projector.state_dict())
    batch = inputs(processor, PROMPT)
    on = logits(model, batch)[0]
    with without_lora(model):
        assert torch.equal(logits(model, batch)[0], logits(plain, batch)[0])
    assert float((on - logits(plain, batch)[0]).abs().max()) > 0.01
    assert torch.equal(logits(model, batch)[0], on)


def test_new_it_changes_nothing_and_is_in_the_linear_layers_of_the_language_model(tmp_path):
    language, tower = write_language(tmp_path / "language"), write_tower(tmp_path / "tower")
    model, processor = assemble(language, tower, lora={}, **SETTINGS)
    batch = inputs(processor, PROMPT)
    on = logits(model.eval(), batch)[0]
    with without_lora(model):
        assert torch.equal(logits(model, batch)[0], on)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in learning if is_lora(name)}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(name.startswith("language_model.") == is_lora(name) for name in learning)
    assert {name.partition(".")[0] for name in learning} == {"language_model", "projector"}


def test_it_is_saved_without_the_language_model_and_loads(both, tmp_path):
    model, processor, _ = both
    batch = inputs(processor, PROMPT)
    expected = logits(model, batch)[0]
    for name, whole in (("named", False), ("whole", True)):
        model.save_pretrained(tmp_path / name, whole=whole)
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / name).eval()
        assert torch.equal(logits(loaded, batch)[0], expected)
        assert loaded.config.lora == {"rank": 2, "alpha": 16, "targets": ()}
    learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert (tmp_path / "named/model.safetensors").stat().st_size < 4 * learning + 8000


def test_merged_it_is_a_plain_model(both, tmp_path):
    model, processor, _ = both
    batch = inputs(processor, PROMPT)
    expected = logits(model, batch)[0]
    merge_lora(model)
    assert not [name for name, _ in model.named_parameters() if "lora" in name or "base_layer" in name]
    assert float((logits(model, batch)[0] - expected).abs().max()) <= FP32
    model.save_pretrained(tmp_path / "merged")
    loaded = ATokenVLForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    assert (loaded.config.lora, loaded.config.language_source) == (None, None)
    assert torch.equal(logits(loaded, batch)[0], logits(model, batch)[0])
    with pytest.raises(AtokenError, match="no LoRA to merge"):
        merge_lora(model)


def test_another_language_model_under_the_same_name_is_noticed(tmp_path):
    model, _, language = trained(tmp_path, "qwen3")
    model.save_pretrained(tmp_path / "saved")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").language_model
    assert plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    other, _ = assemble(language, model.config.vision_source)
    other.language_model.get_input_embeddings().weight.data += 1
    other.language_model.save_pretrained(language)
    with pytest.raises(AtokenError, match="other weights than those"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("lora", [{"rank": 0}, {"alpha": 1.5}, {"dropout": 0.1}])
def test_wrong_fields_are_one_sentence(lora):
    with pytest.raises(AtokenError, match="LoRA"):
        ATokenVLConfig(lora=lora)


def test_layers_that_are_not_there_are_one_sentence(tmp_path):
    language, tower = write_language(tmp_path / "language"), write_tower(tmp_path / "tower")
    with pytest.raises(AtokenError, match="no layers for LoRA named query"):
        assemble(language, tower, lora={"targets": ["query"]})
