"""Questions about a generated sample, whose answers follow from its facts: one function for each type.

Each takes the facts, a random generator and, for questions whose answer is yes or no, the ``wanted`` one; it gives None
where its question has no clear answer, or not the wanted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from atoken.data.synthetic.placed import MOST, MOTIONS, RELATIONS, counted
from atoken.data.synthetic.words import NUMBERS, article
from mllm.questions.facts import Facts

_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "above": "below", "below": "above"}


class Asked(NamedTuple):
    """A question: which phrases ask it, what they are filled with, and the answer."""

    phrases: str
    words: dict[str, str]
    answer: str


Asker = Callable[[Facts, np.random.Generator, bool], Asked | None]


def _looks(about: str, told_apart_by: str, facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    """The colour of the only things of a shape, or the shape of the only ones of a colour."""
    thing, last = facts.things[0], facts.things[-1]
    if facts.series == "placed" and getattr(thing, told_apart_by) == getattr(last, told_apart_by):
        return None
    if facts.series == "counted" and facts.count > 1:
        return Asked(f"{about}.several", facts.words, getattr(thing, about))
    return _one_or_either(about, facts, rng)


_colour, _shape = partial(_looks, "colour", "shape"), partial(_looks, "shape", "colour")


def _one_or_either(about: str, facts: Facts, rng: np.random.Generator) -> Asked:
    """An open question, or one in four times a choice of two."""
    thing = facts.things[0]
    answer = getattr(thing, about)
    if len(facts.things) > 1 or rng.random() > 0.25:
        return Asked(f"{about}.one", facts.words, answer)
    while (wrong := getattr(thing.other(rng), about)) == answer:
        pass
    first, second = (answer, wrong) if rng.random() < 0.5 else (wrong, answer)
    spoken = article if about == "shape" else str
    return Asked(f"{about}.either", facts.words | {"first": spoken(first), "second": spoken(second)}, answer)


def _number(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    return Asked("number.several", facts.words, NUMBERS[facts.count])


def _position(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    """Where the first is, seen from the second; or which one is farther to a side."""
    if rng.random() < 0.5:
        return Asked("position.pair", facts.words, facts.relation.removesuffix(" of"))
    first, second = (article(thing.name) for thing in facts.things)
    side = facts.relation.removesuffix(" of")
    side, answer = (side, first) if rng.random() < 0.5 else (_OPPOSITE[side], second)
    return Asked(f"position.{side}", facts.words, answer)


def _comparison(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    """Whether both have the same colour or shape."""
    about = "colour" if rng.random() < 0.5 else "shape"
    one, other = (getattr(thing, about) for thing in facts.things)
    return _yes_or_no(f"comparison.{about}", facts.words, wanted) if (one == other) == wanted else None


def _motion(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    """The direction, openly or as one of two; or the speed."""
    if facts.motion == MOTIONS[-1]:
        return Asked("motion.way", facts.words, "it stands still")
    _, way, speed = facts.motion.split()
    match rng.integers(4):
        case 0:
            return Asked("motion.speed", facts.words, speed)
        case 1:
            first, second = (way, _OPPOSITE[way]) if rng.random() < 0.5 else (_OPPOSITE[way], way)
            return Asked("motion.either", facts.words | {"first": first, "second": second}, way)
    return Asked("motion.way", facts.words, way)


def _thing(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    """Whether something is there; what is not there differs from what is by its colour or its shape."""
    thing = facts.things[int(rng.integers(len(facts.things)))]
    named = thing if wanted else thing.other(rng)
    if not wanted and named in facts.things:
        return None
    return _yes_or_no("yes/no.thing", facts.words | {"a_thing": article(named.name)}, wanted)


def _things(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    """Whether there are so many."""
    numbers = [number for number in range(2, MOST + 1) if (number == facts.count) == wanted]
    if not numbers:
        return None
    things = counted(facts.things[0].label, numbers[int(rng.integers(len(numbers)))])
    return _yes_or_no("yes/no.things", facts.words | {"things": things}, wanted)


def _related(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    """Whether the first is on this side of the second."""
    relations = [relation for relation in RELATIONS if (relation == facts.relation) == wanted]
    relation = relations[int(rng.integers(len(relations)))]
    return _yes_or_no("yes/no.pair", facts.words | {"relation": relation}, wanted)


def _moves(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    """Whether it moves this way; or, one in nine times, whether it moves, since one in nine stands still."""
    still = facts.motion == MOTIONS[-1]
    if still or (wanted and rng.random() < 1 / len(MOTIONS)):
        return None if still == wanted else _yes_or_no("yes/no.moves", facts.words, wanted)
    ways = [way for way in ("left", "right", "up", "down") if (f" {way} " in facts.motion) == wanted]
    way = ways[int(rng.integers(len(ways)))]
    return _yes_or_no("yes/no.way", facts.words | {"way": way}, wanted)


def _description(facts: Facts, rng: np.random.Generator, wanted: bool) -> Asked | None:
    return Asked("description.all", facts.words, facts.caption)


def _yes_or_no(phrases: str, words: dict[str, str], wanted: bool) -> Asked:
    return Asked(phrases, words, "yes" if wanted else "no")


ASKERS: Mapping[str, Mapping[str, Mapping[str, Asker]]] = {  # modality -> type -> series -> function
    "image": {
        "colour": dict.fromkeys(("labelled", "counted", "placed"), _colour),
        "shape": dict.fromkeys(("labelled", "counted", "placed"), _shape),
        "number": {"counted": _number},
        "position": {"placed": _position},
        "comparison": {"placed": _comparison},
        "yes/no": {"labelled": _thing, "counted": _things, "placed": _related},
        "description": dict.fromkeys(("labelled", "counted", "placed"), _description),
    },
    "video": {
        "colour": dict.fromkeys(("labelled", "moving"), _colour),
        "shape": dict.fromkeys(("labelled", "moving"), _shape),
        "motion": {"moving": _motion},
        "yes/no": {"labelled": _thing, "moving": _moves},
        "description": dict.fromkeys(("labelled", "moving"), _description),
    },
    "asset": {
        "colour": {"labelled": _colour},
        "shape": {"labelled": _shape},
        "yes/no": {"labelled": _thing},
        "description": {"labelled": _description},
    },
}
ONLY_FIRST = ("comparison",)  # about a sample that was drawn for it, or its answers would not be balanced
