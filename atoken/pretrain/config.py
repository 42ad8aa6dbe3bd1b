"""What a user changes of a stage: words such as ``tasks.image.micro_batches=8`` (``atoken/train/overrides.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from msgspec import Meta

from atoken.errors import AtokenError
from atoken.pretrain.stages import Stage, Task
from atoken.train import overrides
from atoken.train.recipe import NotNegative

FIXED = ("name", "preset", "start_from", "modality", "terms", "stream")  # or changed entry by entry
KEYS = ", mixture.TASK, tasks.TASK.FIELD, tasks.TASK.terms.TERM"
MODULES = (  # of a model: how names of parameters begin
    "encoder.", "pool.", "to_latent.", "decoder.", "to_patch.", "logit_", "gaussian_decoder.", "text_tower.",
)  # fmt: skip


def overridden(stage: Stage, changes: Sequence[str]) -> Stage:
    """A stage with ``changes``, each ``key=value``; without any it is the same.

    Keys: a field of the stage or its recipe; ``mixture.TASK``, where 0 takes the task out; ``tasks.TASK.FIELD``;
    ``tasks.TASK.terms.TERM``, which sets a weight. Raises: AtokenError (an unknown key, with those there are; a value
    of the wrong type; a stage that could not run).
    """
    for change in changes:
        stage = _changed(stage, *overrides.split(change))
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
            overrides.known(name, stage.tasks, "task", key)
            shares = {**stage.mixture, name: overrides.typed(value, Annotated[int, Meta(ge=0)], key)}
            return replace(stage, mixture={task: share for task, share in shares.items() if share})
        case ["tasks", name, "terms", term]:
            overrides.known(name, stage.tasks, "task", key)
            task = stage.tasks[name]
            overrides.known(term, [each.fn.__name__ for each in task.terms], "term", key)
            weight = overrides.typed(value, NotNegative, key)
            terms = tuple(replace(x, weight=weight) if x.fn.__name__ == term else x for x in task.terms)
            return replace(stage, tasks={**stage.tasks, name: replace(task, terms=terms)})
        case path:
            return overrides.changed(stage, path, value, key, FIXED, KEYS)


def _checked(stage: Stage) -> Stage:
    """Raises: AtokenError for a stage that could not run."""
    for name in (*stage.mixture, *stage.auxiliary):
        overrides.known(name, stage.tasks, "task", f"stage {stage.name}")
    if both := set(stage.mixture) & set(stage.auxiliary):
        raise AtokenError(
            f"{min(both)} is in every step already, as an auxiliary task: take it out with mixture.{min(both)}=0."
        )
    if not stage.mixture:
        raise AtokenError(f"Stage {stage.name} has nothing to do: its mixture names no task.")
    if odd := [word for word in stage.frozen if not _is_module(word)]:
        raise AtokenError(f"frozen: no parameter's name begins with {odd[0]!r}; names begin with {', '.join(MODULES)}")
    for name, task in stage.tasks.items():
        _check_task(f"tasks.{name}", task)
    return stage


def _is_module(beginning: str) -> bool:
    return bool(beginning) and any(part.startswith(beginning) or beginning.startswith(part) for part in MODULES)


def _check_task(key: str, task: Task) -> None:
    ranges = {"patches": (task.patches,), "length": (task.length,), "strides": task.strides}
    for name, pairs in ranges.items():
        if wrong := [pair for pair in pairs if pair[0] > pair[1]]:
            raise AtokenError(f"{key}.{name} must be the least and the most, in this order, not {list(wrong[0])}.")
    least = task.patches[0] * task.length[1]
    if task.tokens < least:
        raise AtokenError(
            f"{key}.tokens is {task.tokens}, but its longest sample has {least} at its smallest; raise tokens, or "
            "lower its patches or length."
        )
