"""One shard: its items are read ahead, go through the model, and are folded into the metrics."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from atoken.errors import AtokenError
from eval.contract import Item, Output, State
from eval.job import Job
from eval.shards import ItemLine, Shard


def measured(job: Job, number: int, done: Callable[[int], object]) -> Shard:
    """Measure the items of a shard; batches start anew in each, so that ranks do not change them."""
    states: dict[str, State] = {metric.name: metric.start() for metric in job.metrics}
    lines: list[ItemLine] = []
    faults: dict[str, str] = {}
    indices, batch = job.items_of(number), job.task.batch
    found = _ahead(lambda index: _read(job, index), indices, batch)
    for first in range(0, len(indices), batch):
        block = indices[first : first + batch]
        lines += _fold(job, block, [next(found) for _ in block], states, faults)
        done(len(block))
    return Shard(states, lines, faults)


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


def _read(job: Job, index: int) -> Item | AtokenError:
    try:
        return job.data[index]
    except AtokenError as error:
        return error


def _fold(
    job: Job,
    indices: Sequence[int],
    found: Sequence[Item | AtokenError],
    states: dict[str, State],
    faults: dict[str, str],
) -> list[ItemLine]:
    """A line for each item of a batch. A metric that cannot take an output is left out, and ``faults`` says why."""
    made = iter(_outputs(job, [item for item in found if isinstance(item, Item)]))
    results = [next(made) if isinstance(item, Item) else item for item in found]
    outputs = [result for result in results if isinstance(result, Output)]
    numbers: list[ItemLine] = [{} for _ in outputs]
    for metric in job.metrics:
        if metric.name not in states:
            continue
        try:
            alone = metric.add(states[metric.name], outputs) if outputs else []
        except AtokenError as error:
            faults[metric.name] = str(error)
            del states[metric.name]
            continue
        for line, more in zip(numbers, alone, strict=True):
            line |= {name: value if math.isfinite(value) else str(value) for name, value in more.items()}
    lines = iter(numbers)
    return [
        {"key": job.data.key(index)} | (next(lines) if isinstance(result, Output) else {"failed": str(result)})
        for index, result in zip(indices, results, strict=True)
    ]


def _outputs(job: Job, items: Sequence[Item]) -> list[Output | AtokenError]:
    """What the model makes of a batch; where it fails, of each item alone."""
    make = job.model.reconstruct if job.task.make == "reconstruct" else job.model.embed
    if not items:
        return []
    try:
        return [*make(items)]
    except AtokenError as error:
        return [error] if len(items) == 1 else [one for item in items for one in _outputs(job, [item])]
