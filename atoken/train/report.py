"""The report of a run: one HTML page with its curves and images, which needs no network and works when mailed.

Colours of curves follow the reader's light or dark theme.
"""

from __future__ import annotations

import base64
import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from html import escape
from itertools import accumulate
from pathlib import Path

import numpy as np

from atoken.errors import ReportError
from atoken.io.atomic import atomic_path
from atoken.train.charts import POINTS, WINDOW, Curve, chart, running_mean, thin

IMAGES = 12 << 20  # bytes of images on a page, at most: mail has limits
LARGEST = float(np.finfo(np.float32).max)  # what is larger, or NaN, is not finite
RISING = ("psnr", "zero-shot")  # columns that are better high; all others are losses
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
}  # columns of the run as a whole that are no terms, and their titles
COLOURS = 8  # c0 to c7 in the style

Curves = dict[str, dict[str, Curve]]  # by column and task


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run folder, ``RUN/report.html`` unless ``out`` says where, whole or not at all.

    A run that goes on is reported as far as it is. Returns the path of the page. Raises: ReportError.
    """
    folder = Path(run)
    target = folder / "report.html" if out is None else Path(out)
    curves, evaluation = read_curves(folder / "log.jsonl"), {}
    if not curves:
        raise ReportError(f"The log in {folder} holds no finished step yet; make the report later.")
    if (folder / "evaluation.jsonl").exists():
        evaluation = read_curves(folder / "evaluation.jsonl")
    page = _page(folder.resolve().name, curves, evaluation, _images(folder / "images"))
    with atomic_path(target, ReportError) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")  # lone surrogates of a name
    return target


def read_curves(log: Path) -> Curves:
    """Every numeric column of a log by name and task: that of ``task/name``, else all.

    ``seconds`` becomes the time of each step. Raises: ReportError.
    """
    columns: dict[str, dict[str, tuple[array[float], array[float]]]] = defaultdict(dict)
    clock = 0.0
    for step, row in _rows(log):
        if "seconds" in row:  # since the run was started or resumed
            clock, row["seconds"] = _tick(clock, row["seconds"])
        for key, value in row.items():
            task, _, name = key.rpartition("/")
            found = columns[name].setdefault(task or EVERY, (array("d"), array("d")))
            found[0].append(step)
            found[1].append(value)
    return {name: {task: _curve(*pair) for task, pair in of.items()} for name, of in columns.items()}


def _tick(clock: float, now: float) -> tuple[float, float]:
    """The clock after a step, and the step's time; a clock that fell began anew."""
    return (now, now - clock if now >= clock else now) if abs(now) <= LARGEST else (clock, now)


def _rows(log: Path) -> Iterator[tuple[float, dict[str, float]]]:
    """Step and the other numbers of every whole line; a last line without its end is being written."""
    try:
        with log.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    yield _row(line, log, number)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReportError(f"{log.parent} is not the folder of a run: it has no {log.name}.") from error
    except OSError as error:
        raise ReportError(f"Cannot read {log}: {error.strerror or error}.") from error


def _row(line: bytes, log: Path, number: int) -> tuple[float, dict[str, float]]:
    try:
        row = json.loads(line)
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        if not abs(step := numbers.pop("step")) <= LARGEST:
            raise ValueError(step)
        return step, numbers
    except (ValueError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise ReportError(f"The log {log} is damaged at line {number}; repair or remove that line.") from error


def _curve(steps: array[float], values: array[float]) -> Curve:
    numbers = np.array(values)
    finite = np.abs(numbers) <= LARGEST
    return Curve(np.array(steps), np.where(finite, numbers, np.nan), (~finite).astype(int))


# ------------------------------------------------------------------------------------------------------------ page

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #6a737d; --rule: #e3e6ea; --lost: #d1242f;
  --c0: #0969da; --c1: #d1570a; --c2: #1a7f37; --c3: #a337ba; --c4: #bf3989; --c5: #0b7c8c; --c6: #8a6a00;
  --c7: #6639ba }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --ink: #e4e7eb; --faint: #98a1ab; --rule: #2b3038; --lost: #ff6b6b;
    --c0: #6cb0ff; --c1: #ff9c57; --c2: #5fd07f; --c3: #dd92f0; --c4: #ff8fc4; --c5: #56cfe0; --c6: #e0bd45;
    --c7: #b79cff } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 1240px; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem } h3 { font-size: 1rem }
p, small { color: var(--faint); max-width: 75ch }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: 1rem }
th, td { border-bottom: 1px solid var(--rule); padding: .18rem .9rem .18rem 0; text-align: right }
th:first-child, td:first-child, .terms td:nth-child(2), .terms th:nth-child(2) { text-align: left }
th { color: var(--faint); font-weight: 500 }
figure { margin: 0 } .summary { align-items: start; display: flex; flex-wrap: wrap; gap: 0 3rem }
.charts { display: grid; gap: 1.4rem 1.6rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)) }
.chart span::before { content: "\\25CF\\A0" } .chart span { font-size: .85rem; margin-left: .8rem }
.chart small { margin-left: .8rem } .chart span, .chart small { white-space: nowrap }
svg { display: block; width: 100% } svg text { fill: var(--faint); font-size: 15px }
.level { dominant-baseline: middle; text-anchor: end } .step { text-anchor: middle }
path { fill: none; stroke: currentColor; stroke-linejoin: round }
.grid { stroke: var(--rule) } .lost { stroke: var(--lost); stroke-width: 1.5 }
.rows { stroke-linecap: round; stroke-opacity: .28; stroke-width: 3 } .mean { stroke-width: 1.8 }
img { display: block; max-width: 100% }
""" + "".join(f".c{number} {{ color: var(--c{number}) }} " for number in range(COLOURS))


def _page(name: str, curves: Curves, evaluation: Curves, images: str) -> str:
    terms = {key: curves[key] for key in sorted(curves, key=lambda key: key != "loss") if key not in MACHINERY}
    machinery = {title: curves[key] for key, title in MACHINERY.items() if key in curves}
    steps = np.concatenate([curve.steps for curve in (*_all(curves), *_all(evaluation))])
    tasks = dict.fromkeys(task for of in (*curves.values(), *evaluation.values()) for task in of if task != EVERY)
    colours = {EVERY: "", **{task: f"c{number % COLOURS}" for number, task in enumerate(tasks)}}
    sections = {"Loss": terms, "Evaluation": evaluation, "Machinery": machinery}
    charts = "".join(
        f'<h2>{title}</h2>\n<div class="charts">\n{"".join(chart(key, of, steps, colours) for key, of in part.items())}'
        "</div>\n"
        for title, part in sections.items()
        if part
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(name)}</title><style>{STYLE}</style></head><body>
<h1>{escape(name)}</h1>
<div class="summary">{_table(("run", ""), _facts(curves), "facts")}
{_table(("term", "task", "last", "running mean", "best", "at step", "not finite"), _bests(terms | evaluation), "terms")}
</div>
<p>Best is the lowest value; of {" and ".join(RISING)} the highest.</p>
<p>In the charts, dots are the rows of the log; a curve of more than {POINTS:,} rows is thinned to that many dots, each
the mean of equally many rows, so that none is left out. Lines are running means over 1/{WINDOW} of a curve. Red marks
at the foot are steps with a value that is not finite; such values are gaps, and in no mean.</p>
{charts}{images}</body></html>
"""


