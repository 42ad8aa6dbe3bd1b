"""The states of all shards to one row: numbers, what failed, the worst items, and images of some."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoken.atomic import atomic_path
from atoken.errors import AtokenError, ReportError
from atoken.io import Image, write_image
from eval.contract import State
from eval.job import Job
from eval.protocol import MOST_LISTED
from eval.report.findings import keep
from eval.shards import Row, Shard, make_folder

IMAGES = 8  # of the worst items and, as many, evenly over all, that are kept for a report


@dataclass
class _Seen:
    """What goes by while shards are merged: constant in memory but for the numbers of the items that failed."""

    measured: int = 0
    failed: list[int] = field(default_factory=list)
    listed: list[dict[str, str]] = field(default_factory=list)
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)  # numbers that are not finite: how many, one key
    worst: list[tuple[float, int, Row]] = field(default_factory=list)  # a heap, the best of the worst first

    def add(self, index: int, row: Row) -> None:
        if "failed" in row:
            self.failed.append(index)
            self.listed += [{"key": row["key"], "why": row["failed"]}][: MOST_LISTED - len(self.listed)]
            return
        self.measured += 1
        for name, value in row.items():
            if name != "key" and isinstance(value, str):
                count, key = self.broken.get(name, (0, row["key"]))
                self.broken[name] = count + 1, key
        if "psnr" in row:
            badness = -float(row["psnr"])
            entry = (math.inf if math.isnan(badness) else badness, -index, row)
            (heapq.heappush if len(self.worst) < IMAGES else heapq.heappushpop)(self.worst, entry)

    def why(self, name: str, value: float) -> str:
        """Say of a number that is not finite which items have none either."""
        count, key = self.broken.get(name, (0, ""))
        return f"{name} is {value}" + (f"; so it is of {count:,} items, such as {key}." if count else ".")


def merge(job: Job, folder: Path, shards: Iterable[Shard]) -> dict[str, Any]:
    """Fold the states of all shards in order, write the files of the run's folder, and make the row.

    Raises: ReportError.
    """
    states: dict[str, State] = {metric.name: metric.start() for metric in job.metrics}
    skipped, seen = dict(job.skipped), _Seen()
    make_folder(folder)
    with atomic_path(folder / "items.jsonl", ReportError) as temporary, temporary.open("w") as lines:
        for number, shard in enumerate(shards):
            for name, why in shard.faults.items():
                skipped.setdefault(name, why)
                states.pop(name, None)
            for metric in job.metrics:
                if metric.name in states:
                    states[metric.name] = metric.merge(states[metric.name], shard.states.get(metric.name, {}))
            for index, row in zip(job.items_of(number), shard.rows, strict=True):
                seen.add(index, row)
                lines.write(json.dumps(row, allow_nan=False) + "\n")
    numbers, faults = _numbers(job, states, skipped, seen)
    return _row(job, folder, seen, numbers, faults, skipped)


def _numbers(
    job: Job, states: Mapping[str, State], skipped: dict[str, str], seen: _Seen
) -> tuple[dict[str, tuple[str, float]], dict[str, str]]:
    """Finite numbers by name, with their metrics; and metrics with a number that is not, with a sentence."""
    numbers: dict[str, tuple[str, float]] = {}
    faults: dict[str, str] = {}
    for metric in job.metrics:
        if metric.name not in states or not seen.measured:
            continue
        try:
            found = metric.finish(states[metric.name])
        except AtokenError as error:
            skipped[metric.name] = str(error)
            continue
        assert not found.keys() & numbers.keys(), "two metrics have a number of one name"
        numbers |= {name: (metric.name, value) for name, value in found.items() if math.isfinite(value)}
        if wrong := [seen.why(name, value) for name, value in found.items() if not math.isfinite(value)]:
            faults[metric.name] = " ".join(wrong)
    return numbers, faults


def _row(
    job: Job,
    folder: Path,
    seen: _Seen,
    numbers: Mapping[str, tuple[str, float]],
    faults: Mapping[str, str],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    lost = set(seen.failed)
    kept = [metric for metric in job.metrics if metric.name not in skipped]
    protocol = job.protocol([index for index in range(len(job.data)) if index not in lost], kept)
    full = len(job.data) if job.full is None else job.full
    status, why = _status(seen, len(job.data), full, numbers, faults, skipped)
    return {
        "task": job.task,
        "model": job.model.name,
        "identity": dict(job.model.record),
        "modality": job.modality,
        "status": status,
        "why": why,
        "protocol": protocol.record(),
        "numbers": {
            name: {"value": value, "metric": metric, "fingerprint": protocol.fingerprint(metric)}
            for name, (metric, value) in numbers.items()
        },
        "faults": dict(faults),
        "skipped": dict(skipped),
        "items": {
            "planned": len(job.data),
            "measured": seen.measured,
            "full": full,
            "file": f"{folder.name}/items.jsonl",
        },
        "failed": seen.listed,
    } | _images(job, folder, seen)


def _status(
    seen: _Seen,
    planned: int,
    full: int,
    numbers: Mapping[str, object],
    faults: Mapping[str, str],
    skipped: Mapping[str, str],
) -> tuple[str, str]:
    if not seen.measured:
        first = f" ({seen.listed[0]['why'].rstrip('.')})" if seen.listed else ""
        return "failed", f"None of {planned:,} items could be measured{first}."
    if faults:
        return "failed", f"A number is not finite: {', '.join(faults)}."
    if not numbers:
        return "failed", f"No metric gave a number: {' '.join(skipped.values())}".strip()
    if seen.measured != full:
        return "partial", f"Measured were {seen.measured:,} items, and the whole data set has {full:,}."
    return "complete", ""


def _images(job: Job, folder: Path, seen: _Seen) -> dict[str, list[dict[str, Any]]]:
    """Originals and reconstructions of a few items, made once more; none for tasks without reconstructions."""
    if job.make != "reconstruct" or not seen.measured:
        return {}
    lost, count = set(seen.failed), len(job.data)
    even = [number * count // IMAGES for number in range(IMAGES)] if count > IMAGES else range(count)
    worst = {-place: row for _, place, row in sorted(seen.worst, key=lambda one: (-one[0], -one[1]))}
    wanted = {"worst": worst, "shown": {index: {"key": job.data.key(index)} for index in even if index not in lost}}
    make_folder(folder / "images")
    saved = {index: _saved(job, folder, index) for index in {**wanted["worst"], **wanted["shown"]}}
    return {
        block: [row | paths for index, row in rows.items() if (paths := saved[index])] for block, rows in wanted.items()
    }


def _saved(job: Job, folder: Path, index: int) -> dict[str, str]:
    """The files of one item's two images, relative to where the result file is; none where it has no images."""
    (sample,) = job.model.reconstruct([job.data[index]])
    if (pair := keep(sample)) is None:
        return {}
    paths = {}
    for side, pixels in zip(("target", "prediction"), pair, strict=True):
        paths[side] = f"images/{index:06d}-{side}.png"
        write_image(Image(pixels), folder / paths[side])
    return {side: f"{folder.name}/{path}" for side, path in paths.items()}
