"""Conversations about generated images, videos and 3D assets: number ``index`` of a seed, with nothing else needed.

The types of questions take turns (``asking.ASKERS``). Of each type all answers are about equally frequent, yes and no
exactly so, and a question alone does not tell its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from atoken.data.synthetic.procedural import generator
from atoken.data.synthetic.series import MAKERS
from atoken.errors import AtokenError
from mllm.conversation import Conversation, MediaItem, Message, Text
from mllm.questions.asking import ASKERS, ONLY_FIRST, Asked
from mllm.questions.facts import Facts, draw
from mllm.questions.phrases import phrased

SIZES = {"image": (128, 128), "video": (16, 96, 96), "asset": ()}  # H, W, or T, H, W, unless others are asked for
_STREAMS = {"image": 30, "video": 31, "asset": 32}  # of random numbers; the samples themselves have others


@dataclass(frozen=True)
class Generated:
    """A sample of a series of the generator, which is made when it is called: pixels (H, W, 3), frames, or a mesh."""

    modality: str
    series: str
    seed: int
    index: int
    size: tuple[int, ...]

    def __call__(self) -> Any:
        """The sample."""
        made = MAKERS[self.modality][self.series](self.seed, self.index, *self.size)
        if self.modality == "asset":
            return made.mesh
        return made.frames if self.modality == "video" else made.frames[0]


@dataclass(frozen=True)
class SyntheticQuestions:
    """``samples`` conversations about one generated sample each.

    size: of images (H, W) and videos (T, H, W); () is that of ``SIZES``. turns: questions of a conversation at most,
    each of another type; their number varies from 1 on. Raises: AtokenError.
    """

    modality: str
    samples: int
    seed: int = 0
    size: tuple[int, ...] = ()
    turns: int = 1

    def __post_init__(self) -> None:
        if self.modality not in ASKERS:
            raise AtokenError(f"There are questions about {', '.join(ASKERS)}, not about {self.modality!r}.")
        if self.size and (len(self.size) != len(SIZES[self.modality]) or min(self.size) < 1):
            raise AtokenError(f"size must be like {list(SIZES[self.modality])} for {self.modality}, got {self.size}.")
        if min(self.samples, self.turns) < 1:
            raise AtokenError("samples and turns must be at least 1.")

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Conversation:
        facts, asked, rng = self._asked(index)
        source = Generated(self.modality, facts.series, self.seed, facts.index, self.size or SIZES[self.modality])
        media: tuple[MediaItem | Text, ...] = (MediaItem(self.modality, source),)
        messages = []
        for one in asked:
            messages.append(Message("user", (*media, Text(phrased(one.phrases, one.words, rng)))))
            messages.append(Message("assistant", (Text(one.answer),)))
            media = ()
        return Conversation(f"question {index} about {self.modality}s (seed {self.seed})", tuple(messages))

    def type_of(self, index: int) -> str:
        """The type of the first question of a conversation."""
        return [*ASKERS[self.modality]][index % len(ASKERS[self.modality])]

    def _asked(self, index: int) -> tuple[Facts, list[Asked], np.random.Generator]:
        """A sample that the type in turn can ask about, the questions, and the generator for what is left to draw."""
        if not 0 <= index < self.samples:
            raise IndexError(f"There is no question {index} among {self.samples}.")
        rng = generator(self.seed, index, _STREAMS[self.modality])
        first, types = self.type_of(index), ASKERS[self.modality]
        series, wanted = str(rng.choice(list(types[first]))), index // len(types) % 2 == 0
        found = None
        while found is None:
            facts = draw(self.modality, series, index, rng)
            found = types[first][series](facts, rng, wanted)
        others = [name for name in types if name not in (first, *ONLY_FIRST) and series in types[name]]
        chosen = rng.permutation(others)[: int(rng.integers(self.turns))]
        more = [types[name][series](facts, rng, bool(rng.integers(2))) for name in chosen]
        return facts, [found, *(one for one in more if one is not None)], rng
