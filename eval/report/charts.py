"""Charts by matplotlib, as PNG for a page that may be light or dark: nothing behind them, and words in grey."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from atoken.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES, DOTS = (5.6, 3.4), 130  # of a chart; an inch
GREY = "#7a828c"  # is read on white and on black
BINS = 40


def curves(
    across: str, up: str, points: Mapping[str, tuple[np.ndarray, np.ndarray]], *, logarithmic: bool = False
) -> bytes:
    """PNG of a line with its points for each name, points in the order of x. Raises: MissingExtraError."""
    figure, axes = _axes(across, up)
    for name, (x, y) in points.items():
        order = np.argsort(x, kind="stable")
        axes.plot(np.asarray(x)[order], np.asarray(y)[order], marker="o", markersize=4, label=_label(name))
    if logarithmic:
        from matplotlib.ticker import LogLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
    return _png(figure, axes)


def histogram(name: str, values: Mapping[str, np.ndarray]) -> bytes:
    """PNG of how many items have which number, a line for each model; names say how many are not finite.

    Raises: MissingExtraError.
    """
    figure, axes = _axes(name, "items")
    finite = {model: of[np.isfinite(of)] for model, of in values.items()}
    edges = np.histogram_bin_edges(np.concatenate([*finite.values()]), BINS)
    for model, of in finite.items():
        lost = len(values[model]) - len(of)
        label = f"{model} ({lost:,} without a finite number)" if lost else model
        axes.stairs(np.histogram(of, edges)[0], edges, label=_label(label), linewidth=1.6)
    return _png(figure, axes)


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval", "A report with charts") from error
    figure = Figure(INCHES, DOTS, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(_label(across), color=GREY)
    axes.set_ylabel(_label(up), color=GREY)
    axes.tick_params(which="both", colors=GREY)
    axes.grid(color=GREY, alpha=0.25)
    axes.spines[:].set_color(GREY)
    axes.patch.set_alpha(0)
    return figure, axes


def _png(figure: Figure, axes: Axes) -> bytes:
    axes.legend(labelcolor=GREY, framealpha=0, fontsize="small")
    file = BytesIO()
    figure.savefig(file, format="png", transparent=True, metadata={"Software": None})
    return file.getvalue()


def _label(name: str) -> str:
    """As it is: a dollar would begin a formula, an underscore at the start would hide a line."""
    plain = name.replace("$", r"\$")
    return f"\u200b{plain}" if plain.startswith("_") else plain
