"""An unmodified Llava of transformers trains, generates, saves and loads with the vision tower."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from atoken import ATokenImageProcessor, ATokenVisionModel
from tests.model.sizes import small_model
from tests.tokenizer.small import random_frames
from tests.tolerances import EXACT

ROOT = Path(__file__).parents[2]
IMAGE = 9  # the id of <image>
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def small_llava(dtype, layer=-2):
    torch.manual_seed(0)
    tower = ATokenVisionModel.from_atoken(small_model())
    text = Qwen2Config(
        vocab_size=10, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower.config, text_config=text, image_token_index=IMAGE, vision_feature_layer=layer,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower = tower
    return llava.to(dtype)


def inputs(dtype, images=2):
    """Images of 32x48, which are 6 tokens each."""
    x = torch.rand(images, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids = torch.tensor([[1] + [IMAGE] * 6 + [2, 3]] * images)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": x.to(dtype)}


@DTYPES
@pytest.mark.parametrize("layer", [-2, -1, [0, -1]], ids=str)
def test_forward_and_backward_with_the_tower_frozen(dtype, layer):
    llava = small_llava(dtype, layer).train()
    llava.model.vision_tower.requires_grad_(False)
    batch = inputs(dtype)
    loss = llava(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert loss.isfinite()
    learned = [name for name, parameter in llava.named_parameters() if parameter.grad is not None]
    assert not any("vision_tower" in name for name in learned)
    projector = llava.model.multi_modal_projector.linear_1.weight
    assert projector.shape[1] == 96 * (2 if isinstance(layer, list) else 1)
    assert projector.grad.abs().sum() > 0


@DTYPES
def test_the_language_model_reads_the_towers_features(dtype):
    llava, batch = small_llava(dtype).eval(), inputs(dtype)
    with torch.no_grad():
        hidden = llava.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
        expected = llava.model.multi_modal_projector(hidden)
        actual = llava(**batch).image_hidden_states
        other = llava(**(batch | {"pixel_values": -batch["pixel_values"]})).logits
        assert (llava(**batch).logits[:, -1] - other[:, -1]).abs().max() > 0
    torch.testing.assert_close(actual, expected.flatten(0, 1), atol=EXACT, rtol=EXACT)


def test_any_attention_that_the_language_model_may_have_is_accepted():
    config = small_llava(torch.float32).config
    for name in ("eager", "flex_attention"):
        llava = LlavaForConditionalGeneration._from_config(config, attn_implementation=name)
        assert llava.model.vision_tower.config._attn_implementation == name


@DTYPES
def test_it_generates_saves_and_loads_again(dtype, tmp_path):
    llava, batch = small_llava(dtype).eval(), inputs(dtype)
    written = llava.generate(**batch, max_new_tokens=3, do_sample=False)
    assert written.shape == (2, 12)
    llava.save_pretrained(tmp_path)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert type(again.model.vision_tower) is ATokenVisionModel
    assert again.dtype == dtype
    torch.testing.assert_close(again.state_dict(), llava.state_dict(), atol=EXACT, rtol=EXACT)
    assert torch.equal(again.generate(**batch, max_new_tokens=3, do_sample=False), written)


def test_loading_without_a_projector_leaves_the_tower_as_it_was(tmp_path):
    """Transformers fills weights that are missing; those of the tower are not."""
    llava = small_llava(torch.float32)
    kept = {key: value for key, value in llava.state_dict().items() if "projector" not in key}
    llava.save_pretrained(tmp_path, state_dict=kept)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    expected, actual = llava.model.vision_tower.state_dict(), again.model.vision_tower.state_dict()
    torch.testing.assert_close(actual, expected, atol=EXACT, rtol=EXACT)
    assert expected["encoder.inputs.weight"][:, 768:].any()


def test_the_processor_of_llava_counts_the_tokens_of_any_size(tmp_path):
    words = {word: number for number, word in enumerate(["<pad>", "a", "b"])} | {"<image>": IMAGE}
    bare = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    text = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", additional_special_tokens=["<image>"])
    image_processor = ATokenImageProcessor(min_pixels=256)
    LlavaProcessor(image_processor, text, patch_size=16, vision_feature_select_strategy="full").save_pretrained(
        tmp_path
    )
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.to_dict() == image_processor.to_dict()
    for height, width, tokens in ((32, 48, 6), (33, 70, 8)):
        batch = processor(images=[random_frames(height, width)], text="a <image> b", return_tensors="pt")
        assert int((batch["input_ids"] == IMAGE).sum()) == tokens
        assert small_llava(torch.float32)(**batch).logits.shape[1] == tokens + 2


FRESH = """
import json, sys
import atoken.tower
from transformers import AutoImageProcessor, AutoModel, LlavaForConditionalGeneration
llava = LlavaForConditionalGeneration.from_pretrained(sys.argv[1])
loaded = [auto.from_pretrained(sys.argv[2]) for auto in (AutoImageProcessor, AutoModel)]
names = [type(one).__name__ for one in (llava.model.vision_tower, *loaded)]
print(json.dumps(names), 'torchvision' in sys.modules)
"""


def test_a_fresh_process_loads_it(tmp_path):
    small_llava(torch.float32).save_pretrained(tmp_path)
    command = [sys.executable, "-c", FRESH, str(tmp_path), str(ROOT / "atoken/weights/nano")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    names, torchvision = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert json.loads(names) == ["ATokenVisionModel", "ATokenImageProcessor", "ATokenModel"]
    assert torchvision == "False"
