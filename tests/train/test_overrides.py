"""What a user sets of nested dataclasses; that each field of a stage can be set, tests/pretrain/test_config.py says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import pytest
from msgspec import Meta

from atoken.errors import AtokenError
from atoken.train.overrides import changed, settable, split
from atoken.train.recipe import Recipe


@dataclass(frozen=True)
class Part:
    size: Annotated[int, Meta(ge=1, le=8)] = 2
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    name: str = "whole"
    parts: Mapping[str, Part] = field(default_factory=lambda: {"left": Part(), "right": Part()})
    recipe: Recipe = field(default_factory=Recipe)


def overridden(*changes):
    found = Whole()
    for change in changes:
        key, value = split(change)
        found = changed(found, key.split("."), value, key, ("name",), ", and more")
    return found


def test_fields_of_dataclasses_inside_are_set_as_its_own_and_entries_by_name():
    found = overridden("steps=7", "parts.left.size=5", "betas=0.5,0.6", "parts.right.names=a")
    assert found == Whole(
        parts={"left": Part(5), "right": Part(names=("a",))}, recipe=Recipe(steps=7, betas=(0.5, 0.6))
    )
    assert set(settable(Whole(), ("name",))) == set(Recipe.__dataclass_fields__)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stepz=7", r"stepz: there is no field 'stepz' \(did you mean steps\?\); there are steps, .*, and more\.$"),
        ("name=other", "there is no field 'name'"),
        ("parts.middle.size=3", r"parts\.middle\.size: there is no part 'middle'; there are left, right\.$"),
        ("parts.left.width=3", r"there is no field 'width'; there are size, names, and more\.$"),
        ("parts.left=3", "there is no field ''"),
        ("parts.left.size=9", r"^parts\.left\.size cannot be 9: expected a whole number <= 8\.$"),
        ("parts.left.names=3", r"^parts\.left\.names cannot be 3: expected a list, got a whole number\.$"),
        ("steps", "steps sets nothing"),
    ],
)
def test_what_is_wrong_is_one_sentence(change, said):
    with pytest.raises(AtokenError, match=said):
        overridden(change)
