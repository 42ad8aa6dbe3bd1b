"""The report of a run: one HTML page with its curves and pictures, which needs no network and works when mailed.

Charts are SVG written by hand: a curve is two paths, and their colours follow the reader's light or dark theme.
"""

from __future__ import annotations

import base64
import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from html import escape
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atoken.errors import ReportError
from atoken.io.atomic import atomic_path

POINTS = 1000  # of a curve, at most
WINDOW = 25  # a running mean spans one in so many points of its curve
PICTURES = 12 << 20  # bytes of pictures on a page, at most: mail has limits
LARGEST = float(np.finfo(np.float32).max)  # what is larger, or NaN, is not finite
RISING = ("psnr", "ssim", "accuracy", "recall", "top1")  # columns with such a word are better high, all others low
MACHINERY = {
    "norm": "gradient norm",
    "lr": "learning rate",
    "tokens": "tokens a step",
    "seconds": "seconds a step",
    **{name: name for name in ("data_seconds", "mfu", "memory", "skipped")},
}  # columns that are no terms, and their titles
EVERY = "every modality"
SHARED = ("lr", "memory", "skipped")  # columns of the run as a whole: one curve for every modality

WIDTH, HEIGHT = 560, 240  # of a chart; it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 66, 548, 8, 214  # of the field inside
COLOURS = 8  # c0 to c7 in the style


class Curve(NamedTuple):
    """One column of one modality: by step, its value (NaN: none is finite) and how many rows there are not finite."""

    steps: np.ndarray
    values: np.ndarray
    lost: np.ndarray


Curves = dict[str, dict[str, Curve]]  # by column and modality


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run folder, ``RUN/report.html`` unless ``out`` says where, whole or not at all.

    A run that goes on is reported as far as it is. Returns the path of the page. Raises: ReportError.
    """
    folder = Path(run)
    target = folder / "report.html" if out is None else Path(out)
    curves = read_curves(folder / "log.jsonl")
    page = _page(folder.resolve().name, curves, _pictures(folder / "pictures"))
    with atomic_path(target, ReportError) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")  # lone surrogates of a name
    return target


def read_curves(log: Path) -> Curves:
    """Every numeric column of a log, by modality; ``seconds`` becomes the time of each step. Raises: ReportError."""
    columns: dict[str, dict[str, tuple[array[float], array[float]]]] = defaultdict(dict)
    clock = 0.0
    for step, modality, row in _rows(log):
        if "seconds" in row:  # since the run was started or resumed
            clock, row["seconds"] = _tick(clock, row["seconds"])
        for name, value in row.items():
            found = columns[name].setdefault(EVERY if name in SHARED else modality, (array("d"), array("d")))
            found[0].append(step)
            found[1].append(value)
    if not columns:
        raise ReportError(f"The log {log} holds no finished step yet; make the report later.")
    return {name: {key: _curve(*pair) for key, pair in of.items()} for name, of in columns.items()}


def _tick(clock: float, now: float) -> tuple[float, float]:
    """The clock after a step, and the step's time; a clock that fell began anew."""
    return (now, now - clock if now >= clock else now) if abs(now) <= LARGEST else (clock, now)


def _rows(log: Path) -> Iterator[tuple[float, str, dict[str, float]]]:
    """Step, modality and the other numbers of every whole line; a last line without its end is being written."""
    try:
        with log.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    yield _row(line, log, number)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReportError(f"{log.parent} is not the folder of a run: it has no {log.name}.") from error
    except OSError as error:
        raise ReportError(f"Cannot read {log}: {error.strerror or error}.") from error


