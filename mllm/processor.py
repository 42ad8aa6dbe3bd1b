"""``ATokenVLProcessor``: conversations with images, videos and 3D assets as inputs of the model, and ids as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from atoken.errors import AtokenError
from atoken.image_processor import ATokenImageProcessor
from atoken.summary import Summary
from mllm.config import ATokenVLConfig, settings_of
from mllm.conversation import Conversation, MediaItem, from_messages
from mllm.inputs import MediaInputs
from mllm.media import read_item
from mllm.rendering import MEDIA_TOKEN, render
from mllm.slowfast import SlowFast
from mllm.sources import language_folder, model_folder
from mllm.supervision import IGNORED, labels_of

_SLOT = re.compile("<(image|video|asset)>")


@dataclass(frozen=True, repr=False)
class Encoded(Summary):
    """One conversation. labels: -100 but for answers and their end tokens; media in the order of their tokens."""

    input_ids: Tensor  # (L,) int64
    labels: Tensor  # (L,) int64
    media: tuple[MediaInputs, ...]


class ATokenVLProcessor(ProcessorMixin):
    """Tokenizer, image processor, and the settings of pooling, which are those of the model.

    ``apply_chat_template`` takes ``messages`` with content of the types text, image, video, and asset or mesh. What a
    text contains stays text: ``<media>`` or ``<|im_end|>`` in it are no control tokens. Raises: AtokenError.
    """

    def __init__(
        self, image_processor: Any, tokenizer: Any, pooling: dict[str, Any] | None = None, chat_template: Any = None
    ) -> None:
        if MEDIA_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"additional_special_tokens": [MEDIA_TOKEN]}, False)
        self.pooling = asdict(settings_of(pooling))
        self.media_token_id = tokenizer.convert_tokens_to_ids(MEDIA_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """As in transformers; a bundled name is a source, too."""
        return super().from_pretrained(model_folder(source), **options)

    @classmethod
    def from_language(cls, source: str | Path, **pooling: Any) -> Self:
        """Make the processor of a new model around a language model (a fetched name, a folder, a hub id)."""
        return cls(ATokenImageProcessor(), AutoTokenizer.from_pretrained(language_folder(source)), pooling)

    @property
    def settings(self) -> SlowFast:
        """``pooling``, checked."""
        return settings_of(self.pooling)

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes."""
        return ["input_ids", "attention_mask", "media"]

    def encode(self, conversation: Conversation, supervised: bool = False, **template: Any) -> Encoded:
        """Encode a conversation: with its answers as targets if ``supervised``, or else as a prompt for the next one.

        template: options of the chat template. Raises: AtokenError, which names the conversation.
        """
        options = {"chat_template": self.chat_template, "add_generation_prompt": not supervised} | template
        rendered = render(self.tokenizer, conversation, **options)
        media = tuple(self.read(item, conversation.key) for item in conversation.media)
        labels = labels_of(self.tokenizer, rendered) if supervised else [IGNORED] * len(rendered.tokens)
        return self._expanded([token.id for token in rendered.tokens], labels, media)

    def read(self, item: MediaItem, key: str) -> MediaInputs:
        """A media item as input of the model. Raises: AtokenError, which names ``key``."""
        try:
            return read_item(item, self.settings, self.image_processor)
        except AtokenError as error:
            raise AtokenError(f"{key}: {error}") from error

    def _expanded(self, ids: Sequence[int], labels: Sequence[int], media: tuple[MediaInputs, ...]) -> Encoded:
        """As many tokens of media as each of them takes, in place of one. Slots and media match."""
        slot, lengths = self.media_token_id, iter(map(len, media))
        counts = torch.tensor([next(lengths) if id == slot else 1 for id in ids])
        input_ids, targets = (torch.tensor(values).repeat_interleave(counts) for values in (ids, labels))
        return Encoded(input_ids, targets, media)

    def pad(self, encoded: Sequence[Encoded]) -> BatchFeature:
        """Join conversations into rows, padded on the left."""
        longest = max(len(one.input_ids) for one in encoded)
        pad = self.tokenizer.pad_token_id or 0

        def rows(values: Sequence[Tensor], filler: int) -> Tensor:
            return torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=filler) for row in values])

        ids = [one.input_ids for one in encoded]
        return BatchFeature({
            "input_ids": rows(ids, pad), "attention_mask": rows([torch.ones_like(row) for row in ids], 0),
            "media": [medium for one in encoded for medium in one.media],
        })  # fmt: skip

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = False, **options: Any) -> Any:
        """As in transformers, of ``messages`` or a list of them: a text, or with ``tokenize`` inputs of the model."""
        chats = [conversation] if _is_message(conversation[0]) else conversation
        read = [_conversation(chat, number) for number, chat in enumerate(chats)]
        return_dict = options.pop("return_dict", True)
        options.pop("return_tensors", None)  # always tensors of torch
        options = options.pop("processor_kwargs", {}) | options
        options = {"add_generation_prompt": False, "chat_template": self.chat_template} | options
        if not tokenize:
            texts = [render(self.tokenizer, one, **options).text for one in read]
            return texts if chats is conversation else texts[0]
        batch = self.pad([self.encode(one, **options) for one in read])
        return batch if return_dict else batch["input_ids"]

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, videos: Any = None, assets: Any = None,
        **options: Any,
    ) -> BatchFeature:  # fmt: skip
        """Texts without a chat template; ``<image>``, ``<video>`` and ``<asset>`` in them are slots, filled in order.

        Raises: AtokenError where slots and media do not match.
        """
        given = {"image": images, "video": videos, "asset": assets}
        waiting = {name: iter(_flat(media)) for name, media in given.items()}
        encoded = []
        for one in [text] if isinstance(text, str) else text or ():
            if MEDIA_TOKEN in one:
                raise AtokenError(f"The text contains {MEDIA_TOKEN}; slots are written <image>, <video> and <asset>.")
            items = [MediaItem(name, next(waiting[name], None)) for name in _SLOT.findall(one)]
            if any(item.source is None for item in items):
                raise AtokenError("The text has more slots for media than there are media; pass as many of each.")
            media = tuple(self.read(item, "the text") for item in items)
            ids = self.tokenizer(_SLOT.sub(MEDIA_TOKEN, one))["input_ids"]
            encoded.append(self._expanded(ids, [IGNORED] * len(ids), media))
        if left := [name for name, rest in waiting.items() if next(rest, None) is not None]:
            raise AtokenError(
                f"There are media ({', '.join(left)}) without a slot in the text; write <image>, <video> or <asset> "
                "where they belong, or pass messages to apply_chat_template."
            )
        return self.pad(encoded)


def _is_message(one: Any) -> bool:
    return isinstance(one, dict)


def _conversation(chat: Any, number: int) -> Conversation:
    return chat if isinstance(chat, Conversation) else from_messages(chat, f"conversation {number + 1}")


def _flat(media: Any) -> list[Any]:
    if media is None:
        return []
    if not isinstance(media, list | tuple):
        return [media]
    return [one for each in media for one in (each if isinstance(each, list | tuple) else [each])]


AutoProcessor.register(ATokenVLConfig, ATokenVLProcessor)
