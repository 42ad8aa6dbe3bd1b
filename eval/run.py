"""One row: items through a model into metrics, shard by shard, on any number of ranks, across any number of kills.

Rank r of w measures the shards r, r + w, ... and ends; rank 0 waits for the files of the others and merges all shards
in order. So ranks need a common folder and nothing else; where one dies, its launcher ends the rest, and the same
command measures what is missing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from atoken.atomic import atomic_path
from atoken.errors import AtokenError, ReportError
from eval.contract import Item, Output, State
from eval.job import Job
from eval.merging import merge
from eval.shards import ItemLine, Shard, ShardFolder

_PAUSE = 0.2  # seconds between two looks for another rank's shard


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def launched() -> Ranks:
        """What a launcher such as torchrun says."""
        return Ranks(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def measure(job: Job, out: Path, ranks: Ranks = Ranks()) -> dict[str, Any] | None:
    """The row of a job, as ``eval/protocol.py`` describes it; None on ranks other than 0.

    What was measured before, by this or another process, is in a folder of its own below ``out`` and is not measured
    again. Raises: ReportError (a folder that cannot be written); never for items that cannot be read.
    """
    assert len({metric.name for metric in job.metrics}) == len(job.metrics)
    name = job.name()
    folder = out / f"{job.task.name}-{name[:8]}"
    shards = ShardFolder(folder / "shards", name)
    row = _finished(folder / "row.json", name)
    if row is None:
        _measure_own(job, shards, ranks)
        if ranks.rank:
            return None
        row = merge(job, folder, (_arrived(job, shards, number) for number in range(job.shards)))
        write_json(folder / "row.json", {"run": name, "row": row})
    if ranks.rank:
        return None
    shards.clear()  # a finished row does not need them, and with wide features they are gigabytes
    return row


def _finished(path: Path, name: str) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
        return found["row"] if found["run"] == name else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write plain values, all of them finite, atomically. Raises: ReportError."""
    with atomic_path(path, ReportError) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def _measure_own(job: Job, shards: ShardFolder, ranks: Ranks) -> None:
    own, quiet = range(ranks.rank, job.shards, ranks.world), ranks.rank > 0 or None
    total = sum(len(job.items_of(number)) for number in own)
    with tqdm(total=total, desc=job.task.name, unit=" items", delay=1, disable=quiet, leave=False) as bar:
        for number in own:
            if shards.read(number) is None:
                shards.write(number, measured(job, number, bar.update))
            else:
                bar.update(len(job.items_of(number)))


def _arrived(job: Job, shards: ShardFolder, number: int) -> Shard:
    """A shard, once its rank has written it; one that was damaged since is measured again."""
    while not shards.path(number).exists():
        time.sleep(_PAUSE)
    found = shards.read(number)
    if found is None:
        found = measured(job, number, lambda _: None)
        shards.write(number, found)
    return found


# --------------------------------------------------------------------------------------------------------- one shard


def measured(job: Job, number: int, done: Callable[[int], object]) -> Shard:
    """Measure the items of a shard; batches start anew in each, so that ranks do not change them."""
    states: dict[str, State] = {metric.name: metric.start() for metric in job.metrics}
    lines: list[ItemLine] = []
    faults: dict[str, str] = {}
    indices, batch = job.items_of(number), job.task.batch
    # Closed here: if Python collected it while another thread starts, joining its thread would wait for ever.
    with closing(_ahead(lambda index: _read(job, index), indices, batch)) as found:
        for first in range(0, len(indices), batch):
            block = indices[first : first + batch]
            lines += _fold(job, block, [next(found) for _ in block], states, faults)
            done(len(block))
    return Shard(states, lines, faults)


def _ahead(
    read: Callable[[int], Item | AtokenError], indices: Sequence[int], depth: int
) -> Generator[Item | AtokenError]:
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
    for line, output in zip(numbers, outputs, strict=True):
        line |= {} if output.answer is None else {"answer": output.answer}
    lines = iter(numbers)
    return [
        {"key": job.data.key(index)} | (next(lines) if isinstance(result, Output) else {"failed": str(result)})
        for index, result in zip(indices, results, strict=True)
    ]


def _outputs(job: Job, items: Sequence[Item]) -> list[Output | AtokenError]:
    """What the model makes of a batch; where it fails, of each item alone."""
    make = getattr(job.model, job.task.make)
    if not items:
        return []
    try:
        return [*make(items)]
    except AtokenError as error:
        return [error] if len(items) == 1 else [one for item in items for one in _outputs(job, [item])]