def _row(line: bytes, log: Path, number: int) -> tuple[float, str, dict[str, float]]:
    try:
        row = json.loads(line)
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        if not abs(step := numbers.pop("step")) <= LARGEST:
            raise ValueError(step)
        return step, str(row.get("modality", EVERY)), numbers
    except (ValueError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise ReportError(f"The log {log} is damaged at line {number}; repair or remove that line.") from error


def _curve(steps: array[float], values: array[float]) -> Curve:
    numbers = np.array(values)
    finite = np.abs(numbers) <= LARGEST
    return Curve(np.array(steps), np.where(finite, numbers, np.nan), (~finite).astype(int))


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """At most so many points: means over bins of equally many rows, to one; NaN where no row of a bin is finite."""
    rows = len(curve.values)
    starts = np.linspace(0, rows, min(points, rows), endpoint=False).astype(int)
    sizes, lost = np.diff(starts, append=rows), np.add.reduceat(curve.lost, starts)
    finite = np.where(sizes > lost, sizes - lost, np.nan)
    values = np.add.reduceat(np.nan_to_num(curve.values), starts) / finite
    return Curve(np.add.reduceat(curve.steps, starts) / sizes, values, lost)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Centred mean over one in ``WINDOW`` points, of those that are finite; gaps stay."""
    window, finite = np.ones(2 * (len(values) // WINDOW // 2) + 1), np.isfinite(values)
    counts = np.where(finite, np.convolve(finite, window, "same"), np.nan)
    return np.convolve(np.nan_to_num(values), window, "same") / counts


# ---------------------------------------------------------------------------------------------------------- charts


class Axis(NamedTuple):
    """Where values lie between two places of the chart; a logarithmic axis has the logarithms of its limits."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def of(cls, values: np.ndarray, start: float, end: float, margin: float = 0.0) -> Axis:
        """Around all finite values; logarithmic where they are positive and more than 20-fold apart."""
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        logarithmic = margin > 0 and 0 < 20 * low < high
        if logarithmic:
            low, high = float(np.log10(low)), float(np.log10(high))
        if high - low <= 1e-6 * max(abs(low), abs(high)) + 1e-300:  # one value
            low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
        rim = margin * (high - low)
        return cls(low - rim, high + rim, start, end, logarithmic)

    def place(self, values: np.ndarray) -> np.ndarray:
        """Places on the chart."""
        scaled = np.log10(values) if self.logarithmic else values
        return self.start + (scaled - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> np.ndarray:
        """Round values within the limits, three to eight or so."""
        if self.logarithmic and self.high - self.low < 3:
            decades = np.arange(np.floor(self.low), np.ceil(self.high))
            ticks = (10.0 ** decades[:, None] * np.array([1, 2, 5] if self.high - self.low < 2 else [1, 3])).ravel()
            return ticks[(np.log10(ticks) >= self.low) & (np.log10(ticks) <= self.high)]
        rough = (self.high - self.low) / 8
        power = 10.0 ** np.floor(np.log10(rough))
        step = power * min((factor for factor in (1, 2, 5) if power * factor >= rough), default=10)
        step = max(1.0, step) if self.logarithmic else step
        ticks = np.arange(np.ceil(self.low / step), np.floor(self.high / step) + 1) * step
        return 10.0**ticks if self.logarithmic else ticks


def _chart(title: str, curves: dict[str, Curve], steps: np.ndarray, colours: dict[str, str]) -> str:
    thinned = {modality: thin(curve) for modality, curve in curves.items()}
    across = Axis.of(steps, LEFT, RIGHT)
    up = Axis.of(np.concatenate([curve.values for curve in thinned.values()]), BOTTOM, TOP, margin=0.05)
    legend = "".join(f'<span class="{colours[modality]}">{escape(modality)}</span>' for modality in curves)
    scale = "<small>log scale</small>" if up.logarithmic else ""
    drawn = "".join(_drawn(curve, across, up, colours[modality]) for modality, curve in thinned.items())
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{legend}{scale}</figcaption>\n'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by step">'
        f"{_grid(across, up)}{drawn}</svg></figure>\n"
    )


def _grid(across: Axis, up: Axis) -> str:
    levels, columns = up.ticks(), across.ticks()
    rules = "".join(f"M{LEFT} {y:.1f}H{RIGHT}" for y in (*up.place(levels), BOTTOM))
    parts = [f'<path class="grid" d="{rules}"/>']
    for value, y in zip(levels, up.place(levels), strict=True):
        parts.append(f'<text class="level" x="{LEFT - 6}" y="{y:.1f}">{value:g}</text>')
    for value, x in zip(columns, across.place(columns), strict=True):
        parts.append(f'<text class="step" x="{x:.1f}" y="{HEIGHT - 8}">{value:g}</text>')
    return "".join(parts)


def _drawn(curve: Curve, across: Axis, up: Axis, colour: str) -> str:
    """The rows faint, their running mean, and a mark at the foot where a row is not finite."""
    x, y, mean = across.place(curve.steps), up.place(curve.values), up.place(running_mean(curve.values))
    dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True) if np.isfinite(b))
    marks = "".join(f"M{a:.1f} {BOTTOM}v-7" for a in x[curve.lost > 0])
    lost = f'<path class="lost" d="{marks}"/>' if marks else ""
    return f'<path class="rows {colour}" d="{dots}"/><path class="mean {colour}" d="{_line(x, mean)}"/>{lost}'


