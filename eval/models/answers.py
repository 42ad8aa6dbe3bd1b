"""Models that answer questions: a vision-language model, also blind, and what stands beside it in tables."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from atoken.checkpoint import weights_digest
from atoken.errors import AtokenError, AtokenWarning
from atoken.modalities import MODALITIES
from eval.contract import Item, Model, Output
from eval.metrics.zero_shot import A_PHOTO, class_vectors
from eval.models.tokenizer import AToken
from eval.prepare import Preparation
from eval.sources.entry import Listing
from mllm.answers import plain
from mllm.conversation import Conversation, MediaItem, Message, Text

MOST_TOKENS = 32  # of an answer


class Answers(ABC):
    """A model that answers questions, and does nothing else."""

    name: str
    record: dict[str, str]

    @abstractmethod
    def answer(self, items: Sequence[Item]) -> list[Output]:
        """The answer to the question of each item, its first caption, in order. Raises: AtokenError."""

    def reconstruct(self, items: Sequence[Item]) -> list[Output]:
        """Raises: AtokenError."""
        raise AtokenError(f"{self.name} makes no images; choose a task that asks questions, such as vqa-images.")

    def embed(self, items: Sequence[Item]) -> list[Output]:
        """Raises: AtokenError."""
        raise AtokenError(f"{self.name} has no vectors; choose a task that asks questions, such as vqa-images.")

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Raises: AtokenError."""
        raise AtokenError(f"{self.name} has no vectors; choose a task that asks questions, such as vqa-images.")


class VisionLanguage(Answers):
    """A vision-language model, by greedy answers of at most ``MOST_TOKENS`` tokens, one conversation at a time.

    So no answer depends on those beside it. name: a bundled name, a folder or a hub id. Raises: AtokenError.
    """

    def __init__(self, name: str, *, device: str = "auto", dtype: str = "auto") -> None:
        from mllm.chat import Chat, answered  # which takes seconds

        self._answered_by = answered
        self.chat = Chat.load(name, device=device, dtype=dtype)
        self.name = name
        self.record = {
            "model": name,
            "fingerprint": weights_digest(self.chat.model, {}),
            "dtype": str(self.chat.model.dtype).removeprefix("torch."),
            "answers": f"greedy, at most {MOST_TOKENS} tokens",
            "media": "seen",
        }

    def answer(self, items: Sequence[Item]) -> list[Output]:
        """As ``Answers``."""
        return [self._answered(item) for item in items]

    def _answered(self, item: Item, *, blind: bool = False) -> Output:
        modality = next(name for name, one in MODALITIES.items() if isinstance(item.media, one.types))
        media = () if blind else (MediaItem(modality, item.media),)
        asked = Conversation(item.key, (Message("user", (*media, Text(item.captions[0]))),))
        said = self._answered_by(self.chat.model, self.chat.processor, asked, max_new_tokens=MOST_TOKENS)
        return Output(item, answer=said.text, cut=said.cut)


class Blind(Answers):
    """A vision-language model that is asked without the media: what can be guessed from questions alone."""

    def __init__(self, model: VisionLanguage) -> None:
        self._model, self.name = model, f"{model.name}, blind"
        self.record = model.record | {"media": "left out"}

    def answer(self, items: Sequence[Item]) -> list[Output]:
        """As ``Answers``."""
        return [self._model._answered(item, blind=True) for item in items]


class MostFrequent(Answers):
    """To each type of question the most frequent right answer of the data, whatever is asked and seen."""

    name = "most frequent answer"

    def __init__(self, listing: Listing, record: dict[str, str]) -> None:
        counts: dict[int | None, Counter[str]] = {}
        for entry in listing.entries:
            counts.setdefault(entry.label, Counter())[plain(entry.captions[1])] += 1
        self._answers = {label: max(sorted(of), key=of.__getitem__) for label, of in counts.items()}
        self.record = record

    def answer(self, items: Sequence[Item]) -> list[Output]:
        """As ``Answers``."""
        return [Output(item, answer=self._answers[item.label]) for item in items]


class NearestLabel(Answers):
    """Of all right answers of the data the one whose prompt is nearest to the item: zero-shot classification.

    prepare: how it sees items.
    """

    def __init__(self, model: AToken, listing: Listing, prepare: Preparation) -> None:
        self.name, self.record = f"{model.name}, zero-shot", dict(model.record)
        self._model, self._prepare = model, prepare
        self._labels = sorted({entry.captions[1] for entry in listing.entries})

    @cached_property
    def _vectors(self) -> np.ndarray:
        return class_vectors(self._model, self._labels, A_PHOTO)

    def answer(self, items: Sequence[Item]) -> list[Output]:
        """As ``Answers``."""
        seen = [replace(item, media=self._prepare(item.media)) for item in items]
        vectors = [output.vector for output in self._model.embed(seen)]
        return [
            Output(item, answer=self._labels[int((self._vectors @ vector).argmax())])
            for item, vector in zip(items, vectors, strict=True)
        ]


def guesses(model: Model, listing: Listing) -> Iterator[Answers]:
    """What stands beside a vision-language model."""
    assert isinstance(model, VisionLanguage)
    yield Blind(model)
    yield MostFrequent(listing, {"dtype": model.record["dtype"]})  # it has none of its own; the rows share columns


def guesses_and_tower(model: Model, listing: Listing, prepare: Preparation) -> Iterator[Answers]:
    """``guesses``, and zero-shot classification by the tokenizer that the model's tower is of."""
    yield from guesses(model, listing)
    assert isinstance(model, VisionLanguage)
    tower, dtype = model.chat.model.config.vision_source, model.record["dtype"]
    try:
        if tower is not None:
            device = str(model.chat.model.device)
            yield NearestLabel(AToken(tower, device=device, dtype=dtype), listing, prepare)
    except AtokenError as error:
        warnings.warn(f"There is no zero-shot classification beside {model.name}: {error}", AtokenWarning, stacklevel=2)
