"""What the commands do: rows are measured, written with their reports, and shown."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from atoken.cli.console import out as say
from atoken.errors import AtokenError, MissingExtraError
from atoken.train.record import versions
from eval.actions import actions as named_actions
from eval.compare import compare as side_by_side
from eval.compare import plain
from eval.contract import Model
from eval.english import NAME as ENGLISH
from eval.english import measured as measured_english
from eval.generation import generated, network_of
from eval.job import Job, Task
from eval.lmms import TABLES
from eval.lmms import table_row as table_row_of_lmms
from eval.measures import Needs, built
from eval.models.answers import Answers, VisionLanguage
from eval.models.by_name import device_of, file_name, model_of, tokenizer_of
from eval.models.features import Features
from eval.models.tokenizer import AToken
from eval.networks import I3D, Network
from eval.probes.table import markdown, probed
from eval.protocol import FORMAT, digest, result_row
from eval.published import BUNDLED, NETWORKS, SAMPLES, reference_of, table_row, table_samples
from eval.rate import rate as measured_rate
from eval.report.page import report as write_report
from eval.report.results import read_results
from eval.report.tables import by_task, numbers_table
from eval.run import Ranks, measure, write_json
from eval.shards import make_folder
from eval.sources.entry import Listing, Prepared
from eval.sources.folders import local
from eval.tasks import LOCAL, TASKS
from eval.videos import videos_row

_VERSIONS = ("python", "atoken", "torch", "numpy", "scipy", "pillow", "av", "transformers", "trimesh", "embreex")
OUT = "out"  # of results, in folders MODEL/RUN
MOST_TASKS = 3  # tasks in the name of a folder
SETTINGS = ("dtype", "sample", "seed", "items")  # options that name a run, where they are given


def result_folder(options: argparse.Namespace, model: str, run: str) -> Path:
    """The folder for results: that of -o, or one that is named by model, data and settings.

    The same command finds its own results there, and goes on with what is missing; another one has another folder.
    """
    given = {name: getattr(options, name, None) for name in SETTINGS}
    changed = [f"{name}-{value}" for name, value in given.items() if value not in (None, "auto")]
    return Path(options.out or Path(OUT) / file_name(model) / "-".join([run, *changed]))


def reconstruct(options: argparse.Namespace) -> int:
    """A user's own folder: a row for each modality that is in it."""
    found = local(Path(options.folder))
    tasks = [replace(LOCAL[name], open=partial(_given, of)) for name, of in found.items()]
    return _measured(options, tasks, f"reconstruct-{file_name(options.folder)}")


def _given(listing: Listing, _: object) -> Listing:
    return listing


def run(options: argparse.Namespace) -> int:
    """Some tasks."""
    for name in options.task:
        if name not in TASKS:
            raise AtokenError(f"There is no task {name!r}; choose from: {', '.join(TASKS)}.")
    names = [*dict.fromkeys(options.task)]
    more = "" if len(names) <= MOST_TASKS else f"+{len(names) - MOST_TASKS}-more-{digest(names)[:6]}"
    called = "+".join(names[:MOST_TASKS]) + more + _of_data(options)
    return _measured(options, [TASKS[name] for name in names], called, options.seed)


def table3(options: argparse.Namespace) -> int:
    """The tasks of the paper's table 3."""
    return _measured(options, [task for task in TASKS.values() if task.table3], "table3" + _of_data(options))


def _of_data(options: argparse.Namespace) -> str:
    return "" if options.data == "." else f"-of-{file_name(options.data)}"


# --------------------------------------------------------------------------------------------------------- measuring


def _measured(options: argparse.Namespace, tasks: Sequence[Task], called: str, seed: int | None = None) -> int:
    """Measure, write and show; ranks other than 0 only measure. A task whose data are missing is a row that says so."""
    start, ranks = time.time(), Ranks.launched()
    if seed is not None and all(task.folder is not None for task in tasks):
        raise AtokenError("These tasks read files, and nothing is drawn from a seed; leave --seed out.")
    first = model_of(options)  # what is wrong with it is said before anything is written
    if (task := next((one for one in tasks if one.make == "answer"), None)) and not isinstance(first, Answers):
        raise AtokenError(f"{task.name} asks questions; choose a vision-language model, such as --model vl:vl-nano.")
    folder = result_folder(options, options.model, called)
    make_folder(folder)
    rows = []
    for task in tasks:
        model = model_of(options, **task.model)
        try:
            listing = task.listing(Path(getattr(options, "data", ".")), seed)
        except AtokenError as error:
            described = task.name, model.name, model.record, task.modality
            items = {"planned": 0, "measured": 0, "full": task.full or 0}
            rows.append(result_row(*described, None, {}, status="failed", why=str(error), items=items))
        else:
            models = (model, *task.further(model, listing))
            rows += filter(None, [measure(job(options, task, listing, one), folder, ranks) for one in models])
    return 0 if ranks.rank else _written(folder, rows, _run(start, ranks, device_of(options)), options)


