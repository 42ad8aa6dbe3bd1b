"""A language model in GGUF comes out as the one that went in, with its tokenizer."""

import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from atoken.errors import CheckpointError
from atoken.gguf import CONTROL, NAMES, write_language_model
from tests.mllm.tiny_language import SIZES, TEMPLATE, bpe
from tests.tolerances import BF16_FORWARD

gguf = pytest.importorskip("gguf", reason="the extra mllm is not installed")


def in_turns(weight, heads):
    """As llama.cpp stores queries and keys (``LlamaModel.permute`` of its converter)."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, tokenizer, architecture="llama", without=""):
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token.startswith("<|") else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for name, id in (("bos", 1), ("eos", 2), ("pad", 0), ("unk", 0)):
        getattr(writer, f"add_{name}_token_id")(id)
    writer.add_chat_template(TEMPLATE)
    short = {ours: theirs for theirs, ours in NAMES.items()}
    for name, weight in model.state_dict().items():
        block = re.match(r"model\.layers\.(\d+)\.", name)
        inner = name.removesuffix(".weight")[block.end() if block else 0 :]
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(inner)
        values = in_turns(weight.numpy(), heads) if heads else weight.numpy()
        if inner not in (without, "lm_head"):
            prefix = f"blk.{block[1]}." if block else ""
            writer.add_tensor(f"{prefix}{short[inner]}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).eval()


def test_weights_and_tokens_come_out_as_they_went_in(model, tmp_path):
    write(tmp_path / "a.gguf", model, bpe())
    write_language_model(tmp_path / "a.gguf", tmp_path / "folder")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32).eval()
    ids = torch.arange(3, 60)[None]
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=BF16_FORWARD, rtol=0)
    assert loaded.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    text = "<|im_start|>How many?  Two or 2,\nor zwölf.<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (
        tokenizer(text.replace("  Two or 2,", ""))["input_ids"] == bpe()(text.replace("  Two or 2,", ""))["input_ids"]
    )
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|im_end|>", TEMPLATE)


def test_other_files_are_refused(model, tmp_path):
    write(tmp_path / "a.gguf", model, bpe(), without="mlp.up_proj")
    with pytest.raises(CheckpointError, match="lacks weights"):
        write_language_model(tmp_path / "a.gguf", tmp_path / "folder")
    write(tmp_path / "b.gguf", model, bpe(), architecture="gemma")
    with pytest.raises(CheckpointError, match="is no Llama"):
        write_language_model(tmp_path / "b.gguf", tmp_path / "folder")
