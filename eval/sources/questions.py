"""Questions about images, videos and 3D assets, each with its answer: items whose captions are both.

The label of an item is the type of its question, whose names are the classes of the listing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from atoken.io import Image, Mesh, Video
from eval.sources.entry import Entry, Listing
from eval.sources.samples import Record, clothes, photos
from mllm.questions.asking import ASKERS
from mllm.questions.synthetic import Generated, SyntheticQuestions

QUESTIONS = 1000
PHOTO_QUESTION = "What is in this photo?"


def synthetic(seed: int, modality: str, many: int = QUESTIONS) -> Listing:
    """The first questions of a seed about generated samples, types in turn."""
    conversations, types = SyntheticQuestions(modality, many, seed), tuple(ASKERS[modality])
    entries = []
    for number in range(many):
        asked = conversations[number]
        (item,) = asked.media
        texts = tuple(message.text for message in asked.messages)
        label = types.index(conversations.type_of(number))
        entries.append(Entry(f"{modality}/{seed}/{number:05d}", partial(_drawn, item.source), label, texts))
    return Listing(entries, types)


def _drawn(generated: Generated) -> Image | Video | Mesh:
    made: Any = generated()
    return made if isinstance(made, Mesh) else Video(made) if made.ndim == 4 else Image(made)


def photographs(root: Path) -> Listing:
    """What photographs of clothes and of groceries show, by their exact label. Raises: MediaError."""
    found = {"clothes": photos(root, clothes), "groceries": photos(root, _grocery)}
    entries = [
        replace(entry, label=number, captions=(PHOTO_QUESTION, of.classes[entry.label]))
        for number, of in enumerate(found.values())
        for entry in of.entries
        if entry.label is not None
    ]
    return Listing(entries, tuple(found))


def _grocery(record: Record) -> str | None:
    return None if clothes(record) else record["a_label"]
