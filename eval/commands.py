"""What the commands do: rows are measured, written with their reports, and shown."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from atoken.cli.console import out as say
from atoken.errors import AtokenError, MissingExtraError
from atoken.train.record import versions
from eval.compare import compare as side_by_side
from eval.compare import plain
from eval.contract import Model
from eval.generated import generated, network_of
from eval.job import Job
from eval.measures import Needs, built
from eval.models.by_name import device_of, file_name, model_of, tokenizer_of
from eval.probes.table import markdown, probed
from eval.protocol import FORMAT
from eval.rate import rate as measured_rate
from eval.report.page import report as write_report
from eval.report.results import read_results
from eval.report.tables import by_task, numbers_table
from eval.run import Ranks, measure, write_json
from eval.shards import make_folder
from eval.sources.entry import Listing, Prepared
from eval.sources.folders import local
from eval.tasks import LOCAL, TASKS, Task

_TELLING = ("python", "atoken", "torch", "numpy", "scipy", "pillow", "av", "transformers", "trimesh", "embreex")
OUT = "out"  # folder of folders of results, one for each model


def reconstruct(options: argparse.Namespace) -> int:
    """A user's own folder: a row for each modality that is in it."""
    found = local(Path(options.folder))
    return _measured(options, [(LOCAL[modality], _given(listing)) for modality, listing in found.items()])


def run(options: argparse.Namespace) -> int:
    """One task."""
    if options.task not in TASKS:
        raise AtokenError(f"There is no task {options.task!r}; take one of: {', '.join(TASKS)}.")
    task = TASKS[options.task]
    listing = task.open(Path(options.data) / task.folder)
    return _measured(options, [(task, _given(listing))])


def table3(options: argparse.Namespace) -> int:
    """The tasks of the paper's table 3. Those whose data are not there are rows that say so."""
    tasks = [task for task in TASKS.values() if task.table3]
    return _measured(options, [(task, _below(Path(options.data), task)) for task in tasks])


def _given(listing: Listing) -> Callable[[], Listing]:
    return lambda: listing


def _below(root: Path, task: Task) -> Callable[[], Listing]:
    return lambda: task.open(root / task.folder)


# --------------------------------------------------------------------------------------------------------- measuring


def _measured(options: argparse.Namespace, wanted: Sequence[tuple[Task, Callable[[], Listing]]]) -> int:
    """Measure, write and show; nothing of the last two on ranks other than 0."""
    start, ranks = time.time(), Ranks.launched()
    folder = Path(options.out or Path(OUT) / file_name(model_of(options).name))
    make_folder(folder)
    rows = [_row(options, task, entries, model_of(options, task.pool), folder, ranks) for task, entries in wanted]
    if ranks.rank:
        return 0
    return _written(folder, [row for row in rows if row], _run(start, ranks, device_of(options)), options)


def _row(
    options: argparse.Namespace,
    task: Task,
    entries: Callable[[], Listing],
    model: Model,
    folder: Path,
    ranks: Ranks,
) -> dict[str, Any] | None:
    try:
        listing = entries()
    except AtokenError as error:
        return _missing(task, model, str(error))
    return measure(job(options, task, listing, model), folder, ranks)


def job(options: argparse.Namespace, task: Task, listing: Listing, model: Model) -> Job:
    """A task with its data and its metrics."""
    weights = None if options.weights is None else Path(options.weights)
    needs = Needs(model, listing.classes, task.templates, weights, device_of(options), options.trust)
    metrics, skipped = built(task.metrics, needs)
    items = getattr(options, "items", None)
    return Job(
        task.name,
        task.modality,
        task.make,
        Prepared(listing.first(items).entries, task.prepare),
        model,
        metrics,
        task.prepare.record(),
        "none" if task.templates is None else task.templates.name,
        skipped,
        task.full or len(listing.entries),
        task.shard,
        task.batch,
    )


def _missing(task: Task, model: Model, why: str) -> dict[str, Any]:
    """The row of a task whose data are not there."""
    return {
        "task": task.name, "model": model.name, "identity": dict(model.record), "modality": task.modality,
        "status": "failed", "why": why, "protocol": {}, "numbers": {}, "faults": {}, "skipped": {},
        "items": {"planned": 0, "measured": 0, "full": task.full or 0}, "failed": [],
    }  # fmt: skip


