"""Which tokens of a conversation are targets: the assistant's, and the end token after each of its messages."""

from __future__ import annotations

from typing import Any

from mllm.rendering import Rendered

IGNORED = -100  # of a label, as in transformers


def labels_of(tokenizer: Any, rendered: Rendered) -> list[int]:
    """A label for each token: its id if it lies in an answer or is the control token that ends one, or else -100.

    A template that ends answers otherwise, with a line break say, has no end token to learn.
    """
    labels = [IGNORED] * len(rendered.tokens)
    ends = {*tokenizer.all_special_ids}
    for start, stop in rendered.answers:
        for number, token in enumerate(rendered.tokens):
            if start <= token.start < stop or (token.start == stop and token.id in ends):
                labels[number] = token.id
    return labels
