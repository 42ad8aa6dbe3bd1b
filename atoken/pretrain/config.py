"""What a user changes of a stage: words such as ``tasks.image.micro_batches=8``, checked against the fields they set.

The dataclasses in ``atoken/pretrain/stages.py`` are the configuration; nothing is written down twice. A value is
written
as in TOML, where quotes, and the brackets around a list, may be left out; ``none`` empties what may be empty.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from math import inf
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from atoken.errors import AtokenError
from atoken.pretrain.stages import Stage, Task

FIXED = ("name", "preset", "tasks", "mixture", "start_from", "modality", "terms", "stream")  # or changed part by part
PARTS = (  # of a model: what names of parameters begin with
    "encoder.", "pool.", "to_latent.", "decoder.", "to_patch.", "logit_", "gaussian_decoder.", "text_tower.",
)  # fmt: skip
STAGE, TASK = ({k: kind for k, kind in get_type_hints(of).items() if k not in FIXED} for of in (Stage, Task))
KINDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    float | None: "a number, or none",
    tuple[int, int]: "a pair of whole numbers, such as [1, 4]",
    tuple[float, float]: "a pair of numbers, such as [0.9, 0.99]",
    tuple[str, ...]: 'a list of words, such as ["a", "b"]',
    tuple[tuple[int, int], ...]: "a list of pairs, such as [[1, 3], [4, 12]]",
}
# Of numbers, the least that makes sense and what they must stay below; the same for each number of a tuple.
LIMITS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "tokens", "micro_batches", "patches", "length", "strides", "aspect"), (1, inf)),
    **dict.fromkeys(("warmup", "lr", "final_lr", "encoder_lr", "muon", "weight_decay", "clip"), (0, inf)),
    "seed": (0, 2**63),
    **dict.fromkeys(("betas", "ema"), (0, 1)),
    "fps": (1e-3, inf),
}


def overridden(stage: Stage, changes: Sequence[str]) -> Stage:
    """A stage with ``changes``, each ``key=value``; without any it is the same.

    Keys: a field of the stage; ``mixture.TASK``, where 0 takes the task out; ``tasks.TASK.FIELD``;
    ``tasks.TASK.terms.TERM``, which sets a weight. Raises: AtokenError (an unknown key, with those there are; a value
    of the wrong type; a stage that could not run).
    """
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise AtokenError(f"{change} sets nothing; write key=value, such as steps=100.")
        stage = _changed(stage, key.strip(), _parsed(key, text.strip()))
    return _checked(stage)


def touches(stage: Stage, change: str) -> bool:
    """Whether a change is of something that the stage has: of a task that it knows, or of the stage itself."""
    match change.partition("=")[0].strip().split("."):
        case ["mixture" | "tasks", name, *_]:
            return name in stage.tasks
        case _:
            return True


def _changed(stage: Stage, key: str, value: Any) -> Stage:
    match key.split("."):
        case ["mixture", name]:
            _known(name, stage.tasks, "task", key)
            shares = {**stage.mixture, name: _typed(value, int, key)}
            return replace(stage, mixture={task: share for task, share in shares.items() if share != 0})
        case ["tasks", name, *rest]:
            _known(name, stage.tasks, "task", key)
            return replace(stage, tasks={**stage.tasks, name: _changed_task(stage.tasks[name], rest, key, value)})
        case _:
            _known(key, STAGE, "field", key, "mixture.TASK", "tasks.TASK.FIELD", "tasks.TASK.terms.TERM")
            return replace(stage, **{key: _typed(value, STAGE[key], key)})


def _changed_task(task: Task, path: Sequence[str], key: str, value: Any) -> Task:
    match path:
        case ["terms", name]:
            _known(name, [term.fn.__name__ for term in task.terms], "term", key)
            weight = _typed(value, float, key)
            return replace(
                task, terms=tuple(replace(x, weight=weight) if x.fn.__name__ == name else x for x in task.terms)
            )
        case _:
            name = ".".join(path)
            _known(name, TASK, "field", key, "terms.TERM")
            return replace(task, **{name: _typed(value, TASK[name], key)})


def _known(name: str, names: Collection[str], what: str, key: str, *others: str) -> None:
    """Raises: AtokenError for a name that is not among ``names``; ``others`` are said, too."""
    if name not in names:
        nearest = get_close_matches(name, names, 1)
        meant = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise AtokenError(f"{key}: there is no {what} {name!r}{meant}; there are {', '.join([*names, *others])}.")


def _parsed(key: str, text: str) -> Any:
    """A TOML value; else what is between commas as a list; else the words themselves."""
    try:
        found = tomllib.loads(f"value = {text}")
        if list(found) == ["value"]:
            return found["value"]
    except tomllib.TOMLDecodeError:
        pass
    if not re.fullmatch(r"[\w.,+ -]+", text):
        raise AtokenError(f"{key}={text!r}: the value is none of TOML, such as 8, 0.5, true, name, [1, 4] or [[1, 3]].")
    if "," in text:
        return [_parsed(key, part.strip()) for part in text.split(",") if part.strip()]
    return None if text == "none" else text


def _typed(value: Any, kind: Any, key: str) -> Any:
    """The value as a field of this type has it. Raises: AtokenError."""
    try:
        return _fitted(value, kind)
    except TypeError:
        raise AtokenError(f"{key} is {KINDS[kind]}, not {value}.") from None


def _fitted(value: Any, kind: Any) -> Any:
    """Lists become tuples, whole numbers floats, one word a tuple of it. Raises: TypeError."""
    kinds = get_args(kind)
    if get_origin(kind) is UnionType:
        return None if value is None else _fitted(value, kinds[0])
    if get_origin(kind) is tuple:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list) and (kinds[-1] is ... or len(values) == len(kinds)):
            return tuple(_fitted(part, kinds[0]) for part in values)
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is kind:
        return value
    raise TypeError


def _checked(stage: Stage) -> Stage:
    """Raises: AtokenError for what no run could make sense of."""
    for name in (*stage.mixture, *stage.auxiliary):
        _known(name, stage.tasks, "task", f"stage {stage.name}")
    if both := set(stage.mixture) & set(stage.auxiliary):
        raise AtokenError(f"{min(both)} is in every step already, by beside: take it out with mixture.{min(both)}=0.")
    if not stage.mixture:
        raise AtokenError(f"Stage {stage.name} has nothing to do: its mixture names no task.")
    if wrong := next((name for name, share in stage.mixture.items() if share < 1), None):
        raise AtokenError(f"mixture.{wrong} must be a whole number from 1 on, or 0 to take {wrong} out.")
    if odd := [word for word in stage.frozen if not _is_part(word)]:
        raise AtokenError(f"frozen: {odd[0]!r} begins no parameter's name; those begin with {', '.join(PARTS)}")
    for name in STAGE:
        _check_limits(name, getattr(stage, name), name)
    for name, task in stage.tasks.items():
        _check_task(f"tasks.{name}", task)
    return stage


def _is_part(beginning: str) -> bool:
    return bool(beginning) and any(part.startswith(beginning) or beginning.startswith(part) for part in PARTS)


def _check_task(key: str, task: Task) -> None:
    for name in TASK:
        _check_limits(name, getattr(task, name), f"{key}.{name}")
    for term in task.terms:
        if not 0 <= term.weight < inf:
            raise AtokenError(f"{key}.terms.{term.fn.__name__} must be a number from 0 on, not {term.weight}.")
    ranges = {"patches": (task.patches,), "length": (task.length,), "strides": task.strides}
    for name, pairs in ranges.items():
        if wrong := [pair for pair in pairs if pair[0] > pair[1]]:
            raise AtokenError(f"{key}.{name} must be the least and the most, in this order, not {list(wrong[0])}.")
    if not task.strides:
        raise AtokenError(f"{key}.strides must name at least one range, such as [[1, 3]].")
    least = task.patches[0] * task.length[1]
    if task.tokens < least:
        raise AtokenError(
            f"{key}.tokens is {task.tokens}, but its longest sample has {least} at its smallest; give it as many, or "
            "lower its patches or length."
        )


def _check_limits(name: str, value: Any, key: str) -> None:
    if isinstance(value, tuple):
        for part in value:
            _check_limits(name, part, key)
    elif name in LIMITS and value is not None:
        least, below = LIMITS[name]
        if not least <= value < below:
            limit = "" if below == inf else f" and below {below}"
            raise AtokenError(f"{key} must be a number from {least:g} on{limit}, not {value}.")
