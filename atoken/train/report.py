"""The report of a run, or of runs that follow one another: tables, curves and images of their logs on one page."""

from __future__ import annotations

import math
import re
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from atoken.errors import ReportError
from atoken.report.charts import POINTS, WINDOW, Curve, by_step, running_mean, thin
from atoken.report.page import IMAGES, Block, Figure, Figures, Table, fitting, save, write
from atoken.report.rows import read_rows
from atoken.train.run_folder import RunFolder

LARGEST = float(np.finfo(np.float32).max)  # a value that is larger, or NaN, counts as not finite
EVERY = "every task"
MACHINERY = {
    "norm": "gradient norm",
    "lr": "learning rate",
    "tokens": "tokens a step",
    "seconds": "seconds a step",
    "data": "seconds waited for data",
    "mfu": "MFU",
    "flops": "FLOPs a step",
    "memory": "bytes of memory, peak",
    "skipped": "steps skipped",
    "drawn": "samples drawn",
    "broken": "samples broken",
}  # columns of the run as a whole that are no terms of the loss, and their titles
EXPLAINED = (
    f"In the charts, faint lines are the rows of the log; a curve of more than {POINTS:,} rows is thinned to that many "
    "points, each the mean of equally many rows, so that none is left out. Strong lines are running means over "
    f"1/{WINDOW} of a curve. Red marks at the foot are steps with a value that is not finite; such values are gaps and "
    "in no mean.",
)

Curves = dict[str, dict[str, list[Curve]]]  # by column and task, a part for each run