def job(options: argparse.Namespace, task: Task, listing: Listing, model: Model) -> Job:
    """A task with its data and its metrics."""
    weights = None if options.weights is None else Path(options.weights)
    needs = Needs(model, listing.classes, task.templates, weights, device_of(options), options.trust)
    metrics, skipped = built(task.metrics, needs)
    data = Prepared(listing.entries[: getattr(options, "items", None)], task.prepare)
    return Job(task, data, model, metrics, skipped, task.full or len(listing.entries))


def _run(start: float, ranks: Ranks, device: str) -> dict[str, Any]:
    """What may differ between two runs that give the same numbers."""
    return {
        "started": datetime.fromtimestamp(start, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - start, 1),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "ranks": ranks.world,
        "threads": torch.get_num_threads(),
        "versions": {name: found for name, found in versions().items() if name in _VERSIONS},
    }


# ----------------------------------------------------------------------------------------------------------- showing


def _written(folder: Path, rows: Sequence[dict[str, Any]], run: Mapping[str, Any], options: argparse.Namespace) -> int:
    """Write the result file and both reports, and show what is in it; the exit code."""
    make_folder(folder)
    path = folder / "result.json"
    write_json(path, {"format": FORMAT, "rows": rows, "run": run})
    pages = [page for end in ("md", "html") if (page := _report(path, path.with_name(f"report.{end}")))]
    if options.json:
        say(path.read_text().rstrip())
    else:
        for task, of in by_task(read_results([path])).items():
            say(f"{task}\n{plain(numbers_table(of))}\n")
        for line in dict.fromkeys(line for row in rows for line in _complaints(row)):
            _complain(line)
        say("\n".join(map(str, [path, *pages])))
    return int(any(row["status"] != "complete" for row in rows))


def _report(result: Path, target: Path) -> Path | None:
    try:
        return write_report([result], target)
    except MissingExtraError as error:
        _complain(f"note: {error}")
        return None


def _complaints(row: Mapping[str, Any]) -> Iterator[str]:
    """What a row lacks, and why."""
    if row["why"]:
        yield f"{row['task']}: {row['why']}"
    for metric, why in (row["faults"] | row["skipped"]).items():
        yield f"no {metric}: {why}"
    for one in row["failed"]:
        yield f"{one['key']}: {one['why']}"


def _complain(line: str) -> None:
    print(f"eval: {line}", file=sys.stderr)  # noqa: T201 - the output of the program


def generation(options: argparse.Namespace) -> int:
    """Samples of a generator against a reference."""
    if Ranks.launched().rank:
        return 0
    start, device = time.time(), device_of(options)
    network = network_of(options.network, options.weights, device, trust=options.trust)
    row = generated(Path(options.samples), Path(options.reference), [network])
    folder = result_folder(options, options.samples, f"generation-{file_name(options.reference)}")
    return _written(folder, [row], _run(start, Ranks(), device), options)


def videos(options: argparse.Namespace) -> int:
    """Videos of prompts; --model is whose vectors of texts and videos are compared."""
    if Ranks.launched().rank:
        return 0
    start, device = time.time(), device_of(options)
    network, skipped, reference = None, {"fvd": "no --reference of real videos was named"}, None
    if options.reference:
        reference = Path(options.reference)
        try:
            network, skipped = I3D(options.weights, trust=options.trust, device=device), {}
        except AtokenError as error:
            skipped = {"fvd": str(error)}
    row = videos_row(
        Path(options.samples), tokenizer_of(options), reference=reference, network=network, skipped=skipped
    )
    folder = result_folder(
        options, options.samples, "-".join(["videos", *map(file_name, filter(None, [options.reference]))])
    )
    return _written(folder, [row], _run(start, Ranks(), device), options)


def generator(options: argparse.Namespace) -> int:
    """A generator of figures and photographs; exit code 1 if some could not be measured."""
    from eval import class_to_image as samples  # needs the extra store

    start, ranks, device = time.time(), Ranks.launched(), device_of(options)
    run = "-".join([f"generator-{options.split}", *map(file_name, options.changes)])
    folder = result_folder(options, options.generator, run)
    name = file_name(options.generator)
    found = samples.generator_of(options.generator, name, options.store, options.changes, folder, device)
    make_folder(folder)
    judges: list[Model] = [AToken("nano", device=device)]
    try:
        judges.append(Features(network_of("efficientnet-lite0", options.weights, device, trust=False)))
    except AtokenError as error:
        _complain(f"note: {error}")
    split, number = options.split, options.number

    def measured(plan: Iterable[tuple[Task, Model]]) -> Iterator[dict[str, Any]]:
        for task, model in plan:
            yield from filter(None, [measure(job(options, task, task.open(""), model), folder, ranks)])

    rows: list[dict[str, Any]] = []
    why: list[str] = []
    for part in (
        measured(samples.of_figures(found, judges, number)),
        measured(samples.of_photographs(found, judges, split, number)),
        (samples.of_copies(found, split, number, folder / "nearest.html") for _ in range(ranks.rank == 0)),
    ):
        try:
            rows += part  # those before an error stay
        except AtokenError as error:
            why.append(str(error))
    for line in dict.fromkeys(why):
        _complain(line)
    if ranks.rank or not rows:
        return int(bool(why))
    return max(_written(folder, rows, _run(start, ranks, device), options), int(bool(why)))


