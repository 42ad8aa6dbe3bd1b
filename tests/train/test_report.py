"""The report of a run: its numbers and curves are those of the log, and the page needs nothing but itself."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from atoken.errors import AtokenError, ReportError
from atoken.train import charts
from atoken.train import report as module
from atoken.train.charts import POINTS, WINDOW, Curve, running_mean, thin
from atoken.train.report import report
from tests.tolerances import FP32
from tests.train.test_run_folder import no_file_over

PLACE = 0.2  # units of a chart: its places and those of its ticks are written to a tenth


class Page(HTMLParser):
    """Tables by class, charts by title, images, every tag's attributes, and the text outside the style."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.charts, self.images, self.attributes = {}, {}, [], []
        self.open, self.text, self.tags = [("", {})], [], set()
        self.feed(path.read_text(encoding="utf-8"))
        assert [tag for tag, _ in self.open] == [""], "every tag is closed"

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in ("meta", "img"):
            self.open.append((tag, found))
        if tag == "table":
            self.rows = self.tables.setdefault(found["class"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag == "svg":
            self.chart = self.charts.setdefault(found["aria-label"].removesuffix(" by step"), {"step": [], "level": []})
        elif tag == "path":
            self.chart[found["class"].strip()] = found["d"]
        elif tag == "img":
            self.images.append((self.heading, base64.b64decode(found["src"].partition(",")[2])))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, found = self.open[-1]
        if tag in ("td", "th"):
            self.rows[-1].append(data)
        elif tag == "h3":
            self.heading = data
        elif tag == "text":
            place = found["x"] if found["class"] == "step" else found["y"]
            self.chart[found["class"]].append((float(data), float(place)))
        if tag not in ("", "style"):
            self.text.append(data)

    def drawn(self, title, path):
        """Places (x, y) of a path's points, and their commands."""
        found = re.findall(r"([ML])([-\d.]+) ([-\d.]+)", self.charts[title][path])
        return np.array([[float(x), float(y)] for _, x, y in found]), "".join(command for command, _, _ in found)

    def places(self, title, rows, scale):
        """Where the ticks of a chart say that rows of (step, value) are."""
        ticks = [np.array(self.charts[title][name]).T for name in ("step", "level")]
        (steps, x), (levels, y) = ticks
        numbers = np.array(rows, dtype=float).T
        lines = np.polyfit(steps, x, 1), np.polyfit(scale(levels), y, 1)
        return np.stack([np.polyval(lines[0], numbers[0]), np.polyval(lines[1], scale(numbers[1]))], axis=1)


def run_of(folder, rows, name="log"):
    """A run's folder with these rows in its log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def page_of(folder, rows):
    return Page(report(run_of(folder, rows)))


def loss(values, **more):
    return [{"step": step, "tasks": ["image"], "image/loss": value, **more} for step, value in enumerate(values)]


NAMES = ("step", "tasks", "tokens", "image/l1", "image/loss", "video/loss", "loss", "norm", "lr", "seconds", "data")
NAN, INF = float("nan"), float("inf")
ROWS = [
    dict(zip(NAMES, (0, ["image", "video"], 1000, 0.5, 5.0, 1.0, 6.0, 2.0, 1e-4, 3600, 9.0), strict=True)),
    {"step": 1, "tasks": ["video"], "tokens": 900, "video/loss": 2.5, "loss": 2.5, "norm": 1.0, "lr": 2e-4,
     "seconds": 7200, "data": 900.0, "mfu": 0.4, "drawn": 90, "broken": 4},
    dict(zip(NAMES, (2, ["image", "video"], 950, 0.125, 1.25, 0.75, 2.0, 3.0, 3e-4, 1800, 9.0), strict=True)),
    dict(zip(NAMES, (3, ["image", "video"], 150, NAN, NAN, 0.5, NAN, INF, 2e-4, 3600, 9.0), strict=True)),
    dict(zip(NAMES, (4, ["image", "video"], 1000, 0.2, 2.0, 1.0, 3.0, 1.0, 1e-4, 5400, 18.0), strict=True))
    | {"drawn": 1234, "broken": 5, "mfu": None},
]  # fmt: skip
EVALUATION = [
    {"step": 1, "image/psnr": 20.0, "video/psnr": 18.0, "image/zero-shot": 0.25},
    {"step": 3, "image/psnr": 22.0, "video/psnr": INF, "image/zero-shot": 0.125},
]


def test_the_tables_hold_the_numbers_of_the_logs(tmp_path):
    run_of(tmp_path, EVALUATION, "evaluation")
    tables = page_of(tmp_path, ROWS).tables  # the clock begins anew at step 2, where the run was resumed
    assert dict(row for row in tables["facts"] if len(row) == 2) == {
        "steps done": "5",
        "last step": "4",
        "hours": "3.50",
        "of these, waiting for data": "7.5%",
        "tokens seen": "4,000",
        "samples broken": "5 of 1,234",
        "steps skipped (gradient not finite)": "1",
        "steps with any value not finite": "1",
    }
    assert tables["terms"][1:] == [
        ["loss", "image", "2", "2", "1.25", "2", "1"],
        ["loss", "video", "1", "1", "0.5", "3", "0"],
        ["loss", "every task", "3", "3", "2", "2", "1"],
        ["l1", "image", "0.2", "0.2", "0.125", "2", "1"],
        ["psnr", "image", "22", "22", "22", "3", "0"],
        ["psnr", "video", "18", "18", "18", "1", "1"],
        ["zero-shot", "image", "0.125", "0.125", "0.25", "1", "0"],
    ]


def test_a_chart_is_drawn_of_every_numeric_column_and_of_no_other(tmp_path):
    rows = [{**row, "mfu": 0.4, "video/novel": 7, "note": "text", "nothing": None, "list": [1]} for row in ROWS]
    titles = ["loss", "l1", "novel", "gradient norm", "learning rate", "tokens a step", "seconds a step",
              "seconds waited for data", "MFU", "samples drawn", "samples broken"]  # fmt: skip
    assert list(page_of(tmp_path, rows).charts) == titles
    run_of(tmp_path, EVALUATION, "evaluation")
    assert list(page_of(tmp_path, rows).charts) == [*titles[:3], "psnr", "zero-shot", *titles[3:]]


def test_terms_evaluation_and_images_share_the_colours_of_tasks_and_the_steps(tmp_path):
    run_of(tmp_path, EVALUATION, "evaluation")
    page = page_of(tmp_path, ROWS)
    for title, task, rows in (("loss", "c0", 3), ("loss", "c1", 5), ("psnr", "c0", 2), ("psnr", "c1", 1)):
        assert len(page.drawn(title, f"rows {task}")[0]) == rows
    assert page.charts["psnr"]["step"] == page.charts["loss"]["step"]
    dots, _ = page.drawn("psnr", "rows c0")
    assert dots == pytest.approx(page.places("psnr", [(1, 20.0), (3, 22.0)], lambda x: x), abs=PLACE)


@pytest.mark.parametrize(("spread", "scale"), [(0.3, lambda x: x), (3.0, np.log10)], ids=["linear", "logarithmic"])
def test_curves_lie_where_the_ticks_say_that_the_log_is(spread, scale, tmp_path):
    values = np.exp(np.random.default_rng(1).uniform(-spread, spread, 60)).tolist()
    page = page_of(tmp_path, loss(values))
    assert ("log scale" in page.text) == (scale is np.log10)
    dots, _ = page.drawn("loss", "rows c0")
    assert dots == pytest.approx(page.places("loss", list(enumerate(values)), scale), abs=PLACE)
    line, commands = page.drawn("loss", "mean c0")
    means = [np.mean(values[max(0, step - 1) : step + 2]) for step in range(60)]  # 60 // WINDOW // 2 on each side
    assert line == pytest.approx(page.places("loss", list(enumerate(means)), scale), abs=PLACE)
    assert commands == "M" + 59 * "L"


def test_every_task_has_its_own_curve_and_what_is_of_the_run_has_one(tmp_path):
    page = page_of(tmp_path, ROWS)
    counts = {name: len(page.drawn("loss", name)[0]) for name in ("rows", "rows c0", "rows c1")}
    assert counts == {"rows": 4, "rows c0": 3, "rows c1": 5}
    assert len(page.drawn("learning rate", "rows")[0]) == 5


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e39])  # the last is over fp32's range
def test_a_value_that_is_not_finite_is_a_gap_with_a_mark_and_is_counted(value, tmp_path):
    page = page_of(tmp_path, loss([1.0, 2.0, value, 3.0, 2.0]))
    places, commands = page.drawn("loss", "mean c0")
    assert commands == "MLML"
    at = page.places("loss", [(step, 1.0) for step in range(5)], lambda x: x)[:, 0]
    assert places[:, 0] == pytest.approx(at[[0, 1, 3, 4]], abs=PLACE)
    assert page.drawn("loss", "lost")[0][:, 0] == pytest.approx(at[[2]], abs=PLACE)
    assert page.tables["terms"][1][-1] == "1"


def test_a_log_without_any_finite_value_still_has_a_page(tmp_path):
    page = page_of(tmp_path, loss([NAN] * 3))
    assert page.tables["terms"][1] == ["loss", "image", *["none"] * 4, "3"]
    assert len(page.drawn("loss", "lost")[0]) == 3


def curve(values):
    values = np.array(values)
    return Curve(np.arange(len(values), dtype=float), values, np.isnan(values).astype(int))


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


def test_a_long_run_is_a_short_page_that_says_so(tmp_path):
    page = page_of(tmp_path, loss([1 + step % 7 for step in range(20 * POINTS)]))
    assert len(page.drawn("loss", "rows c0")[0]) == POINTS
    assert any(f"more than {POINTS:,} rows is thinned" in " ".join(text.split()) for text in page.text)
    assert (tmp_path / "report.html").stat().st_size < (tmp_path / "log.jsonl").stat().st_size / 10


def test_the_running_mean_is_that_of_a_plain_window_and_keeps_gaps():
    values = np.random.default_rng(0).normal(size=8 * WINDOW)
    values[[0, 50, 51]] = np.nan
    plain = [np.nan if np.isnan(v) else np.nanmean(values[max(0, i - 4) : i + 5]) for i, v in enumerate(values)]
    assert running_mean(values) == pytest.approx(plain, abs=FP32, nan_ok=True)


HOSTILE = "\"'><script>alert(1)<script>&amp;"


def test_what_comes_from_outside_is_text_and_never_markup(tmp_path):
    row = {"step": 0, f"{HOSTILE}/{HOSTILE}": 1.0, "\ud800": 2}
    folder = run_of(tmp_path / HOSTILE, [row])
    page = Page(report(folder))
    assert HOSTILE in page.charts
    assert page.tables["terms"][1][:2] == [HOSTILE, HOSTILE]
    assert page.text.count(folder.name) == 2 + 4  # title and heading; in the table, over its chart, in the legend
    plain = page_of(tmp_path / "plain", [{"step": 0, "image/l1": 1.0, "other": 2}])
    assert page.tags == plain.tags


def add_image(folder, step, shade=0):
    path = folder / "images" / f"step-{step}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)
    return path.read_bytes()


def test_the_page_needs_nothing_but_itself(tmp_path):
    add_image(run_of(tmp_path, ROWS), "000004")
    page = Page(report(tmp_path))
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    text = (tmp_path / "report.html").read_text()
    assert [
        word
        for word in ("http", "//", "url(", "@import", "<script", "<link")
        if word in re.sub('base64,[^"]*', "", text)
    ] == []


def test_images_come_newest_first_as_they_are(tmp_path):
    folder = run_of(tmp_path, ROWS)
    data = {step: add_image(folder, step, shade) for shade, step in enumerate(("000009", "1000000", "000010"))}
    add_image(folder, "other")
    assert Page(report(folder)).images == [
        ("step 1,000,000", data["1000000"]),
        ("step 10", data["000010"]),
        ("step 9", data["000009"]),
    ]


def test_older_images_that_do_not_fit_are_counted(tmp_path, monkeypatch):
    folder = run_of(tmp_path, ROWS)
    sizes = [len(add_image(folder, f"{step:06d}")) for step in range(5)]
    monkeypatch.setattr(module, "IMAGES", sum(sizes[3:]))
    page = Page(report(folder))
    assert [step for step, _ in page.images] == ["step 4", "step 3"]
    assert any(text.startswith("3 older images") for text in page.text)


@pytest.mark.parametrize("cut", [b'{"step": 5, "tas', b'{"step": 5, "loss": 1.0}', b"\xff"])
def test_a_last_line_that_is_being_written_is_left_out(cut, tmp_path):
    whole = report(run_of(tmp_path, ROWS)).read_bytes()
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(cut)
    assert report(tmp_path).read_bytes() == whole


DAMAGED = [
    b"\n",
    b"nonsense\n",
    b"[1]\n",
    b'{"loss": 1}\n',
    b'{"step": "x"}\n',
    b'{"step": NaN}\n',
    b"\xff\n",
    b"[" * 9999 + b"\n",
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_named_in_one_sentence(line, tmp_path):
    log = run_of(tmp_path, ROWS) / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    refused(tmp_path, "is damaged at line 3;")
    assert not (tmp_path / "report.html").exists()


def refused(run, words, **options):
    assert issubclass(ReportError, AtokenError)
    with pytest.raises(ReportError, match=words) as error:
        report(run, **options)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_what_is_no_run_is_refused_in_one_sentence_and_nothing_is_made(tmp_path):
    refused(tmp_path / "missing", "is not the folder of a run")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is not the folder of a run")
    refused(tmp_path, "is not the folder of a run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for text in ("", '{"step": 0, "loss": 1.0}'):
        (tmp_path / "log.jsonl").write_text(text)
        refused(tmp_path, "holds no finished step yet")


def test_the_page_appears_whole_or_the_older_one_stays(tmp_path):
    older = report(run_of(tmp_path, ROWS[:2])).read_bytes()
    run_of(tmp_path, ROWS)
    with no_file_over(200):
        refused(tmp_path, "Cannot write")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "report.html"]
    assert (tmp_path / "report.html").read_bytes() == older
    refused(tmp_path, "Cannot write", out=tmp_path / "missing" / "page.html")
    assert report(tmp_path, tmp_path / "page.html") == tmp_path / "page.html"
    assert (tmp_path / "page.html").read_bytes() != older


@pytest.mark.parametrize(
    "values", [[0.0], [5e-324, 0.0], [3e38, -3e38], [1e-300, 1e300], [7.0, 7.0 + 1e-15], [-1.0, 0.0]]
)
def test_charts_of_odd_values_have_ticks_inside_and_finite_places(values, tmp_path):
    chart = page_of(tmp_path, loss(values)).charts["loss"]
    places = np.array([place for _, place in chart["level"]])
    assert len(places) >= 2
    assert ((places >= charts.TOP - PLACE) & (places <= charts.BOTTOM + PLACE)).all()
    assert "nan" not in "".join(chart[name] for name in chart if name.startswith(("rows", "mean", "grid")))
