"""The engine of one machine: processes read and decode units, and an encoder on each device encodes them.

A process that is killed is replaced and its units are made again. A unit whose readers die ``DEATHS`` times is read
item by item, so that only an item that kills its reader each time is lost, and listed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache
from multiprocessing import get_context
from time import perf_counter
from typing import TYPE_CHECKING, Any

from atoken.errors import StoreError
from atoken.store import shards
from atoken.store.reading import DEATHS, Failure, Job, Read, begin, given_job, killed, read_here
from atoken.store.units import Report, encode_unit, encoder

if TYPE_CHECKING:
    from atoken.store.media import Decoded
    from atoken.tokenizer import Tokenizer


class LocalEngine:
    """``workers`` processes read. Use ``with``.

    devices: of several, each has a process with a model of its own. Otherwise the tokenizer is used, in this process.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int, devices: Sequence[str] = ()) -> None:
        self._tokenizer, self._workers, self._devices = tokenizer, workers, devices
        self._stack = ExitStack()

    def __enter__(self) -> LocalEngine:
        self._joiner = self._stack.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def join(self, job: Job, shard: int) -> Future[None]:
        """Begin to join a shard whose units are all there."""
        return self._joiner.submit(shards.join, job, shard)

    def encode(self, job: Job, units: Sequence[int]) -> Generator[Report]:
        """Make units, in about their order, and report each when it is on disk. Raises: AtokenError."""
        readers, waiting, ready = _Readers(job, self._workers), deque(units), deque[Read]()
        several = self._devices if len(self._devices) > 1 else ()
        encoders: list[_Thread] = [_Process(job, device) for device in several]
        encoders = encoders or [_Thread(job, self._tokenizer)]
        try:
            while waiting or readers.futures or ready or any(one.future for one in encoders):
                # Few units are in memory: one for each reader, one that each encoder has, one that is next.
                while waiting and len(readers.futures) + len(ready) < self._workers + len(encoders):
                    readers.submit(waiting.popleft())
                for one in encoders:
                    if ready and not one.future:
                        one.submit(ready.popleft())
                waited: list[Future[Any]] = [*readers.futures, *(one.future for one in encoders if one.future)]
                wait(waited, return_when=FIRST_COMPLETED)
                ready.extend(readers.collect())
                for one in encoders:
                    if report := one.collect():
                        yield report
        finally:
            readers.close()
            for one in encoders:
                one.close()


class _Readers:
    """A pool of processes that read units, made again when one of them dies. ``futures``: what is being read."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job, self._workers = job, workers
        self._deaths: Counter[int] = Counter()
        self.futures: dict[Future[Read], int] = {}
        self._pool = _pool(job, workers)

    def submit(self, unit: int) -> None:
        """Begin to read a unit."""
        self.futures[_submitted(self._pool, read_here, unit)] = unit

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
        _kill(self._pool)


def _one_by_one(job: Job, unit: int) -> Read:
    """Read a unit that killed its readers item by item, alone; the items that do so again and again have failed."""
    found: list[Decoded | Failure] = []
    start, pool = perf_counter(), _pool(job, 1)
    for item in job.plan.items_of(unit):
        for _ in range(DEATHS):
            try:
                found += _submitted(pool, read_here, unit, [item]).result().items
                break
            except BrokenProcessPool:
                _kill(pool)
                pool = _pool(job, 1)
        else:
            found.append(killed(job, item))
    pool.shutdown(wait=False)
    return Read(unit, tuple(found), perf_counter() - start)


class _Thread:
    """An encoder in this process; ``future``: what it encodes."""

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self._job, self._tokenizer = job, tokenizer
        self.future: Future[Report] | None = None
        self._pool: Any = ThreadPoolExecutor(1)

    def submit(self, read: Read) -> None:
        """Begin to encode a unit."""
        self.future = self._pool.submit(encode_unit, self._job, self._tokenizer, read)

    def collect(self) -> Report | None:
        """A unit that is on disk. Raises: AtokenError."""
        if self.future is None or not self.future.done():
            return None
        done, self.future = self.future, None
        return done.result()

    def close(self) -> None:
        """End it, after the unit that it has."""
        self._pool.shutdown()


class _Process(_Thread):
    """An encoder in a process of its own, made again when it dies."""

    def __init__(self, job: Job, device: str) -> None:
        self._job, self._device, self._deaths = job, device, 0
        self.future = None
        self._pool = _pool(job, 1)

    def submit(self, read: Read) -> None:
        """Begin to encode a unit."""
        self._read = read
        self.future = _submitted(self._pool, _encode_on, self._device, read)

    def collect(self) -> Report | None:
        """A unit that is on disk. Raises: AtokenError (also for one that killed the encoder again and again)."""
        try:
            report = super().collect()
        except BrokenProcessPool as error:
            self._deaths += 1
            if self._deaths == DEATHS:
                raise StoreError(
                    f"The encoder on {self._device} was killed {DEATHS} times at unit {self._read.unit}; it may need "
                    "more memory: lower --batch-tokens, in another store."
                ) from error
            _kill(self._pool)
            self._pool = _pool(self._job, 1)
            self.submit(self._read)
            return None
        if report:
            self._deaths = 0
        return report


def _encode_on(device: str, read: Read) -> Report:
    return encode_unit(given_job(), _loaded(device), read)


@cache
def _loaded(device: str) -> Tokenizer:
    return encoder(given_job(), device=device)


def _pool(job: Job, workers: int) -> ProcessPoolExecutor:
    # Spawned: torch's threads do not survive a fork.
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=begin, initargs=(job,))


def _kill(pool: ProcessPoolExecutor) -> None:
    """End a pool and its processes at once.

    Where one dies while another starts, the pool ends all but the new one, and then waits for that for ever (CPython
    3.11). ``kill_workers`` comes with 3.14.
    """
    processes = dict(pool._processes or {})
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes.values():
        process.kill()


def _submitted(pool: Executor, *call: Any) -> Future[Any]:
    """What a pool makes; also where one of its processes died just now."""
    try:
        return pool.submit(*call)
    except BrokenProcessPool as error:
        future: Future[Any] = Future()
        future.set_exception(error)
        return future
