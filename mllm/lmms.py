"""The model in lmms-eval 0.7.3, with tasks that pass messages and those that pass a text and what is seen.

    python -m lmms_eval --model atoken_vl --model_args pretrained=vl-nano --tasks atoken_vqa_images \
        --include_path mllm/lmms_tasks

lmms-eval alone imports this module, where it is installed (``make lmms``); ``atoken/lmms.py`` names it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from atoken.errors import AtokenError
from atoken.io.inputs import as_media, modality_of
from atoken.io.load import sniff
from mllm.chat import Chat, answered
from mllm.conversation import Conversation, MediaItem, Message, Text

SAMPLING = ("do_sample", "num_beams", "temperature", "top_p")  # of a task's options; others are not passed on
MOST_TOKENS = 1024  # of an answer, where a task does not say


class _Model(lmms):
    """pretrained: a folder, a bundled name or a hub id. frames: of each video, at most. dtype: as in ``atoken.load``.

    One conversation at a time, whatever ``batch_size`` says, so that no answer depends on those beside it.
    """

    def __init__(
        self, pretrained: str = "vl-nano", frames: int | None = None, dtype: str = "auto", device: str | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if unknown := options.keys() - {"batch_size", "max_batch_size"}:
            raise AtokenError(f"There is no {', '.join(sorted(unknown))}; there are pretrained, frames and dtype.")
        self.pretrained = pretrained
        self._frames = {} if frames is None else {"frames": frames}
        self._chat = Chat.load(pretrained, device=device or "auto", dtype=dtype)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, up to the first text that its task ends answers with. Raises: AtokenError."""
        return [self._answer(*self._asked(one), one) for one in tqdm(requests, desc=self.pretrained, disable=None)]

    @abstractmethod
    def _asked(self, request: Any) -> tuple[tuple[Message, ...], dict[str, Any]]:
        """The messages of a request, and the options of its answer."""

    def _answer(self, messages: tuple[Message, ...], options: dict[str, Any], request: Any) -> str:
        conversation = Conversation(f"{request.task_name}, document {request.doc_id}", messages)
        sampling = {name: options[name] for name in SAMPLING if options.get(name) is not None}
        if not sampling.get("temperature"):  # 0 is what tasks write for greedy answers
            sampling = {"do_sample": False, "num_beams": sampling.get("num_beams", 1)}
        most = options.get("max_new_tokens") or MOST_TOKENS
        text = answered(self._chat.model, self._chat.processor, conversation, max_new_tokens=most, **sampling).text
        ends = options.get("until") or []
        for end in [ends] if isinstance(ends, str) else ends:
            text = text.split(end)[0] if end else text
        return text

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]

    def _item(self, source: Any) -> MediaItem:
        """A path, a PIL image, frames, an array, or a mesh."""
        if isinstance(source, list | tuple):
            modality = "video"
        elif isinstance(source, str | Path):
            modality = sniff(Path(source))[0].name
        else:
            found = modality_of(as_media(source))
            assert found is not None  # as_media raises
            modality = found.name
        return MediaItem(modality, source, self._frames if modality == "video" else {})

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Raises: AtokenError."""
        raise AtokenError("This model answers one round; choose a task without more rounds.")

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Raises: AtokenError."""
        raise AtokenError(
            "lmms-eval 0.7.3 takes a likelihood for a loss, so its choices by likelihood mean nothing; choose a task "
            "whose model writes the letter of its choice (generate_until)."
        )

    def clean(self) -> None:
        """Nothing: what lmms-eval would delete is needed for its next task."""


class Simple(_Model):
    """Of tasks that pass a text and what is seen, which stands before the text."""

    is_simple = True

    def _asked(self, request: Any) -> tuple[tuple[Message, ...], dict[str, Any]]:
        text, options, see, number, task, split = request.args
        media = tuple(self._item(source) for source in see(self._document(task, split, number)) or ())
        return (Message("user", (*media, Text(text))),), options


class WithMessages(_Model):
    """Of tasks that pass messages."""

    is_simple = False

    def _asked(self, request: Any) -> tuple[tuple[Message, ...], dict[str, Any]]:
        _, messages_of, options, number, task, split = request.args
        found = ChatMessages(messages=messages_of(self._document(task, split, number)))
        return tuple(Message(one.role, tuple(self._pieces(one.content))) for one in found.messages), options

    def _pieces(self, content: Sequence[Any]) -> Iterator[Text | MediaItem]:
        for piece in content:
            if piece.type == "audio":
                raise AtokenError("This model hears nothing; choose a task without audio.")
            if getattr(piece, "start_time", None) or getattr(piece, "end_time", None):
                raise AtokenError("This model sees whole videos; choose a task that cuts none.")
            yield Text(piece.text) if piece.type == "text" else self._item(piece.url)
