"""Charts of a run's numbers by step, as SVG written by hand: a curve is two paths, and its colour is a class."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import NamedTuple

import numpy as np

POINTS = 1000  # of a curve, at most
WINDOW = 25  # a running mean spans one in so many points of its curve
WIDTH, HEIGHT = 560, 240  # of a chart; it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 66, 548, 8, 214  # of the field inside


class Curve(NamedTuple):
    """Numbers by step: each value (NaN: none is finite), and how many rows there are not finite."""

    steps: np.ndarray
    values: np.ndarray
    lost: np.ndarray


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


def chart(title: str, curves: Mapping[str, Curve], steps: np.ndarray, colours: Mapping[str, str]) -> str:
    """A figure of curves by name, over all of ``steps``. ``colours``: the class of each name."""
    thinned = {name: thin(curve) for name, curve in curves.items()}
    across = Axis.of(steps, LEFT, RIGHT)
    up = Axis.of(np.concatenate([curve.values for curve in thinned.values()]), BOTTOM, TOP, margin=0.05)
    legend = "".join(f'<span class="{colours[name]}">{escape(name)}</span>' for name in curves)
    scale = "<small>log scale</small>" if up.logarithmic else ""
    drawn = "".join(_drawn(curve, across, up, colours[name]) for name, curve in thinned.items())
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
