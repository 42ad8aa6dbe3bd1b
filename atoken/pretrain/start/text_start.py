"""How a small text side begins: a text is the sum of its words, those of the captions that it will be trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from atoken.model import ATokenModel
from atoken.pretrain.data_file import Data
from atoken.pretrain.stages import Stage
from atoken.pretrain.start.vocabulary import captions, vocabulary
from atoken.text import TextTokenizer

CAPTIONS = 300  # of each series of the generator, from which words are counted
PADDING = 10.0  # size of the embedding of padding, about that of a word
AT_ONCE = 256  # texts
WORDS = 5  # about as many as a caption has
FULL = math.log(6)  # a word in at most every sixth caption has full weight


def text_start(model: ATokenModel, data: Data, stage: Stage) -> TextTokenizer | None:
    """Initialise the text tower of a model, and return the tokenizer of its words; None without a text side.

    The words are those of ``captions``, or of the generator's where the data has none: the most frequent ones, as many
    as the tower has room for.
    """
    if model.text_tower is None:
        return None
    examples = list(captions(data, stage, CAPTIONS)) or list(captions(Data("procedural", {}), stage, CAPTIONS))
    texts = vocabulary(examples, model.text_length, model.text_tower.config.vocab_size)
    bag_of_words(model.text_tower, texts(examples))
    return texts


@torch.no_grad()
def bag_of_words(tower: PreTrainedModel, ids_TL: Tensor) -> None:
    """Let the vector of a text begin as the sum of random directions of its words (transformers' Siglip2TextModel).

    A word's weight is its inverse document frequency in the texts ``ids_TL``, and the mean over the texts is
    subtracted.

    With transformers' initialisation, all texts have nearly the same vector (cosine 0.99), because most of their tokens
    are padding and the last of them is pooled; the sigmoid loss then learns colours but no shapes. Here the first layer
    takes the mean over tokens, in which padding is 0; all other layers begin by adding nothing.
    """
    tokens = tower.embeddings.token_embedding.weight.normal_()
    # A norm gives all embeddings one size: the rest of a word of less weight is the direction of padding.
    weights = _word_weights(ids_TL, len(tokens))
    weights[tower.config.pad_token_id] = 0
    tokens *= weights[:, None]
    tokens[:, 0] += PADDING * (1 - weights.square()).sqrt()
    tower.embeddings.position_embedding.weight.normal_(std=0.01)
    width, length = tokens.shape[1], tower.config.max_position_embeddings
    without = torch.eye(width) - _projection(tower, tokens[tower.config.pad_token_id])
    for layer in tower.encoder.layers:
        for silent in (layer.self_attn.out_proj, layer.mlp.fc2):
            silent.weight.zero_()
        for small in (layer.self_attn.q_proj, layer.self_attn.k_proj):  # attention is nearly even
            small.weight.normal_(std=0.1 * width**-0.5)
    first = tower.encoder.layers[0].self_attn
    first.v_proj.weight.copy_(without)
    first.out_proj.weight.copy_(torch.eye(width) * length * WORDS**-0.5)
    tower.head.weight.copy_(torch.randn(tower.head.weight.shape) @ without * width**-0.5)
    tower.head.bias.zero_()
    tower.head.bias -= torch.cat([tower(part).pooler_output for part in ids_TL.split(AT_ONCE)]).mean(0)


def _word_weights(ids_TL: Tensor, words: int) -> Tensor:
    """The weight of each of the ``words`` tokens in a text, from 0 (all texts have it) to 1."""
    having = torch.zeros(len(ids_TL), words).scatter_(1, ids_TL, 1.0).sum(0).clamp_min(1)
    return (torch.log(len(ids_TL) / having) / FULL).clamp_max(1)


def _projection(tower: PreTrainedModel, padding: Tensor) -> Tensor:
    """The projection (D, D) on the normalised embedding of padding."""
    seen = tower.final_layer_norm(padding)
    return torch.outer(seen, seen) / seen.square().sum()
