"""What samples of classes are held against: figures of the generator of data, and photographs, none trained on.

Items of both are squares of one size, as a store has them that ``atoken tokenize --resize SIDE --crop SIDE`` made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from atoken.data.synthetic.labelled import FIGURE_PROMPTS, WAYS, labelled_image
from eval.prepare import Preparation
from eval.sources.entry import Entry, Listing
from eval.sources.samples import Record, clothes, groceries, photos
from eval.sources.synthetic import SEED, series


def square(side: int) -> Preparation:
    """As the store has it: the shorter side scaled with Lanczos, and the middle."""
    return Preparation("centre", side, "lanczos")


def figures(side: int, number: int) -> Listing:
    """Images of one figure, at least two for each of ``number``, in turn of all 48 classes."""
    rounds = -(-number // WAYS)
    return series("labelled-image", labelled_image, [(side, side)], FIGURE_PROMPTS, SEED, 2 * rounds * WAYS)


def photographs(root: Path) -> Listing:
    """The photographs of a split, by kind of clothes or group of groceries. Raises: MediaError."""
    return photos(root, _shown)


def _shown(record: Record) -> str | None:
    return clothes(record) or groceries(record)


def halves(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The first half of each class, and the second half of each under the keys of the first; odd ones are left out.

    Neighbours are often of one scene, so that halves are not taken in turn.
    """
    classes = defaultdict[int | None, list[Entry]](list)
    for entry in entries:
        classes[entry.label].append(entry)
    partners = {
        first.key: replace(second, key=first.key)
        for of in classes.values()
        for first, second in zip(of[: len(of) // 2], of[len(of) // 2 :], strict=False)
    }
    return [entry for entry in entries if entry.key in partners], [
        partners[entry.key] for entry in entries if entry.key in partners
    ]


def bare(name: str) -> str:
    """The name of a class without its article: "red ring" of "a red ring"."""
    return name.removeprefix("a ").removeprefix("an ")
