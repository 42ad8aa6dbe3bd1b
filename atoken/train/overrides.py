"""What a user changes of a configuration of frozen dataclasses: words such as ``lr=1e-3``, checked by msgspec.

The dataclasses are the configuration; their types and limits (``Annotated[int, msgspec.Meta(ge=1)]``) are written down
nowhere else. A key is the name of a field; an entry of a mapping, and a field inside it, are ``MAPPING.NAME.FIELD``;
fields of a dataclass inside another are set as if they were its own. A value is written as in TOML, where quotes, and
the brackets around a list, may be left out; ``none`` empties what may be empty.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, get_origin, get_type_hints

import msgspec

from atoken.errors import AtokenError

WORDS = {  # of msgspec, for people
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "array": "a list",
    "object": "a table", "null": "none",
}  # fmt: skip


def split(change: str) -> tuple[str, Any]:
    """Key and value of ``key=value``. Raises: AtokenError."""
    key, equals, text = change.partition("=")
    if not equals:
        raise AtokenError(f"{change} sets nothing; write key=value, such as steps=100.")
    return key.strip(), _parsed(key, text.strip())


def changed(of: Any, path: Sequence[str], value: Any, key: str, fixed: Collection[str] = (), more: str = "") -> Any:
    """A dataclass with the value at a path.

    key: what the user calls it. fixed: names of fields that cannot be set. more: other keys there are, for the error.
    Raises: AtokenError (an unknown key, with those there are; a value of another type or outside the limits).
    """
    name, *rest = path or [""]
    if rest and isinstance(entries := getattr(of, name, None), Mapping):
        known(rest[0], entries, name.removesuffix("s"), key)
        entry = changed(entries[rest[0]], rest[1:], value, key, fixed, more)
        return replace(of, **{name: {**entries, rest[0]: entry}})
    for field in fields(of):
        inner = getattr(of, field.name)
        if is_dataclass(inner) and name in settable(inner, fixed):
            return replace(of, **{field.name: changed(inner, path, value, key, fixed, more)})
    known(".".join(path), settable(of, fixed), "field", key, more)
    return replace(of, **{name: typed(value, get_type_hints(type(of), include_extras=True)[name], key)})


def settable(of: Any, fixed: Collection[str] = ()) -> dict[str, Any]:
    """Names and values of what may be set of a dataclass, those of dataclasses in it included."""
    found: dict[str, Any] = {}
    for field in fields(of):
        value = getattr(of, field.name)
        if is_dataclass(value):
            found |= settable(value, fixed)
        elif not isinstance(value, Mapping) and field.name not in fixed:
            found[field.name] = value
    return found


def known(name: str, names: Collection[str], what: str, key: str, more: str = "") -> None:
    """Raises: AtokenError for a name that is not one of ``names``, which it lists with ``more``."""
    if name not in names:
        nearest = get_close_matches(name, names, 1)
        meant = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise AtokenError(f"{key}: there is no {what} {name!r}{meant}; there are {', '.join(names)}{more}.")


def typed(value: Any, hint: Any, key: str) -> Any:
    """The value as a field of this type has it. Raises: AtokenError (another type, outside the limits)."""
    if isinstance(value, str) and get_origin(hint) is tuple:
        value = [value]
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        said = re.sub("`(.*?)`", lambda found: " or ".join(WORDS.get(x, x) for x in found[1].split(" | ")), str(error))
        said = re.sub(" - at .*", "", said)
        raise AtokenError(f"{key} cannot be {value}: {said[0].lower()}{said[1:]}.") from None


def _parsed(key: str, text: str) -> Any:
    """A TOML value; else what is between commas as a list; else the words themselves."""
    try:
        found = tomllib.loads(f"value = {text}")
        if list(found) == ["value"]:
            return found["value"]
    except tomllib.TOMLDecodeError:
        pass
    if not re.fullmatch(r"[\w.,+ -]+", text):
        raise AtokenError(f"{key}={text!r} is not a TOML value, such as 8, 0.5, true, name, [1, 4] or [[1, 3]].")
    if "," in text:
        return [_parsed(key, part.strip()) for part in text.split(",") if part.strip()]
    return None if text == "none" else text
