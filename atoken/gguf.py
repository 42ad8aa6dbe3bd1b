"""A language model of the Llama family in a GGUF file as a folder of transformers: weights unpacked, and its tokenizer.

transformers reads GGUF, too, but keeps the weights packed, does not write them, and needs accelerate.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from atoken.errors import CheckpointError, MissingExtraError

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
CONTROL = 3  # the type of a control token
DTYPE = torch.bfloat16


def write_language_model(file: Path, folder: Path) -> None:
    """Write ``folder``: the model in bf16, its configuration, and its byte-level BPE tokenizer with chat template.

    Raises: CheckpointError (a file of another architecture, weights that are missing), MissingExtraError.
    """
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise MissingExtraError("gguf", "mllm", "Unpacking a language model") from error
    reader = GGUFReader(file)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    if (fields["general.architecture"], fields["tokenizer.ggml.model"]) != ("llama", "gpt2"):
        raise CheckpointError(f"{file.name} is no Llama with a byte-level BPE tokenizer.")
    names = {one.name for one in reader.tensors}
    config = _config(fields, tied="output.weight" not in names)
    state = {}
    for one in reader.tensors:
        weight = torch.from_numpy(dequantize(one.data, one.tensor_type).astype(np.float32))
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        state[_name(one.name)] = _rotary_order(weight, heads.get(one.name.split(".")[-2])).to(DTYPE)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file.name} lacks weights: {' '.join(str(error).split())[:400]}") from error
    model.tie_weights()
    model.save_pretrained(folder)
    _tokenizer(fields).save_pretrained(folder)


def _config(fields: dict[str, Any], tied: bool) -> LlamaConfig:
    def of(name: str) -> Any:
        return fields[f"llama.{name}"]

    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]), hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"), num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"), num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"), rms_norm_eps=of("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base")}, tie_word_embeddings=tied,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"], eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"], dtype=DTYPE,
    )  # fmt: skip


def _name(name: str) -> str:
    found = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.weight", name)
    if found is None or found[3] not in NAMES:
        raise CheckpointError(f"A Llama has no weight called {name}.")
    return f"model.layers.{found[2]}.{NAMES[found[3]]}.weight" if found[1] else f"{NAMES[found[3]]}.weight"


def _rotary_order(weight: torch.Tensor, heads: int | None) -> torch.Tensor:
    """Rows of queries and keys, of which GGUF has the two halves of each head in turns (llama.cpp's ``permute``)."""
    return weight if heads is None else weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens, types = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if fields["tokenizer.ggml.pre"] == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, type in zip(tokens, types, strict=True) if type == CONTROL])
    of = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    special = {f"{ours}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for ours, name in of.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"], **special,
    )  # fmt: skip
