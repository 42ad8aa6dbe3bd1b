"""A small text side: a random SigLIP2 text tower and a word tokenizer."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from atoken.text import TextTokenizer
from tests.model.sizes import small_model

WORDS = [
    "<pad>",
    "<unk>",
    "a",
    "an",
    "the",
    "and",
    "red",
    "green",
    "blue",
    "box",
    "cone",
    "cylinder",
    "sphere",
    "spheres",
    "two",
    "of",
    "photo",
]
LENGTH = 12


def words():
    """Splits at spaces; words it does not know are <unk>."""
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>"), LENGTH)


def text_sizes(width):
    return {
        "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": LENGTH, "projection_size": width,
    }  # fmt: skip


def small_texts_model(seed=0):
    return small_model(seed, text=text_sizes(small_model().config.encoder_width))


def save_with_text(folder, seed=0):
    small_texts_model(seed).save_pretrained(folder)
    words().save(folder)
    return folder
