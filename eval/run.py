"""One row: items through a model into metrics, shard by shard, on any number of ranks, across any number of kills.

Rank r of w measures the shards r, r + w, ... and ends; rank 0 waits for the files of the others and merges all shards
in order. So ranks need a common folder and nothing else; where one dies, its launcher ends the rest, and the same
command measures what is missing.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from atoken.atomic import atomic_path
from atoken.errors import ReportError
from eval.job import Job
from eval.measuring import measured
from eval.merging import merge
from eval.shards import Shard, ShardFolder

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
