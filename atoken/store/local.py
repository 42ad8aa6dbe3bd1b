"""The engine of one machine: processes read and decode pieces of units, and an encoder on each device encodes units.

A process that is killed is replaced and its work is done again. A piece whose readers die ``DEATHS`` times is read item
by item, so that only an item that kills its reader each time is lost, and listed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from atoken.errors import StoreError
from atoken.store import pool, shards
from atoken.store.reading import DEATHS, Job, Read, given, killed, read_here
from atoken.store.units import Report, encode_unit, encoder

if TYPE_CHECKING:
    from atoken.tokenizer import Tokenizer

PIECE = 32  # items that are read at once: few, so that all readers are busy to the end


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
                # Few units are in memory, and no reader is idle as long as there are pieces to read.
                most = self._workers + len(encoders)
                while waiting and readers.units + len(ready) < most and len(readers.futures) <= self._workers:
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


class _Piece(NamedTuple):
    """Consecutive items of a unit, which has so many pieces."""

    unit: int
    number: int
    items: range
    pieces: int


class _Readers:
    """A pool of processes that read pieces of units, made again when one of them dies. ``futures``: what they read."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job, self._workers = job, workers
        self._deaths: Counter[_Piece] = Counter()
        self._read: dict[int, dict[int, Read]] = {}  # by unit and number of a piece
        self.futures: dict[Future[Read], _Piece] = {}
        self._pool = pool.started(job, workers)

    @property
    def units(self) -> int:
        """How many units have been begun and are not read yet."""
        return len(self._read)

    def submit(self, unit: int) -> None:
        """Begin to read a unit."""
        items, self._read[unit] = self._job.plan.items_of(unit), {}
        starts = range(0, len(items), PIECE)
        for number, start in enumerate(starts):
            self._submit(_Piece(unit, number, items[start : start + PIECE], len(starts)))

    def _submit(self, piece: _Piece) -> None:
        self.futures[pool.submitted(self._pool, read_here, piece.unit, piece.items)] = piece

    def collect(self) -> Iterator[Read]:
        """Units that have been read; pieces whose reader died are begun again. Raises: AtokenError."""
        died = False
        for future in [future for future in self.futures if future.done()]:
            try:
                read = future.result()
            except BrokenProcessPool:
                died = True
                continue
            yield from self._add(self.futures.pop(future), read)
        if died:
            yield from self._again()

    def _add(self, piece: _Piece, read: Read) -> Iterator[Read]:
        """The unit of a piece, if it was the last."""
        parts = self._read[piece.unit]
        parts[piece.number] = read
        if len(parts) == piece.pieces:
            whole = [parts[number] for number in range(piece.pieces)]
            items = tuple(item for part in whole for item in part.items)
            del self._read[piece.unit]
            yield Read(piece.unit, items, sum(part.seconds for part in whole))

    def _again(self) -> Iterator[Read]:
        pieces = sorted(self.futures.values())  # all futures of a broken pool fail
        self.close()
        self.futures.clear()
        self._pool = pool.started(self._job, self._workers)
        for piece in pieces:
            self._deaths[piece] += 1
            if self._deaths[piece] < DEATHS:
                self._submit(piece)
            else:
                yield from self._add(piece, _one_by_one(self._job, piece))

    def close(self) -> None:
        """End all processes."""
        pool.end(self._pool)


def _one_by_one(job: Job, piece: _Piece) -> Read:
    """Read a piece that killed its readers item by item, alone; the items that do so again and again have failed."""
    start = perf_counter()
    reads = pool.one_by_one(job, read_here, ((piece.unit, [item]) for item in piece.items))
    found = [read.items[0] if read else killed(job, item) for item, read in zip(piece.items, reads, strict=True)]
    return Read(piece.unit, tuple(found), perf_counter() - start)


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
        self._pool = pool.started(job, 1)

    def close(self) -> None:
        """End it at once; a unit that it has is made again by the next run."""
        pool.end(self._pool)

    def submit(self, read: Read) -> None:
        """Begin to encode a unit."""
        self._read = read
        self.future = pool.submitted(self._pool, _encode_on, self._device, read)

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
            pool.end(self._pool)
            self._pool = pool.started(self._job, 1)
            self.submit(self._read)
            return None
        if report:
            self._deaths = 0
        return report


def _encode_on(device: str, read: Read) -> Report:
    return encode_unit(given(), _loaded(device), read)


@cache
def _loaded(device: str) -> Tokenizer:
    return encoder(given(), device=device)
