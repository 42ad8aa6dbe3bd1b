"""Several data sets as one: the YAML files that LLaVA-NeXT has, with generated questions and photographs besides.

Each conversation of each data set comes once in an epoch. An entry has one of the first three keys::

    datasets:
      - json_path: llava/{chat,ocr}.json   # both files; JSON or JSONL
        sampling_strategy: random:10%      # all (default), first:N, end:N, random:N; N or N%
        folder: images                     # of the media; by default that of the file
      - questions: video                   # image, video or asset: generated (mllm/questions)
        samples: 20000
        size: [16, 96, 96]
      - photographs: fetched:photos/train  # shards with labels; each photograph once, or ``samples``
        turns: 3                           # questions of a conversation, at most
        seed: 1

Paths are relative to the file, or to the cache of ``atoken fetch`` where they begin with ``fetched:``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Protocol, get_type_hints

import yaml
from msgspec import Meta

from atoken.data.sources.sample import located as part_of
from atoken.data.sources.shards import ShardSource
from atoken.errors import AtokenError
from atoken.metrics.pinned import check_fetched, located
from atoken.train.overrides import known, typed
from atoken.train.recipe import Count
from mllm.conversation import Conversation
from mllm.data.records import Records
from mllm.questions.photographs import PhotographQuestions
from mllm.questions.synthetic import SyntheticQuestions

_BRACES = re.compile(r"(.*)\{([^{}]*)\}(.*)")
Text = Annotated[str, Meta(min_length=1)]


class Conversations(Protocol):
    """Conversations by number, in an order that never changes; small when pickled for other processes."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Conversation:
        """Conversation ``index``. Raises: AtokenError (this one is broken), IndexError."""


@dataclass(frozen=True)
class Entry:
    """One entry of a file."""

    json_path: Text | None = None
    questions: Text | None = None
    photographs: Text | None = None
    sampling_strategy: Text = "all"
    folder: Text | None = None
    samples: Annotated[int, Meta(ge=0)] = 0
    size: tuple[Count, ...] = ()
    turns: Count = 1
    seed: Annotated[int, Meta(ge=0)] = 0


SOURCES = {  # the first key of an entry, and those that go with it
    "json_path": ("sampling_strategy", "folder", "seed"),
    "questions": ("samples", "size", "turns", "seed"),
    "photographs": ("samples", "turns", "seed"),
}
_TYPES = get_type_hints(Entry, include_extras=True)


class Mixture:
    """Named data sets, one after the other; a conversation has a number among all of them."""

    def __init__(self, datasets: Mapping[str, Conversations]) -> None:
        self._names, self._datasets = list(datasets), list(datasets.values())
        self._ends = list(accumulate(map(len, self._datasets)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Conversation:
        number, item = part_of(self._ends, index)
        return self._datasets[number][item]

    def name_of(self, index: int) -> str:
        """The data set that a conversation is of."""
        return self._names[part_of(self._ends, index)[0]]


def read_mixture(path: str | Path) -> Mixture:
    """The data sets of a YAML file; a JSON or JSONL file is one of its own.

    Raises: AtokenError (one sentence: file, entry, key, and what is allowed).
    """
    path = Path(path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        return Mixture({str(path): Records(path)})
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AtokenError(f"Cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AtokenError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    entries = stated.get("datasets") if isinstance(stated, dict) else None
    if not isinstance(entries, list) or not entries or len(stated) != 1:
        raise AtokenError(f"{path} must have datasets, a list of at least one, and nothing else.")
    found = [pair for number, one in enumerate(entries, 1) for pair in _of_entry(one, path.parent, f"{path}, {number}")]
    return Mixture({f"{number}: {name}": one for number, (name, one) in enumerate(found, 1)})


def _of_entry(stated: Any, folder: Path, where: str) -> Iterator[tuple[str, Conversations]]:
    for key in typed(stated, dict[str, Any], where):
        known(key, _TYPES, "key", where)
    sources = [key for key in SOURCES if key in stated]
    if len(sources) != 1:
        raise AtokenError(f"{where} must have one of {', '.join(SOURCES)}; it has {' and '.join(sources) or 'none'}.")
    for key in stated.keys() - {sources[0]}:
        known(key, SOURCES[sources[0]], f"key of {sources[0]}", where)
    entry = Entry(**{key: typed(value, _TYPES[key], f"{where}, {key}") for key, value in stated.items()})
    if entry.json_path:
        media = None if entry.folder is None else _path(entry.folder, folder)
        for path in expanded(entry.json_path):
            file = _path(path, folder)
            yield path, Records(file, entry.sampling_strategy, media, entry.seed)
    elif entry.photographs:
        shards = _path(entry.photographs, folder)
        samples = entry.samples or len(ShardSource(shards))
        yield entry.photographs, PhotographQuestions(shards, samples, entry.seed, entry.turns)
    else:
        asked = entry.questions or ""
        yield f"questions about {asked}", SyntheticQuestions(asked, entry.samples, entry.seed, entry.size, entry.turns)


def _path(path: str, folder: Path) -> Path:
    found = located(path, folder)
    check_fetched(found)
    return found


def expanded(path: str) -> list[str]:
    """The paths that ``a/{x,y}.json`` stands for."""
    found = _BRACES.fullmatch(path)
    return [path] if found is None else [f"{found[1]}{name.strip()}{found[3]}" for name in found[2].split(",")]
