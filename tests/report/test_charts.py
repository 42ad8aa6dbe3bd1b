"""Charts hold every number, not-finite values are gaps, and the same numbers give the same text each time."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest

from atoken.errors import MissingExtraError
from atoken.report import charts
from atoken.report.charts import FEW, POINTS, WINDOW, Curve, by_number, by_step, histogram, running_mean, thin
from tests.tolerances import FP32

mpl = pytest.importorskip("matplotlib", reason="the extra train is not installed")
NAN = float("nan")


def curve(values, start=0):
    values = np.array(values, float)
    return Curve(start + np.arange(len(values), dtype=float), values, np.isnan(values).astype(int))


def drawn(monkeypatch, curves, starts=None, colours=None):
    """The panel of a chart of curves by name."""
    monkeypatch.setattr(charts, "_svg", lambda figure: figure)
    of = {name: parts if isinstance(parts, list) else [parts] for name, parts in curves.items()}
    last = max(part.steps.max() for parts in of.values() for part in parts)
    (panel,) = by_step({"loss": of}, colours or dict.fromkeys(of, "C0"), (0, last), starts or {}).axes
    return panel


def text_of(values=(1.0, 2.0, NAN, 3.0), name="image"):
    return by_step({"loss": {name: [curve(values)]}}, {name: "C0"}, (0, len(values) - 1), {})


@pytest.mark.parametrize(("spread", "scale"), [(0.3, "linear"), (3.0, "log")])
def test_a_curve_has_every_value_and_its_running_mean(spread, scale, monkeypatch):
    values = np.exp(np.random.default_rng(1).uniform(-spread, spread, 60))
    panel = drawn(monkeypatch, {"image": curve(values)})
    rows, mean = panel.lines
    assert rows.get_xydata().tolist() == [[step, value] for step, value in enumerate(values)]
    means = [np.mean(values[max(0, step - 1) : step + 2]) for step in range(60)]  # 60 // WINDOW // 2 on each side
    assert mean.get_ydata() == pytest.approx(means)
    assert panel.get_yscale() == scale
    assert (panel.get_xlim(), panel.get_ylim()[0] < values.min(), values.max() < panel.get_ylim()[1]) == (
        (0, 59),
        True,
        True,
    )


def test_a_value_that_is_not_finite_is_a_gap_with_a_mark(monkeypatch):
    values = [1.0] * 40 + [NAN, 5.0, NAN] + [2.0] * 40
    rows, mean, marks = drawn(monkeypatch, {"image": curve(values)}).lines
    assert np.isnan(rows.get_ydata()).nonzero()[0].tolist() == [40, 42]
    assert np.isnan(mean.get_ydata()).nonzero()[0].tolist() == [40, 42]
    assert marks.get_xdata().tolist() == [40, 42]
    assert rows.get_markevery() == [41], "a value between two gaps has no line, so it needs a dot"
    assert len(drawn(monkeypatch, {"image": curve([2.0] * FEW)}).lines[0].get_markevery()) == FEW
    assert len(drawn(monkeypatch, {"image": curve([NAN] * 3)}).lines) == 3


def test_curves_of_several_parts_have_one_colour_and_name_and_do_not_run_into_each_other(monkeypatch):
    parts = [curve(np.full(100, 1.0)), curve(np.full(50, 2.0), 100)]
    panel = drawn(
        monkeypatch, {"image": parts, "video": curve([3.0])}, {0: "a", 100: "_b"}, {"image": "C3", "video": "k"}
    )
    lines = [line for line in panel.lines if len(line.get_xdata()) in (100, 50)]
    assert [np.unique(line.get_ydata()).tolist() for line in lines] == [[1], [1], [2], [2]]
    assert {line.get_color() for line in lines} == {"C3"}
    assert panel.get_legend_handles_labels()[1] == ["image", "video"]
    assert [text.get_text().strip("\u00a0\u200b") for text in panel.texts] == ["a", "_b"]


@pytest.mark.parametrize("rows", [1, POINTS, POINTS + 1, 3 * POINTS, 12_345])
def test_thinning_keeps_mean_and_count_and_leaves_short_curves_as_they_are(rows):
    values = np.random.default_rng(rows).normal(size=rows)
    values[5::7] = np.nan
    whole, thinned = curve(values), thin(curve(values))
    edges = [i * rows // min(rows, POINTS) for i in range(min(rows, POINTS) + 1)]
    sizes = np.diff(edges)
    finite = sizes - thinned.lost
    assert len(thinned.values) == min(rows, POINTS)
    assert sizes.max() - sizes.min() <= 1
    assert np.nansum(thinned.values * finite) / finite.sum() == pytest.approx(np.nanmean(values), abs=FP32)
    assert (thinned.steps * sizes).sum() == pytest.approx(whole.steps.sum(), rel=FP32)
    assert thinned.lost.sum() == whole.lost.sum()
    if rows <= POINTS:
        np.testing.assert_array_equal(thinned.values, values)


def test_the_running_mean_is_that_of_a_plain_window_and_keeps_gaps():
    values = np.random.default_rng(0).normal(size=8 * WINDOW)
    values[[0, 50, 51]] = np.nan
    plain = [np.nan if np.isnan(v) else np.nanmean(values[max(0, i - 4) : i + 5]) for i, v in enumerate(values)]
    assert running_mean(values) == pytest.approx(plain, abs=FP32, nan_ok=True)


@pytest.mark.parametrize(
    "values", [[0.0], [5e-324, 0.0], [3e38, -3e38], [1e-300, 3e38], [7.0, 7.0 + 1e-15], [-1.0, 0.0], [NAN]]
)
def test_charts_of_odd_values_have_finite_coordinates(values):
    paths = re.findall(r' (?:d|x|y)="([^"]*)"', text_of(values))
    assert len(paths) > 10
    assert not [path for path in paths if re.search("nan|inf", path)]


def test_lines_by_number_are_in_the_order_of_x(monkeypatch):
    text = by_number("t", "x", "y", {"one": [(3.0, 1), (1.0, 2), (2.0, 3)]})
    assert text == by_number("t", "x", "y", {"one": [(1.0, 2), (2.0, 3), (3.0, 1)]})
    assert text != by_number("t", "x", "y", {"one": [(1.0, 2), (2.0, 3), (3.0, 1)]}, logarithmic=True)
    monkeypatch.setattr(charts, "_svg", lambda figure: figure)
    (panel,) = by_number("t", "x", "y", {"one": [(9.0, 1), (0.5, 2)]}, logarithmic=True).axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "linear")
    assert panel.lines[0].get_xydata().tolist() == [[0.5, 2], [9, 1]]


def test_a_histogram_counts_every_item_and_says_how_many_are_not_finite(monkeypatch):
    monkeypatch.setattr(charts, "_svg", lambda figure: figure)
    values = {"a": np.array([1.0, 2, np.nan, np.inf, 4]), "b": np.array([5.0])}
    (panel,) = histogram("t", "psnr", values).axes
    assert [stairs.get_data().values.sum() for stairs in panel.patches] == [3, 1]
    assert panel.get_legend_handles_labels()[1] == ["a (2 without a finite value)", "b"]


def test_the_same_numbers_give_the_same_text_in_any_thread_and_no_setting_stays():
    settings = dict(mpl.rcParams)
    with ThreadPoolExecutor(4) as threads:
        texts = set(threads.map(lambda _: text_of(), range(8)))
    assert texts == {text_of()}
    assert dict(mpl.rcParams) == settings
    assert not re.search("<metadata|<dc:date", text_of())


HOSTILE = "\"'><script>alert(1)</script>&amp;$x$ \ud800\0\n"


def test_names_are_text_whatever_they_hold():
    text = text_of(name=HOSTILE) + histogram(HOSTILE, HOSTILE, {HOSTILE: np.ones(2)})
    assert "<script" not in text
    found = ElementTree.fromstring(f"<svgs>{text}</svgs>")
    words = "".join(found.itertext())
    assert "alert(1)</script>" in words
    assert "$x$" in words
    assert "_hidden" in text_of(name="_hidden")


def test_charts_need_no_display_and_no_pyplot():
    code = (
        "import sys; from tests.report.test_charts import text_of; text_of(); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"needs the package matplotlib: pip install 'atoken\[train\]'\.$"):
        text_of()