def _all(curves: Curves) -> Iterator[Curve]:
    return (curve for of in curves.values() for curve in of.values())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<table class="{kind}"><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>'


def _facts(curves: Curves) -> Iterator[tuple[str, str]]:
    steps = np.unique(np.concatenate([curve.steps for curve in _all(curves)]))
    broken = np.unique(np.concatenate([curve.steps[curve.lost > 0] for curve in _all(curves)]))
    totals = {name: float(np.nansum(of[EVERY].values)) for name, of in curves.items() if EVERY in of}
    yield "steps done", f"{len(steps):,}"
    yield "last step", f"{steps[-1]:,.0f}"
    if "seconds" in totals:
        yield "hours", f"{totals['seconds'] / 3600:,.2f}"
    if totals.get("seconds") and "data" in totals:
        yield "of these, waiting for data", f"{totals['data'] / totals['seconds']:.1%}"
    if "tokens" in totals:
        yield "tokens seen", f"{totals['tokens']:,.0f}"
    if "drawn" in totals and "broken" in totals:
        drawn, lost = (curves[name][EVERY].values[-1] for name in ("drawn", "broken"))
        yield "samples broken", f"{lost:,.0f} of {drawn:,.0f}"
    if "norm" in totals:  # an engine skips a step for no other reason
        yield "steps skipped (gradient not finite)", f"{curves['norm'][EVERY].lost.sum():,}"
    yield "steps with any value not finite", f"{len(broken):,}"


def _bests(terms: Curves) -> Iterator[tuple[str, ...]]:
    for name, of in terms.items():
        for task, curve in of.items():
            finite = np.isfinite(curve.values)
            cells = ["none"] * 4
            if finite.any():
                steps, values = curve.steps[finite], curve.values[finite]
                mean = running_mean(thin(curve).values)
                best = values.argmax() if name in RISING else values.argmin()
                numbers = values[-1], mean[np.isfinite(mean)][-1], values[best]
                cells = [*(f"{number:.4g}" for number in numbers), f"{steps[best]:,.0f}"]
            yield name, task, *cells, f"{curve.lost.sum():,}"


def _images(folder: Path) -> str:
    """The images ``step-NNNNNN.png``, newest first, as far as they fit; the page says how many do not."""
    named = [
        (int(match[1]), path) for path in folder.glob("*.png") if (match := re.fullmatch(r"step-(\d+)", path.stem))
    ]
    named.sort(reverse=True)
    try:
        sizes = accumulate(path.stat().st_size for _, path in named)
        shown = [pair for pair, size in zip(named, sizes, strict=True) if size <= IMAGES]
        parts = [_image(step, path) for step, path in shown]
    except OSError as error:
        raise ReportError(f"Cannot read the images in {folder}: {error.strerror or error}.") from error
    if older := len(named) - len(shown):
        parts.append(f"<p>{older:,} older images, too large for this page, are in the folder of the run.</p>")
    return f"<h2>Originals above reconstructions</h2>\n{''.join(parts)}" if parts else ""


def _image(step: int, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<h3>step {step:,}</h3>\n<img src="data:image/png;base64,{data}" alt="originals above reconstructions">\n'