def table9(options: argparse.Namespace) -> int:
    """The paper's table 9: questions about images."""
    return _by_lmms_eval("table9", options)


def table10(options: argparse.Namespace) -> int:
    """The paper's table 10: questions about videos."""
    return _by_lmms_eval("table10", options)


def _by_lmms_eval(table: str, options: argparse.Namespace) -> int:
    """A row for each task; one that has no number says why."""
    start, model = time.time(), options.model.removeprefix("vl:")
    folder = result_folder(options, options.model, table)
    device = "" if options.device == "auto" else options.device
    rows = [table_row_of_lmms(table, one, model, folder, device, options.items) for one in TABLES[table]]
    return _written(folder, rows, _run(start, Ranks(), device_of(options)), options)


def table11(options: argparse.Namespace) -> int:
    """The paper's table 11: a flow on latents."""
    return _published("table11", options)


def table12(options: argparse.Namespace) -> int:
    """The paper's table 12: a masked model of codes."""
    return _published("table12", options)


def _published(table: str, options: argparse.Namespace) -> int:
    """Samples of a generator against the paper's reference; a row says what is missing."""
    start, ranks, device = time.time(), Ranks.launched(), device_of(options)
    given, number = options.model or BUNDLED[table], options.items or SAMPLES
    folder = result_folder(options, given, "-".join([table, *map(file_name, options.changes)]) + _of_data(options))
    make_folder(folder)
    name, networks, skipped = file_name(given), list[Network](), dict[str, str]()
    try:
        reference = reference_of(options.reference, Path(options.data))
        samples, identity = table_samples(table, given, folder, number, options.changes, device)
        if ranks.rank:
            return 0
        for network in NETWORKS:
            try:
                networks.append(network_of(network, options.weights, device, trust=options.trust))
            except AtokenError as error:
                skipped[network] = str(error)
        if not networks:
            raise AtokenError(" ".join(skipped.values()))
        row = table_row(table, name, samples, identity, reference, networks, skipped)
    except AtokenError as error:
        items = {"planned": number, "measured": 0, "full": SAMPLES}
        row = result_row(table, name, {}, "image", None, {}, status="failed", why=str(error), items=items)
    return 0 if ranks.rank else _written(folder, [row], _run(start, ranks, device), options)


def english(options: argparse.Namespace) -> int:
    """Perplexity of texts."""
    if Ranks.launched().rank:
        return 0
    start, model = time.time(), model_of(options)
    if not isinstance(model, VisionLanguage):
        raise AtokenError("This reads texts; choose a vision-language model, such as --model vl:vl-nano.")
    rows = [*measured_english(model)]
    folder = result_folder(options, options.model, ENGLISH)
    return _written(folder, rows, _run(start, Ranks(), device_of(options)), options)


def rate(options: argparse.Namespace) -> int:
    """Tokenizers and codecs by bytes; exit code 1 if files could not be read."""
    if Ranks.launched().rank:
        return 0
    models = "+".join(map(file_name, options.model))
    start, folder = time.time(), result_folder(options, models, f"rate-{file_name(options.folder)}")
    each = [argparse.Namespace(**vars(options) | {"model": model, "sample": None}) for model in options.model]
    tokenizers = [tokenizer_of(one) for one in each if ":" not in one.model]
    rows = measured_rate(options.folder, models=tokenizers, peers=[model_of(one) for one in each if ":" in one.model])
    _written(folder, rows, _run(start, Ranks(), device_of(options)), options)
    return int(any(row["failed"] for row in rows))


def probes(options: argparse.Namespace) -> int:
    """Probes of a tokenizer's vectors and tokens."""
    found = probed(tokenizer_of(options))
    say(json.dumps(found, indent=1) if options.json else markdown(found))
    return 0


def actions(options: argparse.Namespace) -> int:
    """The five most probable actions in each video."""
    network = I3D(options.weights, trust=options.trust, frames=None, device=device_of(options))
    for path, found in zip(options.video, named_actions(network, [*map(Path, options.video)]), strict=True):
        say(f"{path}: {', '.join(f'{name} {share:.1%}' for name, share in found)}")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Rows side by side; exit code 1 where some cannot be compared."""
    found = side_by_side(options.results)
    for table in found.tables:
        say(f"{table.title}\n{plain(table)}\n")
    for line in (*found.alone, *found.refused):
        _complain(line)
    return int(bool(found.refused))


def report(options: argparse.Namespace) -> int:
    """One page of several result files."""
    say(str(write_report(options.results, options.out, options.boxes, short=options.short)))
    return 0
