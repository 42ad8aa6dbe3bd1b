"""What a process needs to work on a store, and how it reads a unit: consecutive items, decoded together.

Reading takes neither a model nor torch, so that a process that only reads is small.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from atoken.errors import AtokenError, MissingExtraError
from atoken.store.layout import WORK
from atoken.store.plan import Plan

if TYPE_CHECKING:
    from atoken.store.media import Decoded
    from atoken.store.source import Entry, Items

DEATHS = 3  # of readers of one unit, and of one item


@dataclass(frozen=True)
class Job:
    """What a process needs to know to work on a store; small when pickled. model: arguments of ``atoken.load``."""

    store: Path
    plan: Plan
    items: Items
    model: Mapping[str, Any]

    def unit_files(self, unit: int) -> tuple[Path, Path]:
        """The token file of a unit, and what is known of it."""
        work = self.store / WORK
        return work / f"{unit:06d}.atok", work / f"{unit:06d}.unit"


class Failure(Struct, frozen=True):
    """An item that could not be used, and why: a line of ``failures.jsonl``."""

    key: str
    reason: str


@dataclass(frozen=True)
class Read:
    """A unit that is read: what each of its items became, in order, and the seconds it took."""

    unit: int
    items: tuple[Decoded | Failure, ...]
    seconds: float


_GIVEN: list[Any] = []  # to a process when it was started


def begin(given: Any) -> None:
    """Prepare a process for what it is to work on, which it gets once, since that may name a million files.

    It ends with the process that started it, which also is the one to be interrupted.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _GIVEN.append(given)


def given() -> Any:
    """What ``begin`` gave to this process."""
    return _GIVEN[0]


def read_here(unit: int, only: Sequence[int] | None = None) -> Read:
    """``read_unit`` of the job of this process."""
    return read_unit(given(), unit, only)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def read_unit(job: Job, unit: int, only: Sequence[int] | None = None) -> Read:
    """Read and decode the items of a unit, or ``only`` some of them; in any process, without a model.

    Raises: MissingExtraError (all items would fail alike).
    """
    start = perf_counter()
    items = tuple(_read(job, item) for item in only or job.plan.items_of(unit))
    return Read(unit, items, perf_counter() - start)


def killed(job: Job, item: int) -> Failure:
    """Of an item whose reader was killed ``DEATHS`` times."""
    return Failure(key_of(job, item), f"Its reader was killed {DEATHS} times; it may take more memory than there is.")


def key_of(job: Job, item: int) -> str:
    """The key of an item of the store; its number where not even that can be read."""
    try:
        return str(_entry(job, item).key)
    except AtokenError:
        return f"item {item}"


def _read(job: Job, item: int) -> Decoded | Failure:
    from atoken.store.media import decode

    try:
        return decode(_entry(job, item), job.plan.options)
    except MissingExtraError:
        raise
    except AtokenError as error:
        return Failure(key_of(job, item), str(error))


def _entry(job: Job, item: int) -> Entry:
    return job.items[job.plan.in_source(item, len(job.items))]
