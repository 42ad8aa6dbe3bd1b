"""One shard: its items read ahead, through the model, into the metrics."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from atoken.errors import AtokenError
from eval.contract import Item, Sample, Source, State
from eval.job import Job
from eval.shards import Row, Shard


def measured(job: Job, number: int, done: Callable[[int], object]) -> Shard:
    """Measure the items of a shard; batches begin anew in each, so that they are the same however ranks are many."""
    states: dict[str, State] = {metric.name: metric.start() for metric in job.metrics}
    rows: list[Row] = []
    faults: dict[str, str] = {}
    indices = job.items_of(number)
    found = _ahead(lambda index: _read(job.data, index), indices, job.batch)
    for first in range(0, len(indices), job.batch):
        block = indices[first : first + job.batch]
        rows += _fold(job, [job.data.key(index) for index in block], [next(found) for _ in block], states, faults)
        done(len(block))
    return Shard(states, rows, faults)


def _ahead(
    read: Callable[[int], Item | AtokenError], indices: Sequence[int], depth: int
) -> Iterator[Item | AtokenError]:
    """Results in order, read by one thread while the networks are busy with those before."""
    waiting: deque[Future[Item | AtokenError]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(read, index))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(data: Source, index: int) -> Item | AtokenError:
    try:
        return data[index]
    except AtokenError as error:
        return error


def _fold(
    job: Job,
    keys: Sequence[str],
    found: Sequence[Item | AtokenError],
    states: dict[str, State],
    faults: dict[str, str],
) -> list[Row]:
    """A row for each item of a batch. A metric that cannot take a sample is out, with its sentence in ``faults``."""
    made = iter(_samples(job, [item for item in found if isinstance(item, Item)]))
    results = [next(made) if isinstance(item, Item) else item for item in found]
    samples = [sample for sample in results if isinstance(sample, Sample)]
    numbers: list[Row] = [{} for _ in samples]
    for metric in job.metrics:
        if metric.name not in states:
            continue
        try:
            alone = metric.add(states[metric.name], samples) if samples else []
        except AtokenError as error:
            faults[metric.name] = str(error)
            del states[metric.name]
            continue
        for row, more in zip(numbers, alone, strict=True):
            row |= {name: value if math.isfinite(value) else str(value) for name, value in more.items()}
    rows = iter(numbers)
    return [
        {"key": key} | (next(rows) if isinstance(result, Sample) else {"failed": str(result)})
        for key, result in zip(keys, results, strict=True)
    ]


def _samples(job: Job, items: Sequence[Item]) -> list[Sample | AtokenError]:
    """What the model makes of a batch; where it fails, of each item alone."""
    make = job.model.reconstruct if job.make == "reconstruct" else job.model.embed
    if not items:
        return []
    try:
        return [*make(items)]
    except AtokenError as error:
        return [error] if len(items) == 1 else [one for item in items for one in _samples(job, [item])]