def _line(x: np.ndarray, y: np.ndarray) -> str:
    finite = np.isfinite(y)
    after = np.concatenate([[False], finite[:-1]])  # a point after a gap starts anew
    pairs = zip(x[finite], y[finite], after[finite], strict=True)
    return "".join(f"{'L' if joined else 'M'}{a:.1f} {b:.1f}" for a, b, joined in pairs)


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
.pictures { display: flex; flex-wrap: wrap; gap: 1rem } img { display: block; max-width: 100% }
""" + "".join(f".c{number} {{ color: var(--c{number}) }} " for number in range(COLOURS))


def _page(name: str, curves: Curves, pictures: str) -> str:
    terms = {key: curves[key] for key in sorted(curves, key=lambda key: key != "loss") if key not in MACHINERY}
    machinery = {title: curves[key] for key, title in MACHINERY.items() if key in curves}
    steps = np.concatenate([curve.steps for curve in _all(curves)])
    modalities = dict.fromkeys(modality for of in curves.values() for modality in of if modality != EVERY)
    colours = {EVERY: "", **{modality: f"c{number % COLOURS}" for number, modality in enumerate(modalities)}}
    charts = "".join(_chart(title, of, steps, colours) for title, of in {**terms, **machinery}.items())
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(name)}</title><style>{STYLE}</style></head><body>
<h1>{escape(name)}</h1>
<div class="summary">{_table(("run", ""), _facts(curves), "facts")}
{_table(("term", "modality", "last", "running mean", "best", "at step", "not finite"), _bests(terms), "terms")}</div>
<p>Best is the lowest value; of a term with {", ".join(RISING[:-1])} or {RISING[-1]} in its name, the highest.</p>
<h2>Curves by step</h2>
<p>Dots are the rows of the log; a curve of more than {POINTS:,} rows is thinned to that many dots, each the mean of
equally many rows, so that none is left out. Lines are running means over 1/{WINDOW} of a curve. Red marks at the foot
are steps with a value that is not finite; such values are gaps, and in no mean.</p>
<div class="charts">
{charts}</div>
{pictures}</body></html>
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
    yield "steps done", f"{len(steps):,}"
    yield "last step", f"{steps[-1]:,.0f}"
    if "seconds" in curves:
        yield "hours", f"{_total(curves['seconds']) / 3600:,.2f}"
    if "tokens" in curves:
        yield "tokens seen", f"{_total(curves['tokens']):,.0f}"
    if "norm" in curves:  # an engine skips a step for no other reason
        yield "steps skipped (gradient not finite)", f"{sum(curve.lost.sum() for curve in curves['norm'].values()):,}"
    yield "steps with any value not finite", f"{len(broken):,}"


def _total(of: dict[str, Curve]) -> float:
    return float(sum(np.nansum(curve.values) for curve in of.values()))


def _bests(terms: Curves) -> Iterator[tuple[str, ...]]:
    for name, of in terms.items():
        rising = any(word in name for word in RISING)
        for modality, curve in of.items():
            finite = np.isfinite(curve.values)
            cells = ["none"] * 4
            if finite.any():
                steps, values = curve.steps[finite], curve.values[finite]
                mean = running_mean(thin(curve).values)
                best = values.argmax() if rising else values.argmin()
                numbers = values[-1], mean[np.isfinite(mean)][-1], values[best]
                cells = [*(f"{number:.4g}" for number in numbers), f"{steps[best]:,.0f}"]
            yield name, modality, *cells, f"{curve.lost.sum():,}"


def _pictures(folder: Path) -> str:
    """The pictures ``step-NNNNNN-NAME.png``, newest first, as far as they fit; the page says how many do not."""
    named = [(match, path) for path in folder.glob("*.png") if (match := re.fullmatch(r"step-(\d+)-(.+)", path.stem))]
    named.sort(key=lambda pair: (-int(pair[0][1]), pair[0][2]))
    try:
        sizes = accumulate(path.stat().st_size for _, path in named)
        shown = [pair for pair, size in zip(named, sizes, strict=True) if size <= PICTURES]
        parts = [_of_step(step, list(pairs)) for step, pairs in groupby(shown, lambda pair: int(pair[0][1]))]
    except OSError as error:
        raise ReportError(f"Cannot read the pictures in {folder}: {error.strerror or error}.") from error
    if older := len(named) - len(shown):
        parts.append(f"<p>{older:,} older pictures, too large for this page, are in the folder of the run.</p>")
    return f"<h2>Pictures</h2>\n{''.join(parts)}" if parts else ""


def _of_step(step: int, pictures: list[tuple[re.Match[str], Path]]) -> str:
    figures = "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" '
        f'alt="{escape(match[2])}"><figcaption>{escape(match[2])}</figcaption></figure>\n'
        for match, path in pictures
    )
    return f'<h3>step {step:,}</h3>\n<div class="pictures">{figures}</div>\n'
