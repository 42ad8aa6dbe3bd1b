"""Tiny language models, and a tokenizer, made on the fly."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from atoken.tower import ATokenVisionConfig, ATokenVisionModel

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["What is in the image? A red square.", "Which way does it move? To the left.", "How many? Two, three, four."]
SIZES = {
    "vocab_size": 315, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096, "bos_token_id": None,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LANGUAGES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, False),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, True),
    "llama": (LlamaConfig, LlamaForCausalLM, True),
}


def bpe():
    """A byte-level BPE tokenizer of 320 tokens with ChatML's control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[2], pad_token=special[0], chat_template=TEMPLATE
    )


def write_language(folder, kind="qwen2"):
    """A folder with a language model of random weights, tied for two of the kinds, and the tokenizer."""
    config, model, tied = LANGUAGES[kind]
    torch.manual_seed(0)
    model(config(**SIZES, tie_word_embeddings=tied)).save_pretrained(folder)
    bpe().save_pretrained(folder)
    return folder


def write_tower(folder):
    """A folder with a vision tower of random weights."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ATokenVisionModel(ATokenVisionConfig(**sizes, position_grid=4)).save_pretrained(folder)
    return folder
