"""``Chat``: questions about media and a model's answers, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from atoken.data.sources.sample import quiet
from atoken.errors import AtokenError
from mllm.assembly import load
from mllm.conversation import Conversation, MediaItem, Message, Text
from mllm.data.lengths import most_tokens
from mllm.inputs import MediaInputs
from mllm.media import read_item
from mllm.model import ATokenVLForConditionalGeneration
from mllm.processor import ATokenVLProcessor


class Answer(NamedTuple):
    """``cut``: whether ``max_new_tokens`` ended it, and not the model."""

    text: str
    cut: bool


class Chat:
    """A conversation with a model. What was said stays in it, and media pass through the tower once."""

    def __init__(self, model: ATokenVLForConditionalGeneration, processor: ATokenVLProcessor) -> None:
        self.model, self.processor = model.eval(), processor
        self.messages: tuple[Message, ...] = ()

    @classmethod
    def load(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Self:
        """With a model as ``mllm.load`` takes it. Raises: AtokenError."""
        return cls(*load(source, device=device, dtype=dtype))

    def ask(self, question: str, *media: MediaItem, max_new_tokens: int = 512, **options: Any) -> Answer:
        """The answer to a question about media, which stand before it, and about what was said before.

        options: of ``generate``, such as ``streamer`` or ``do_sample``; greedy unless they say otherwise. After an
        error the conversation is as it was. Raises: AtokenError.
        """
        if max_new_tokens < 1:
            raise AtokenError(f"max_new_tokens must be a whole number from 1 on, got {max_new_tokens}.")
        with quiet():  # before a video of thousands of frames is decoded
            known = sum(most_tokens(item, self.processor) for item in media if item.modality != "asset")
        self.model.check_length(known, max_new_tokens)
        settings, images = self.processor.settings, self.processor.image_processor
        prepared = [replace(one, source=read_item(one, settings, images)) for one in media]
        asked = (*self.messages, Message("user", (*prepared, Text(question))))
        encoded = self.processor.encode(Conversation("The conversation", asked))
        self.model.check_length(len(encoded.input_ids), max_new_tokens)
        features = iter(self.model.encode_media(encoded.media))
        asked = tuple(_kept(one, features) for one in asked)
        options |= {"max_new_tokens": max_new_tokens}
        answer = answered(self.model, self.processor, Conversation("The conversation", asked), **options)
        self.messages = (*asked, Message("assistant", (Text(answer.text),)))
        return answer


def answered(
    model: ATokenVLForConditionalGeneration, processor: ATokenVLProcessor, conversation: Conversation, **options: Any
) -> Answer:
    """The next message of a conversation; greedy unless the options, those of ``generate``, say otherwise.

    Raises: AtokenError.
    """
    encoded = processor.encode(conversation)
    batch = processor.pad([encoded]).to(model.device)
    ids = model.generate(**batch, **{"do_sample": False} | options)[0, len(encoded.input_ids) :]
    ends = model.generation_config.eos_token_id
    cut = int(ids[-1]) not in (ends if isinstance(ends, list) else [ends])
    return Answer(processor.decode(ids, skip_special_tokens=True).strip(), cut)


def _kept(message: Message, features: Iterator[MediaInputs]) -> Message:
    """The message with features of its media in place of files."""
    content = (replace(one, source=next(features)) if isinstance(one, MediaItem) else one for one in message.content)
    return replace(message, content=tuple(content))