def _run(start: float, ranks: Ranks, where: str) -> dict[str, Any]:
    """What may differ between two runs that give the same numbers."""
    return {
        "started": datetime.fromtimestamp(start, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - start, 1),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(where) if where.startswith("cuda") else where,
        "ranks": ranks.world,
        "threads": torch.get_num_threads(),
        "versions": {name: found for name, found in versions().items() if name in _TELLING},
    }


# ----------------------------------------------------------------------------------------------------------- showing


def _written(folder: Path, rows: Sequence[dict[str, Any]], run: Mapping[str, Any], options: argparse.Namespace) -> int:
    """Write the result file, then the rest; the exit code."""
    make_folder(folder)
    path = folder / "result.json"
    write_json(path, {"format": FORMAT, "rows": rows, "run": run})
    _show(path, as_json=options.json)
    return int(any(row["status"] != "complete" for row in rows))


def _show(path: Path, *, as_json: bool) -> None:
    """Write both reports beside a result file, and show what is in it."""
    pages = [written for end in ("md", "html") if (written := _report(path, path.with_name(f"report.{end}")))]
    if as_json:
        say(path.read_text().rstrip())
        return
    rows = read_results([path])
    for task, of in by_task(rows).items():
        say(f"{task}\n{plain(numbers_table(of))}\n")
    for line in dict.fromkeys(line for row in rows for line in _complaints(row.record)):
        print(f"eval: {line}", file=sys.stderr)  # noqa: T201 - the program's voice
    say("\n".join(map(str, [path, *pages])))


def _report(result: Path, target: Path) -> Path | None:
    try:
        return write_report([result], target)
    except MissingExtraError as error:
        print(f"eval: note: {error}", file=sys.stderr)  # noqa: T201 - the program's voice
        return None


def _complaints(row: Mapping[str, Any]) -> Iterator[str]:
    """What a row lacks, and why."""
    if row["why"]:
        yield f"{row['task']}: {row['why']}"
    for metric, why in (row["faults"] | row["skipped"]).items():
        yield f"no {metric}: {why}"
    for one in row["failed"]:
        yield f"{one['key']}: {one['why']}"


def generation(options: argparse.Namespace) -> int:
    """Samples of a generator against a reference."""
    if Ranks.launched().rank:
        return 0
    start, where = time.time(), device_of(options)
    network = network_of(options.network, options.weights, where, trust=options.trust)
    row = generated(Path(options.samples), Path(options.reference), network)
    folder = Path(options.out or Path(OUT) / file_name(row["model"]))
    return _written(folder, [row], _run(start, Ranks(), where), options)


def rate(options: argparse.Namespace) -> int:
    """Tokenizers and codecs by bytes; exit code 1 where files could not be read."""
    if Ranks.launched().rank:
        return 0
    folder = Path(options.out or Path(OUT) / "rate")
    each = [argparse.Namespace(**vars(options) | {"model": model, "sample": None}) for model in options.model]
    models = [tokenizer_of(one) for one in each if ":" not in one.model]
    measured_rate(options.folder, folder, models=models, peers=[model_of(one) for one in each if ":" in one.model])
    found = (folder / "rate.json").read_text()
    say(found.rstrip() if options.json else f"{(folder / 'rate.md').read_text()}\n{folder}")
    return int(bool(json.loads(found)["failed"]))


def probes(options: argparse.Namespace) -> int:
    """Probes of a tokenizer's vectors and tokens."""
    found = probed(tokenizer_of(options))
    say(json.dumps(found, indent=1) if options.json else markdown(found))
    return 0


def compare(options: argparse.Namespace) -> int:
    """Rows side by side; exit code 1 where some do not compare."""
    found = side_by_side(options.results)
    for table in found.tables:
        say(f"{table.title}\n{plain(table)}\n")
    for line in (*found.alone, *found.refused):
        print(f"eval: {line}", file=sys.stderr)  # noqa: T201
    return int(bool(found.refused))


def report(options: argparse.Namespace) -> int:
    """One page of several result files."""
    say(str(write_report(options.results, options.out, options.boxes)))
    return 0
