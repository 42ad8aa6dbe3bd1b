"""How many answers of conversations are right to the token, greedily: each known in one pass over packed rows.

A greedy answer equals the right one if each of its tokens, and its end token, is the most probable one behind those
before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mllm.data.batches import ConversationBatch, packed
from mllm.data.mixture import Mixture
from mllm.model import ATokenVLForConditionalGeneration
from mllm.objective import answers
from mllm.processor import ATokenVLProcessor, Encoded
from mllm.supervision import IGNORED


@torch.no_grad()
def right_answers(
    model: ATokenVLForConditionalGeneration, processor: ATokenVLProcessor, mixture: Mixture, tokens: int
) -> dict[str, float]:
    """``right NAME``: the share of the conversations of each data set all whose answers are right; ``right``: of all.

    tokens: of a row. Raises: AtokenError for a conversation that is broken.
    """
    right: dict[str, list[bool]] = {}
    for name, batch in _rows(processor, mixture, tokens):
        moved = batch.to(model.device)
        embeddings = model.embed(moved.input_ids, moved.media)
        logits, targets = answers(model.language_model, embeddings, moved)
        of = torch.arange(batch.samples).repeat_interleave(torch.tensor(batch.lengths))
        of = of[1:][batch.labels[0, 1:] != IGNORED]
        wrong = of[(logits.argmax(-1) != targets).cpu()]
        right.setdefault(name, []).extend((~torch.isin(torch.arange(batch.samples), wrong)).tolist())
    found = {f"right {name}": sum(some) / len(some) for name, some in right.items()}
    return found | {"right": sum(map(sum, right.values())) / sum(map(len, right.values()))}


def _rows(processor: ATokenVLProcessor, mixture: Mixture, tokens: int) -> Iterator[tuple[str, ConversationBatch]]:
    """Rows of conversations of one data set each, in their order."""
    waiting: list[Encoded] = []
    length, before = 0, ""
    for number in range(len(mixture)):
        name, conversation = mixture.name_of(number), mixture[number]
        encoded = processor.encode(conversation, supervised=True)
        if waiting and (name != before or length + len(encoded.input_ids) > tokens):
            yield before, packed(waiting, [])
            waiting, length = [], 0
        waiting.append(encoded)
        length, before = length + len(encoded.input_ids), name
    if waiting:
        yield before, packed(waiting, [])
