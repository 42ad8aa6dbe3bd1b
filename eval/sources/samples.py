"""Samples whose ``.json`` says what they show: the photographs and the furniture that ``atoken fetch`` brings.

Photographs lie in folders of WebDataset shards, ``test``, ``validation`` and ``train``, furniture in folders of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from atoken.data.sources import FolderSource, Sample, ShardSource, Source
from atoken.data.synthetic.words import article
from atoken.errors import MediaError
from atoken.io import Image, read_image
from atoken.modalities import ASSET
from eval.sources.entry import Entry, Listing

Record = Mapping[str, Any]  # what the .json of a sample says
ClassOf = Callable[[Record], str | None]  # the name of a sample's class; None where it has none
CLOTHING = "clothing"  # the group of all clothes
LEARNED = "train"  # the split that probes learn from, and the beginning of the keys of its items
FURNITURE_NOUNS = 20  # classes of furniture: so many nouns


def clothes(record: Record) -> str | None:
    """The clothes that a photograph shows, such as "a polo shirt"."""
    return record["a_label"] if record["group"] == CLOTHING else None


def groceries(record: Record) -> str | None:
    """The group of groceries that a photograph shows, such as "an apple" or "sour cream"."""
    return None if record["group"] == CLOTHING else record["a_group"]


def noun(record: Record) -> str | None:
    """The last word of a label that has letters only, with its article: "a sofa" of "corner sofa 2"."""
    found = next((word for word in reversed(record["label"].split()) if word.isalpha()), None)
    return None if found is None else article(found)


def photos(root: Path, class_of: ClassOf | None = None) -> Listing:
    """The photographs of the shards below ``root``; with ``class_of`` those that have a class. Raises: MediaError."""
    return _listing(ShardSource(root), class_of)


def photos_to_probe(root: Path, class_of: ClassOf, tested: str) -> Listing:
    """Photographs to learn from, those of ``root/train``, then those of ``root/TESTED``. Raises: MediaError."""
    parts = {split: photos(root / split, class_of) for split in (LEARNED, tested)}
    classes = tuple(sorted({name for part in parts.values() for name in part.classes}))
    entries = [
        replace(entry, key=f"{split}/{entry.key}", label=classes.index(part.classes[entry.label]))
        for split, part in parts.items()
        for entry in part.entries
        if entry.label is not None
    ]
    return Listing(entries, classes)


def furniture(root: Path, class_of: ClassOf | None = None) -> Listing:
    """The models of furniture below ``root``; with ``class_of`` those of the 20 commonest classes.

    Of equally common classes those first by name count. Raises: MediaError.
    """
    return _listing(FolderSource(root, ASSET.suffixes), class_of, FURNITURE_NOUNS)


def _listing(source: Source, class_of: ClassOf | None, most: int | None = None) -> Listing:
    samples = [source[index] for index in range(len(source))]
    if class_of is None:
        return Listing([_entry(source, index, sample, None) for index, sample in enumerate(samples)])
    names = [_class(class_of, sample) for sample in samples]
    counts = Counter(sorted(name for name in names if name is not None))
    classes = tuple(sorted(name for name, _ in counts.most_common(most)))
    return Listing(
        [
            _entry(source, index, sample, classes.index(name))
            for index, (sample, name) in enumerate(zip(samples, names, strict=True))
            if name in classes
        ],
        classes,
    )


def _class(class_of: ClassOf, sample: Sample) -> str | None:
    try:
        return class_of(sample.record)
    except (KeyError, AttributeError) as error:
        raise MediaError(f"The .json of {sample.key} does not say what it shows ({error}); fetch it again.") from error


def _entry(source: Source, index: int, sample: Sample, label: int | None) -> Entry:
    if isinstance(sample.media, Path):
        return Entry(sample.key, sample.media, label)
    return Entry(sample.key, partial(_read, source, index), label, size=len(sample.media))


def _read(source: Source, index: int) -> Image:
    sample = source[index]
    return read_image(sample.media, name=sample.name)
