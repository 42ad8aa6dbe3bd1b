"""Charts by matplotlib as SVG: no display, nothing behind them, and the same text each time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from textwrap import fill
from threading import Lock
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from atoken.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 500  # of a curve by step, at most
WINDOW = 25  # a running mean spans one in so many points of its curve
FEW = 30  # a curve of at most so many points shows each of them
BINS = 40  # of a histogram
LETTERS = 22  # in a line of a legend
WIDTH, HEIGHT = 5.8, 2.7  # inches of a panel; it scales with the page
GREY = "0.45"  # of all that is no curve
WORDS = ("Date", "Creator", "Format", "Type")  # that matplotlib would add
_LOCK = Lock()  # matplotlib's settings belong to the whole process


class Curve(NamedTuple):
    """Numbers by step: each value (NaN: none is finite), and how many rows there are not finite."""

    steps: np.ndarray
    values: np.ndarray
    lost: np.ndarray


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """At most ``points`` points, each the mean of equally many rows (to one); NaN where none of them is finite."""
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


def by_step(
    panels: Mapping[str, Mapping[str, Sequence[Curve]]],
    colours: Mapping[str, str],
    steps: tuple[float, float],
    starts: Mapping[float, str],
) -> str:
    """A panel for each title, with curves by name from the first to the last of ``steps``; each may have several parts.

    Values are faint, running means strong. A value that is not finite is a gap with a mark at the foot. The scale is
    logarithmic where all values are positive and more than 20-fold apart. starts: what begins at which step, marked by
    a vertical line. Raises: MissingExtraError.
    """
    figure = _figure(list(panels), "step")
    for panel, curves in zip(figure.axes, panels.values(), strict=True):
        panel.margins(y=0.12 if starts else 0.05)
        thinned = {name: [thin(part) for part in parts] for name, parts in curves.items()}
        for name, parts in thinned.items():
            for number, part in enumerate(parts):
                _draw(panel, "" if number else _label(name), part, colours[name])
        values = np.concatenate([part.values for parts in thinned.values() for part in parts])
        _scale_logarithmic(panel, "y", values, spread=20)
        if steps[0] < steps[1]:
            panel.set_xlim(*steps)
        for step, name in starts.items():
            panel.axvline(step, color=GREY, linewidth=0.6, zorder=0)
            in_steps = panel.get_xaxis_transform()
            panel.text(step, 0.99, f"\u00a0{_label(name)}", transform=in_steps, va="top", color=GREY)
    return _svg(figure)


def _draw(panel: Axes, label: str, curve: Curve, colour: str) -> None:
    steps, values, lost = curve
    gap = np.isnan(np.pad(values, 1, constant_values=np.nan))
    dots = np.flatnonzero(~gap[1:-1] & (gap[:-2] & gap[2:] | (len(values) <= FEW)))  # a line needs a neighbour
    panel.plot(steps, values, ".-", color=colour, alpha=0.4, linewidth=0.9, markevery=dots.tolist())
    panel.plot(steps, running_mean(values), color=colour, linewidth=1.5, label=label)
    if lost.any():
        foot = panel.get_xaxis_transform()
        panel.plot(steps[lost > 0], np.full((lost > 0).sum(), 0.03), "|", color="red", transform=foot)


def by_number(
    title: str, across: str, up: str, points: Mapping[str, Sequence[tuple[float, float]]], *, logarithmic: bool = False
) -> str:
    """A line with its points (x, y) for each name, in the order of x. Raises: MissingExtraError."""
    figure = _figure([title], across, up)
    for name, pairs in points.items():
        figure.axes[0].plot(*zip(*sorted(pairs), strict=True), ".-", label=_label(name))
    if logarithmic:
        _scale_logarithmic(figure.axes[0], "x", np.array([x for pairs in points.values() for x, _ in pairs]))
    return _svg(figure)


def histogram(title: str, across: str, values: Mapping[str, np.ndarray]) -> str:
    """How many items have which value, a line for each name; the legend counts those without a finite one.

    Raises: MissingExtraError.
    """
    figure = _figure([title], across, "items")
    finite = {name: of[np.isfinite(of)] for name, of in values.items()}
    edges = np.histogram_bin_edges(np.concatenate([*finite.values()]), BINS)
    for name, of in finite.items():
        lost = len(values[name]) - len(of)
        label = f"{name} ({lost:,} without a finite value)" if lost else name
        figure.axes[0].stairs(np.histogram(of, edges)[0], edges, label=_label(label), linewidth=1.5)
    return _svg(figure)


def _figure(titles: Sequence[str], across: str, up: str = "") -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train", "A report with charts") from error
    figure = Figure((WIDTH, HEIGHT * len(titles)), layout="constrained")
    for panel, title in zip(figure.subplots(len(titles), squeeze=False)[:, 0], titles, strict=True):
        panel.set_title(_label(title), loc="left", fontsize="medium", weight="bold")
        panel.set_xlabel(_label(across), color=GREY)
        panel.set_ylabel(_label(up), color=GREY)
        panel.tick_params(which="both", colors=GREY)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")  # in full, not as the distance to an offset
        panel.set_axisbelow(True)
        panel.grid(color=GREY, alpha=0.2, linewidth=0.7)
        panel.spines[:].set_color("0.85")
    return figure


def _scale_logarithmic(panel: Axes, name: Literal["x", "y"], values: np.ndarray, spread: float = 1) -> None:
    """Where all values are positive and the largest is over ``spread`` times the smallest."""
    finite = values[np.isfinite(values)]
    if not len(finite) or not 0 < spread * finite.min() < finite.max():
        return
    from matplotlib.ticker import LogLocator

    panel.set(**{f"{name}scale": "log"})
    axis, decades = getattr(panel, f"{name}axis"), np.log10(finite.max()) - np.log10(finite.min())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)))
    axis.set_major_formatter("{x:g}")
    panel.minorticks_off()


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    for panel in figure.axes:
        legend = panel.legend(loc="upper left", bbox_to_anchor=(1, 1), labelcolor=GREY, frameon=False)
        for text in legend.get_texts():
            text.set_text(fill(text.get_text(), LETTERS))
    file = StringIO()
    with _LOCK, mpl.rc_context({"svg.hashsalt": "atoken", "svg.fonttype": "none", "path.simplify": False}):
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(WORDS))
    shorter = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), file.getvalue())
    return shorter[shorter.index("<svg") :]


def _label(name: str) -> str:
    """As it is: a dollar would begin a formula, an underscore at the start would hide a line from the legend."""
    plain = "".join(letter if letter.isprintable() else "\ufffd" for letter in name).replace("$", r"\$")
    return f"\u200b{plain}" if plain.startswith("_") else plain