def report(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of a run's folder, or of several, whose steps are counted on from each run to the next.

    It is ``report.html`` in the last folder unless ``out`` says where; if that ends in ``.svg``, it is the curves of
    the loss alone. A run that has not ended is shown as far as it is. Returns the path. Raises: ReportError,
    MissingExtraError (matplotlib).
    """
    folders, starts = [Path(run) for run in runs], [0.0]
    curves: Curves = defaultdict(lambda: defaultdict(list))
    evaluation: Curves = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        if not (log := folder / "log.jsonl").is_file():
            raise ReportError(f"{folder} is not the folder of a run: it has no {log.name}.")
        steps = read_curves(log, starts[-1], curves)
        if not (steps and curves):
            raise ReportError(f"The log in {folder} holds no finished step yet; make the report later.")
        if (folder / "evaluation.jsonl").exists():
            read_curves(folder / "evaluation.jsonl", starts[-1], evaluation)
        starts.append(starts[-1] + steps)
    names = [folder.resolve().name for folder in folders]
    terms = {key: curves[key] for key in sorted(curves, key=lambda key: key != "loss") if key not in MACHINERY}
    machinery = {title: curves[key] for key, title in MACHINERY.items() if key in curves}
    tasks = dict.fromkeys(task for of in (*curves.values(), *evaluation.values()) for task in of if task != EVERY)
    draw = partial(
        by_step,
        colours={EVERY: "black"} | {task: f"C{number}" for number, task in enumerate(tasks)},
        steps=(0, starts[-1] - 1),
        starts=dict(zip(starts, names, strict=False)) if len(folders) > 1 else {},
    )
    target = folders[-1] / "report.html" if out is None else Path(out)
    if target.suffix == ".svg":
        save(target, draw(terms))
        return target
    best = ("term", "task", "first", "last", "running mean", "best", "at step", "not finite")
    rising = {name for folder in folders for name in (RunFolder(folder).noted("start-") or {}).get("rising", [])}
    tables = Table("", ("run", ""), [*_facts(curves)], 1), Table("", best, [*_bests(terms | evaluation, rising)], 6)
    highest = f"; of {' and '.join(sorted(rising))} the highest" if rising else ""
    sections: dict[str, Sequence[Block]] = {"": [*tables, f"Best is the lowest value{highest}.", *EXPLAINED]}
    for title, part in {"Loss": terms, "Evaluation": evaluation, "Machinery": machinery}.items():
        if part:
            sections[title] = [Figures("", [Figure(name, draw({name: of})) for name, of in part.items()])]
    if images := [*fitting(_images(folders, starts), IMAGES)]:
        sections["Image grids"] = images
    write(target, " · ".join(names), sections)
    return target


def read_curves(log: Path, start: float, curves: Curves) -> float:
    """Add every numeric column of a log to ``curves``, by name and task: that of ``task/name``, else all.

    Steps are counted from ``start``; ``seconds`` becomes the time of each step. Returns how many steps the log spans.
    Raises: ReportError.
    """
    columns: dict[str, tuple[array[float], array[float]]] = defaultdict(lambda: (array("d"), array("d")))
    steps = 0.0
    for number, row in enumerate(read_rows(log, growing=True), 1):
        step = row.pop("step", None)
        if not isinstance(step, int | float) or not 0 <= step <= LARGEST:
            raise ReportError(f"{log} is damaged at line {number}: its step is {step!r}; remove that line.")
        steps = max(steps, step + 1)
        for key, value in row.items():
            if isinstance(value, int | float):
                columns[key][0].append(start + step)
                columns[key][1].append(value if abs(value) <= LARGEST else math.nan)
    for key, column in columns.items():
        at, values = map(np.array, column)
        if key == "seconds":  # since the run was started or resumed
            spent = np.diff(values, prepend=0)
            values = np.where(spent < 0, values, spent)
        task, _, name = key.rpartition("/")
        curves[name][task or EVERY].append(Curve(at, values, np.isnan(values).astype(int)))
    return steps


def _whole(parts: Sequence[Curve]) -> Curve:
    return Curve(*map(np.concatenate, zip(*parts, strict=True)))


def _facts(curves: Curves) -> Iterator[tuple[str, str]]:
    every = [part for of in curves.values() for parts in of.values() for part in parts]
    steps, lost = np.concatenate([part.steps for part in every]), np.concatenate([part.lost for part in every])
    totals = {name: float(np.nansum(_whole(of[EVERY]).values)) for name, of in curves.items() if EVERY in of}
    yield "steps done", f"{len(np.unique(steps)):,}"
    yield "last step", f"{steps.max():,.0f}"
    if "seconds" in totals:
        yield "hours", f"{totals['seconds'] / 3600:,.2f}"
    if totals.get("seconds") and "data" in totals:
        yield "of these, waiting for data", f"{totals['data'] / totals['seconds']:.1%}"
    if "tokens" in totals:
        yield "tokens seen", f"{totals['tokens']:,.0f}"
    if "drawn" in totals and "broken" in totals:  # each counts on through its run
        drawn, broken = (sum(part.values[-1] for part in curves[name][EVERY]) for name in ("drawn", "broken"))
        yield "samples broken", f"{broken:,.0f} of {drawn:,.0f}"
    if "norm" in totals:  # an engine skips a step for no other reason
        yield "steps skipped (gradient not finite)", f"{_whole(curves['norm'][EVERY]).lost.sum():,}"
    yield "steps with any value not finite", f"{len(np.unique(steps[lost > 0])):,}"


def _bests(terms: Curves, rising: Collection[str]) -> Iterator[tuple[str, ...]]:
    for name, of in terms.items():
        for task, parts in of.items():
            steps, values, lost = _whole(parts)
            finite, cells = np.flatnonzero(np.isfinite(values)), ["none"] * 5
            if len(finite):
                means = np.concatenate([running_mean(thin(part).values) for part in parts])
                best = finite[(np.argmax if name in rising else np.argmin)(values[finite])]
                numbers = values[finite[0]], values[finite[-1]], means[np.isfinite(means)][-1], values[best]
                cells = [*(f"{number:.4g}" for number in numbers), f"{steps[best]:,.0f}"]
            yield name, task, *cells, f"{lost.sum():,}"


def _images(folders: Sequence[Path], starts: Sequence[float]) -> Iterator[tuple[str, Figure]]:
    """The images ``images/step-NNNNNN.png``, newest first."""
    found = [
        (start + int(match[1]), path)
        for folder, start in zip(folders, starts, strict=False)
        for path in (folder / "images").glob("*.png")
        if (match := re.fullmatch(r"step-(\d+)", path.stem))
    ]
    for step, path in sorted(found, reverse=True):
        try:
            yield "", Figure(f"step {step:,.0f}", path.read_bytes(), "image grid")
        except OSError as error:
            raise ReportError(f"Cannot read {path}: {error.strerror or error}.") from error
