"""What is true of a generated sample, known before it is made: the index of a series states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from atoken.data.synthetic.labelled import FIGURES, SOLIDS, TINTS, WAYS
from atoken.data.synthetic.placed import MOST, MOTIONS, RELATIONS, counted, relation_of
from atoken.data.synthetic.words import article

PAIRS = WAYS * (WAYS - 1)  # of different classes; so many relations in a row of ``placed`` have each pair once
_NOUN = {"image": "image", "video": "video", "asset": "3D model"}


class Thing(NamedTuple):
    """A figure or a solid, by its class."""

    label: int
    shapes: tuple[str, ...] = FIGURES

    @property
    def colour(self) -> str:
        """Such as red."""
        return TINTS[self.label // len(self.shapes)]

    @property
    def shape(self) -> str:
        """Such as ring."""
        return self.shapes[self.label % len(self.shapes)]

    @property
    def name(self) -> str:
        """Such as "red ring"."""
        return f"{self.colour} {self.shape}"

    def other(self, rng: np.random.Generator) -> Thing:
        """One of another colour or another shape, but not of both."""
        colour, shape = divmod(self.label, len(self.shapes))
        if rng.random() < 0.5:
            colour = (colour + int(rng.integers(1, len(TINTS)))) % len(TINTS)
        else:
            shape = (shape + int(rng.integers(1, len(self.shapes)))) % len(self.shapes)
        return Thing(colour * len(self.shapes) + shape, self.shapes)


@dataclass(frozen=True)
class Facts:
    """What is true of a sample of a series. relation: where the first of two things is, seen from the second."""

    modality: str
    series: str
    index: int
    things: tuple[Thing, ...]
    count: int = 1
    relation: str = ""
    motion: str = ""

    @property
    def words(self) -> dict[str, str]:
        """What phrases are filled with."""
        first, last = self.things[0], self.things[-1]
        of_first = {"colour": first.colour, "shape": first.shape, "shapes": plural(first.shape)}
        return of_first | {"first": first.name, "second": last.name, "modality": _NOUN[self.modality]}

    @property
    def caption(self) -> str:
        """All of it, but the ground: "a red ring left of a blue star"."""
        if self.series == "counted":
            return counted(self.things[0].label, self.count) if self.count > 1 else article(self.things[0].name)
        one, *others = (article(thing.name) for thing in self.things)
        return " ".join(filter(None, [one, self.relation, *others, self.motion]))


def plural(shape: str) -> str:
    """Circles, crosses."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def draw(modality: str, series: str, n: int, rng: np.random.Generator) -> Facts:
    """Facts of a sample, each combination as often as any other; no other ``n`` has the same sample."""
    label = int(rng.integers(WAYS))
    if series == "counted":
        count = int(rng.integers(MOST))
        return Facts(modality, series, MOST * (WAYS * n + label) + count, (Thing(label),), count + 1)
    if series == "moving":
        motion = int(rng.integers(len(MOTIONS)))
        index = len(MOTIONS) * (WAYS * n + label) + motion
        return Facts(modality, series, index, (Thing(label),), motion=MOTIONS[motion])
    if series == "placed":
        index = len(RELATIONS) * (PAIRS * n + int(rng.integers(PAIRS))) + int(rng.integers(len(RELATIONS)))
        first, second, relation = relation_of(index)
        return Facts(modality, series, index, (Thing(first), Thing(second)), 2, relation)
    shapes = SOLIDS if modality == "asset" else FIGURES
    return Facts(modality, series, WAYS * n + label, (Thing(label, shapes),))
