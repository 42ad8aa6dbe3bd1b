"""A conversation as tokens: the chat template, slots of media, and which characters are answers.

What people write is text: a control token such as ``<|im_end|>``, or the token of media, in it is spelled out as
characters, and only the template's own are control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from atoken.errors import AtokenError
from mllm.conversation import Conversation, Message, Text

MEDIA_TOKEN = "<media>"
Spans = tuple[tuple[int, int], ...]  # where characters begin and end
# Private characters that stand around what is spelled out, and around answers; they are taken out of texts.
_OPEN, _CLOSE, _START, _STOP = "\U000f0000", "\U000f0001", "\U000f0002", "\U000f0003"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}{_START}{_STOP}]")


class Token(NamedTuple):
    """A token of a rendered conversation, and where its characters begin and end in the text."""

    id: int
    start: int
    end: int


class Rendered(NamedTuple):
    """``text``: of the chat template, marks taken out. ``answers``: where each assistant's message begins and ends."""

    text: str
    tokens: tuple[Token, ...]
    answers: Spans


def render(tokenizer: Any, conversation: Conversation, **template: Any) -> Rendered:
    """Write a conversation with the tokenizer's chat template; each slot of media is one token, ``MEDIA_TOKEN``.

    template: options of ``apply_chat_template``, such as ``add_generation_prompt``. Raises: AtokenError (no template,
    or one that refuses the conversation or loses an answer).
    """
    control = re.compile("|".join(re.escape(token) for token in control_tokens(tokenizer)))
    messages = [{"role": one.role, "content": _written(one, control)} for one in conversation.messages]
    try:
        marked = tokenizer.apply_chat_template(messages, tokenize=False, **template)
    except Exception as error:  # jinja's, and those of templates
        reason = "it has none" if not tokenizer.chat_template else " ".join(str(error).split())
        raise AtokenError(f"{conversation.key} does not fit the language model's chat template: {reason}.") from error
    text, spelled, answers = _unmarked(marked)
    expected = sum(message.role == "assistant" for message in conversation.messages)
    if len(answers) != expected:
        raise AtokenError(f"The chat template wrote {len(answers)} of the {expected} answers of {conversation.key}.")
    return Rendered(text, tuple(_tokens(tokenizer, text, spelled, answers)), answers)


def control_tokens(tokenizer: Any) -> list[str]:
    """Tokens that a text must not contain, the longest first."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special | {MEDIA_TOKEN}, key=len, reverse=True)


def _written(message: Message, control: re.Pattern[str]) -> str:
    """The content of a message; media are followed by a line break, unless they come last."""
    written = ""
    for number, piece in enumerate(message.content):
        if isinstance(piece, Text):
            written += control.sub(rf"{_OPEN}\g<0>{_CLOSE}", _MARKS.sub("", piece.text))
        else:
            written += MEDIA_TOKEN + "\n" * (number < len(message.content) - 1)
    return f"{_START}{written}{_STOP}" if message.role == "assistant" else written


def _unmarked(marked: str) -> tuple[str, Spans, Spans]:
    """The text, what in it is spelled out, and its answers."""
    where: dict[str, list[int]] = {_OPEN: [], _CLOSE: [], _START: [], _STOP: []}
    text, last = "", 0
    for mark in _MARKS.finditer(marked):
        text += marked[last : mark.start()]
        last = mark.end()
        where[mark[0]].append(len(text))
    spelled = tuple(zip(where[_OPEN], where[_CLOSE], strict=True))
    return text + marked[last:], spelled, tuple(zip(where[_START], where[_STOP], strict=True))


def _tokens(tokenizer: Any, text: str, spelled: Spans, answers: Spans) -> Iterator[Token]:
    """Answers are tokenised apart from what stands before them, as they are when the model writes them."""
    cuts = sorted({0, len(text), *(end for span in (*spelled, *answers) for end in span)})
    for start, stop in pairwise(cuts):
        inside = any(first <= start < last for first, last in spelled)
        found = tokenizer(
            text[start:stop], add_special_tokens=False, split_special_tokens=inside, return_offsets_mapping=True
        )
        for id, (first, last) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            yield Token(id, start + first, start + last)
