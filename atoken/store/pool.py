"""Processes that read for a store, which may be killed at any time, and the calls that are theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from atoken.store.reading import DEATHS, begin


def started(given: Any, workers: int) -> ProcessPoolExecutor:
    """A pool whose processes each have been ``given`` something (``atoken.store.reading.given``), once."""
    # Spawned: torch's threads do not survive a fork.
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=begin, initargs=(given,))


def submitted(pool: Executor, *call: Any) -> Future[Any]:
    """What a pool makes; also where one of its processes died just now."""
    try:
        return pool.submit(*call)
    except BrokenProcessPool as error:
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


def end(pool: ProcessPoolExecutor) -> None:
    """End a pool and its processes at once.

    Where one dies while another starts, the pool ends all but the new one, and then waits for that for ever (CPython
    3.11). ``kill_workers`` comes with 3.14.
    """
    processes = dict(pool._processes or {})
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes.values():
        process.kill()


def one_by_one(given: Any, call: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any | None]:
    """What each call gives, alone in a process; None for one that killed its process ``DEATHS`` times."""
    pool = started(given, 1)
    try:
        for argument in arguments:
            found = None
            for _ in range(DEATHS):
                try:
                    found = submitted(pool, call, *argument).result()
                    break
                except BrokenProcessPool:
                    end(pool)
                    pool = started(given, 1)
            yield found
    finally:
        end(pool)
