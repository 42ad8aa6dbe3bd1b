"""Conversations about photographs with labels, such as those of ``atoken fetch photos``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from atoken.data.mixing import permuted
from atoken.data.sources.sample import Sample
from atoken.data.sources.shards import ShardSource
from atoken.data.synthetic.procedural import generator
from atoken.errors import AtokenError
from mllm.conversation import Conversation, MediaItem, Message, Text
from mllm.questions.phrases import phrased

TYPES = ("label", "group", "yes/no")
_STREAM = 33  # of random numbers


@dataclass(frozen=True)
class PhotographQuestions:
    """``samples`` conversations about the photographs of shards, each photograph equally often.

    The ``.json`` of a photograph has ``a_label`` and ``a_group``, which are the answers: "a royal gala apple" and "an
    apple". turns: questions of a conversation at most, each of another type. types: of the questions. Raises:
    AtokenError (no shards, a photograph without labels).
    """

    shards: str | Path
    samples: int
    seed: int = 0
    turns: int = 1
    types: tuple[str, ...] = TYPES

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Conversation:
        if not 0 <= index < self.samples:
            raise IndexError(f"There is no question {index} among {self.samples}.")
        epoch, turn = divmod(index, len(self._source))
        sample = self._source[permuted(turn, len(self._source), self.seed, epoch)]
        rng = generator(self.seed, index, _STREAM)
        asked = rng.permutation(self.types)[: int(rng.integers(1, self.turns, endpoint=True))]
        media: tuple[MediaItem | Text, ...] = (MediaItem("image", sample.media),)
        messages = []
        for about in asked:
            question, answer = self._question(sample, str(about), rng)
            messages += [Message("user", (*media, Text(question))), Message("assistant", (Text(answer),))]
            media = ()
        return Conversation(f"{self.shards}, photograph {sample.key}", tuple(messages))

    def _question(self, sample: Sample, about: str, rng: np.random.Generator) -> tuple[str, str]:
        label, group = _labels(sample)
        if about != "yes/no":
            return phrased(f"photograph.{about}", {}, rng), label if about == "label" else group
        wanted, one = bool(rng.integers(2)), label
        while (one == label) != wanted:
            one = self._all_labels[int(rng.integers(len(self._all_labels)))]
        return phrased("photograph.yes_no", {"one": one}, rng), "yes" if wanted else "no"

    @cached_property
    def _source(self) -> ShardSource:
        return ShardSource(self.shards)

    @cached_property
    def _all_labels(self) -> list[str]:
        found = sorted({_labels(self._source[number])[0] for number in range(len(self._source))})
        if len(found) < 2:
            raise AtokenError(f"The photographs of {self.shards} have one label only; a question needs another.")
        return found


def _labels(sample: Sample) -> tuple[str, str]:
    label, group = (sample.record.get(name) for name in ("a_label", "a_group"))
    if not isinstance(label, str) or not isinstance(group, str):
        raise AtokenError(f"The photograph {sample.key} has no a_label and a_group; bring it by `atoken fetch photos`.")
    return label, group
