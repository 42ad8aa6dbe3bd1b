"""The states of all shards to one row: numbers, what failed, the worst items, and images of some."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoken.atomic import atomic_path
from atoken.errors import AtokenError, ReportError
from atoken.io import Image, write_image
from eval.contract import State
from eval.job import Job
from eval.protocol import MOST_LISTED, result_row
from eval.report.findings import keep
from eval.shards import ItemLine, Shard, make_folder

IMAGES = 8  # of the worst items and, as many, evenly over all, that are kept for a report


@dataclass
class _Summary:
    """What is noted of items while shards are merged: constant in memory but for the numbers of those that failed."""

    measured: int = 0
    failed: list[int] = field(default_factory=list)
    listed: list[dict[str, str]] = field(default_factory=list)
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)  # numbers that are not finite: how many, one key
    worst: list[tuple[float, int, ItemLine]] = field(default_factory=list)  # a heap, the best of the worst first

    def add(self, index: int, line: ItemLine) -> None:
        if "failed" in line:
            self.failed.append(index)
            self.listed += [{"key": line["key"], "why": line["failed"]}][: MOST_LISTED - len(self.listed)]
            return
        self.measured += 1
        for name, value in line.items():
            if name not in ("key", "answer") and isinstance(value, str):
                count, key = self.broken.get(name, (0, line["key"]))
                self.broken[name] = count + 1, key
        if "psnr" in line:
            badness = -float(line["psnr"])
            entry = (math.inf if math.isnan(badness) else badness, -index, line)
            (heapq.heappush if len(self.worst) < IMAGES else heapq.heappushpop)(self.worst, entry)

    def why(self, name: str, value: float) -> str:
        """A sentence on a number that is not finite, with the items whose own number is not finite either."""
        count, key = self.broken.get(name, (0, ""))
        return f"{name} is {value}" + (f"; it is not finite for {count:,} items, such as {key}." if count else ".")


def merge(job: Job, folder: Path, shards: Iterable[Shard]) -> dict[str, Any]:
    """Fold the states of all shards in order, write the files of the run's folder, and return the row.

    Raises: ReportError.
    """
    states: dict[str, State] = {metric.name: metric.start() for metric in job.metrics}
    skipped, summary = dict(job.skipped), _Summary()
    make_folder(folder)
    with atomic_path(folder / "items.jsonl", ReportError) as temporary, temporary.open("w") as file:
        for number, shard in enumerate(shards):
            for name, why in shard.faults.items():
                skipped.setdefault(name, why)
                states.pop(name, None)
            for metric in job.metrics:
                if metric.name in states:
                    states[metric.name] = metric.merge(states[metric.name], shard.states.get(metric.name, {}))
            for index, line in zip(job.items_of(number), shard.lines, strict=True):
                summary.add(index, line)
                file.write(json.dumps(line, allow_nan=False) + "\n")
    numbers: dict[str, tuple[str, float]] = {}
    faults: dict[str, str] = {}
    for metric in [metric for metric in job.metrics if metric.name in states and summary.measured]:
        try:
            found = metric.finish(states[metric.name])
        except AtokenError as error:
            skipped[metric.name] = str(error)
            continue
        assert not found.keys() & numbers.keys(), "two metrics have a number of one name"
        numbers |= {name: (metric.name, value) for name, value in found.items() if math.isfinite(value)}
        if wrong := [summary.why(name, value) for name, value in found.items() if not math.isfinite(value)]:
            faults[metric.name] = " ".join(wrong)

    lost, planned = set(summary.failed), len(job.data)
    full = planned if job.full is None else job.full
    status, why = "complete", ""
    if not summary.measured:
        first = f" ({summary.listed[0]['why'].rstrip('.')})" if summary.listed else ""
        status, why = "failed", f"None of {planned:,} items could be measured{first}."
    elif faults:
        status, why = "failed", f"A number is not finite: {', '.join(faults)}."
    elif not numbers:
        status, why = "failed", f"No metric gave a number: {' '.join(skipped.values())}".strip()
    elif summary.measured != full:
        status, why = "partial", f"{summary.measured:,} items were measured, and the whole data set has {full:,}."
    kept = [index for index in range(planned) if index not in lost]
    protocol = job.protocol(kept, [metric for metric in job.metrics if metric.name not in skipped])
    items = {"planned": planned, "measured": summary.measured, "full": full, "file": f"{folder.name}/items.jsonl"}
    return result_row(
        job.task.name, job.model.name, job.model.record, job.task.modality, protocol, numbers, status=status, why=why,
        faults=faults, skipped=skipped, failed=summary.listed, items=items, **_images(job, folder, summary, lost),
    )  # fmt: skip


def _images(job: Job, folder: Path, summary: _Summary, lost: set[int]) -> dict[str, list[dict[str, Any]]]:
    """Originals and reconstructions of a few items, made once more; none for tasks without reconstructions."""
    if job.task.make != "reconstruct" or not summary.measured:
        return {}
    count = len(job.data)
    even = [number * count // IMAGES for number in range(IMAGES)] if count > IMAGES else range(count)
    worst = {-place: line for _, place, line in sorted(summary.worst, key=lambda one: (-one[0], -one[1]))}
    wanted = {"worst": worst, "shown": {index: {"key": job.data.key(index)} for index in even if index not in lost}}
    make_folder(folder / "images")
    saved = {index: _saved(job, folder, index) for index in {**wanted["worst"], **wanted["shown"]}}
    return {block: [line | saved[index] for index, line in lines.items()] for block, lines in wanted.items()}


def _saved(job: Job, folder: Path, index: int) -> dict[str, str]:
    """The files of one item's two images, relative to the folder of the result file; none where it has no images."""
    (output,) = job.model.reconstruct([job.data[index]])
    if (pair := keep(output)) is None:
        return {}
    paths = {}
    for side, pixels in zip(("target", "prediction"), pair, strict=True):
        paths[side] = f"images/{index:06d}-{side}.png"
        write_image(Image(pixels), folder / paths[side])
    return {side: f"{folder.name}/{path}" for side, path in paths.items()}
