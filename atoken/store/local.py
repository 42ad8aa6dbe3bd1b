"""The engine of one machine: processes read and decode units, and an encoder encodes them, one at a time.

A process that is killed is replaced and its units are read again. A unit whose readers die ``DEATHS`` times is read
item by item, so that only an item that kills its reader each time is lost, and listed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from time import perf_counter
from typing import TYPE_CHECKING, Any

from atoken.store import shards
from atoken.store.reading import DEATHS, Failure, Job, Read, begin_reading, killed, read_unit
from atoken.store.units import Report, encode_unit

if TYPE_CHECKING:
    from atoken.store.media import Decoded
    from atoken.tokenizer import Tokenizer


class LocalEngine:
    """``workers`` processes read; the model is in this process, on its device. Use ``with``."""

    def __init__(self, tokenizer: Tokenizer, workers: int) -> None:
        self._tokenizer, self._workers = tokenizer, workers
        self._stack = ExitStack()

    def __enter__(self) -> LocalEngine:
        # One thread encodes while this one waits for readers, another joins shards.
        self._encoder, self._joiner = (self._stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def join(self, job: Job, shard: int) -> Future[None]:
        """Begin to join a shard whose units are all there."""
        return self._joiner.submit(shards.join, job, shard)

    def encode(self, job: Job, units: Sequence[int]) -> Iterator[Report]:
        """Make units, in about their order, and report each when it is on disk. Raises: AtokenError."""
        readers = _Readers(job, self._workers)
        waiting, ready, encoding = deque(units), deque[Read](), list[Future[Report]]()
        try:
            while waiting or readers.busy or ready or encoding:
                # Few units are in memory at once: one for each reader, one that is encoded, one that is next.
                while waiting and readers.busy + len(ready) < self._workers + 1:
                    readers.submit(waiting.popleft())
                if ready and not encoding:
                    encoding.append(self._encoder.submit(encode_unit, job, self._tokenizer, ready.popleft()))
                waited: list[Future[Any]] = [*readers.futures, *encoding]
                wait(waited, return_when=FIRST_COMPLETED)
                ready.extend(readers.collect())
                if encoding and encoding[0].done():
                    yield encoding.pop().result()
        finally:
            readers.close()
            wait(encoding)


class _Readers:
    """A pool of processes that read units, made again when one of them dies."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job, self._workers = job, workers
        self._deaths: Counter[int] = Counter()
        self.futures: dict[Future[Read], int] = {}
        self._pool = _pool(job, workers)

    @property
    def busy(self) -> int:
        """Units that are being read."""
        return len(self.futures)

    def submit(self, unit: int) -> None:
        """Begin to read a unit."""
        try:
            future = self._pool.submit(_read, unit)
        except BrokenProcessPool as error:  # one died just now
            future = Future()
            future.set_exception(error)
        self.futures[future] = unit

    def collect(self) -> Iterator[Read]:
        """What has been read; units whose reader died are begun again. Raises: AtokenError."""
        died = False
        for future in [future for future in self.futures if future.done()]:
            try:
                read = future.result()
            except BrokenProcessPool:
                died = True
                continue
            del self.futures[future]
            yield read
        if died:
            yield from self._again()

    def _again(self) -> Iterator[Read]:
        units = sorted(self.futures.values())  # all futures of a broken pool fail
        self.close()
        self.futures.clear()
        self._pool = _pool(self._job, self._workers)
        for unit in units:
            self._deaths[unit] += 1
            if self._deaths[unit] < DEATHS:
                self.submit(unit)
            else:
                yield _one_by_one(self._job, unit)

    def close(self) -> None:
        """End all processes."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _one_by_one(job: Job, unit: int) -> Read:
    """Read a unit that killed its readers item by item, alone; the items that do so again and again have failed."""
    found: list[Decoded | Failure] = []
    start, pool = perf_counter(), _pool(job, 1)
    for item in job.plan.items_of(unit):
        for _ in range(DEATHS):
            try:
                found += pool.submit(_read, unit, [item]).result().items
                break
            except BrokenProcessPool:
                pool.shutdown(wait=False)
                pool = _pool(job, 1)
        else:
            found.append(killed(job, item))
    pool.shutdown(wait=False)
    return Read(unit, tuple(found), perf_counter() - start)


def _pool(job: Job, workers: int) -> ProcessPoolExecutor:
    # Spawned: torch's threads do not survive a fork.
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(job,))


_JOBS: list[Job] = []  # of a process that reads: it gets its job once, which may name a million files


def _begin(job: Job) -> None:
    begin_reading()
    _JOBS.append(job)


def _read(unit: int, only: Sequence[int] | None = None) -> Read:
    return read_unit(_JOBS[0], unit, only)
