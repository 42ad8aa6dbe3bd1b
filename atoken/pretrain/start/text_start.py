"""Where a small text side starts: it knows the words of the generators' captions, and adds them up."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from atoken.model import ATokenModel
from atoken.pretrain.start.vocabulary import captions, vocabulary
from atoken.text import TextTokenizer

CAPTIONS = 300  # of each generator, whose words are looked at
PADDING = 10.0  # size of the padding's embedding, about that of a word's
AT_ONCE = 256  # texts
WORDS = 5  # about as many as a caption has
TELLING = math.log(6)  # a word in at most every sixth caption counts in full


def text_start(model: ATokenModel) -> TextTokenizer | None:
    """Set the text tower of a model to a start, and give the tokenizer of its words; None without a text side."""
    if model.text_tower is None:
        return None
    said = list(captions(CAPTIONS))
    texts = vocabulary(said, model.text_length, model.text_tower.config.vocab_size)
    bag_of_words(model.text_tower, texts(said))
    return texts


@torch.no_grad()
def bag_of_words(tower: PreTrainedModel, ids_TL: Tensor) -> None:
    """Let the vector of a text begin as a random direction of each word, summed: transformers' Siglip2TextModel.

    A word counts the more, the fewer of the texts ``ids_TL`` have it (inverse document frequency), and from the sum is
    taken what the texts have in the mean.

    As it comes, all texts begin with nearly the same vector (cosine 0.99), because most of their tokens are padding and
    the last one of those is pooled; then the sigmoid loss finds colours, and no shapes. Here the first layer takes the
    mean over tokens, in which padding counts as nothing; all other layers begin by adding nothing.
    """
    tokens = tower.embeddings.token_embedding.weight.normal_()
    # A norm makes all embeddings alike in size: what a word counts for less is made up by what padding consists of.
    weights = _telling(ids_TL, len(tokens))
    weights[tower.config.pad_token_id] = 0
    tokens *= weights[:, None]
    tokens[:, 0] += PADDING * (1 - weights.square()).sqrt()
    tower.embeddings.position_embedding.weight.normal_(std=0.01)
    width, length = tokens.shape[1], tower.config.max_position_embeddings
    without = torch.eye(width) - _direction(tower, tokens[tower.config.pad_token_id])
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


def _telling(ids_TL: Tensor, words: int) -> Tensor:
    """What each of the ``words`` tokens counts for in a text, 0 (all texts have it) to 1."""
    having = torch.zeros(len(ids_TL), words).scatter_(1, ids_TL, 1.0).sum(0).clamp_min(1)
    return (torch.log(len(ids_TL) / having) / TELLING).clamp_max(1)


def _direction(tower: PreTrainedModel, padding: Tensor) -> Tensor:
    """The projection (D, D) on what a norm makes of the padding, wherever it stands."""
    seen = tower.final_layer_norm(padding)
    return torch.outer(seen, seen) / seen.square().sum()
