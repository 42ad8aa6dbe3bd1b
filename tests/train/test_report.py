"""The report of runs: its numbers and curves are those of the logs, and a damaged or missing log is one sentence."""

import json
import math
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from atoken.errors import AtokenError, ReportError
from atoken.report.charts import POINTS
from atoken.train import report as module
from atoken.train.report import EVERY, read_curves, report
from tests.report.pages import Page
from tests.train.test_run_folder import no_file_over

pytest.importorskip("matplotlib", reason="the extra train is not installed")


def run_of(folder, rows, name="log"):
    """A run's folder with these rows in its log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def page_of(folder, rows):
    return Page(report([run_of(folder, rows)]))


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
    (tmp_path / "start-000000.json").write_text('{"rising": ["psnr", "zero-shot"]}')
    found = page_of(tmp_path, ROWS)
    assert "Best is the lowest value; of psnr and zero-shot the highest." in found.text
    facts, terms = found.tables[""]  # the clock starts again at step 2, where the run was resumed
    assert dict(facts[1:]) == {
        "steps done": "5",
        "last step": "4",
        "hours": "3.50",
        "of these, waiting for data": "7.5%",
        "tokens seen": "4,000",
        "samples broken": "5 of 1,234",
        "steps skipped (gradient not finite)": "1",
        "steps with any value not finite": "1",
    }
    assert terms[1:] == [
        ["loss", "image", "5", "2", "2", "1.25", "2", "1"],
        ["loss", "video", "1", "1", "1", "0.5", "3", "0"],
        ["loss", "every task", "6", "3", "3", "2", "2", "1"],
        ["l1", "image", "0.5", "0.2", "0.2", "0.125", "2", "1"],
        ["psnr", "image", "20", "22", "22", "22", "3", "0"],
        ["psnr", "video", "18", "18", "18", "18", "1", "1"],
        ["zero-shot", "image", "0.25", "0.125", "0.125", "0.25", "1", "0"],
    ]


def test_a_chart_is_drawn_of_every_numeric_column_and_of_no_other(tmp_path):
    rows = [{**row, "mfu": 0.4, "video/novel": 7, "note": "text", "nothing": None, "list": [1]} for row in ROWS]
    machinery = ["gradient norm", "learning rate", "tokens a step", "seconds a step", "seconds waited for data", "MFU",
                 "samples drawn", "samples broken"]  # fmt: skip
    found = page_of(tmp_path, rows)
    sections = {heading: found.charts_under(heading) for heading in ("Loss", "Evaluation", "Machinery")}
    assert sections == {"Loss": ["loss", "l1", "novel"], "Evaluation": [], "Machinery": machinery}
    run_of(tmp_path, EVALUATION, "evaluation")
    assert page_of(tmp_path, rows).charts_under("Evaluation") == ["psnr", "zero-shot"]
    texts = {title: texts for _, title, texts in found.charts}
    assert {"image", "video", EVERY} <= set(texts["loss"])
    assert {"image", "every task"} & set(texts["MFU"]) == {EVERY}


def curves_of(folder, rows, start=0):
    found = defaultdict(lambda: defaultdict(list))
    steps = read_curves(run_of(folder, rows) / "log.jsonl", start, found)
    return steps, {name: {task: part for task, (part,) in of.items()} for name, of in found.items()}


def test_every_task_has_its_own_curve_and_what_is_of_the_run_has_one(tmp_path):
    steps, curves = curves_of(tmp_path, ROWS, 100)
    assert steps == 5
    rows = {task: list(zip(curve.steps - 100, curve.values, strict=True)) for task, curve in curves["loss"].items()}
    for task, key in (("image", "image/loss"), ("video", "video/loss"), (EVERY, "loss")):
        logged = [(row["step"], row[key]) for row in ROWS if key in row]
        np.testing.assert_equal(rows[task], logged)
    assert list(curves["lr"]) == [EVERY]
    assert curves["seconds"][EVERY].values.tolist() == [3600, 3600, 1800, 1800, 1800]


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e39, 10**400])  # the last two are over fp32's range
def test_a_value_that_is_not_finite_is_counted_and_in_no_mean(value, tmp_path):
    _, curves = curves_of(tmp_path, loss([1.0, 2.0, value, 3.0, 2.0]))
    assert np.array_equal(curves["loss"]["image"].values, [1, 2, math.nan, 3, 2], equal_nan=True)
    assert curves["loss"]["image"].lost.tolist() == [0, 0, 1, 0, 0]
    found = Page(report([tmp_path]))
    assert found.tables[""][1][1] == ["loss", "image", "1", "2", "2", "1", "0", "1"]


def test_a_log_without_any_finite_value_still_has_a_page(tmp_path):
    assert page_of(tmp_path, loss([NAN] * 3)).tables[""][1][1] == ["loss", "image", *["none"] * 5, "3"]


def test_runs_that_follow_one_another_are_one_page_whose_steps_count_on(tmp_path):
    runs = [tmp_path / "coarse", tmp_path / "fine"]
    page_of(runs[0], ROWS)
    run_of(runs[1], loss([0.75, 0.25], drawn=66, broken=5))
    run_of(runs[1], [{"step": 1, "image/psnr": 30.0}], "evaluation")
    add_image(runs[0], "000004")
    latest = add_image(runs[1], "000001", 9)
    target = report(runs)
    assert target == runs[1] / "report.html"
    found = Page(target)
    facts, terms = found.tables[""]
    assert facts[1:3] == [["steps done", "7"], ["last step", "6"]]
    assert ["samples broken", "10 of 1,300"] in facts
    assert ["loss", "image", "5", "0.25", "0.25", "0.25", "6", "1"] in terms
    assert ["psnr", "image", "30", "30", "30", "30", "6", "0"] in terms
    assert found.images[0][2] == latest
    assert [caption for _, caption, _ in found.images] == ["step 6image grid", "step 4image grid"]
    texts = {title: texts for _, title, texts in found.charts}
    assert {"\u00a0coarse", "\u00a0fine"} <= set(texts["loss"])
    assert "coarse · fine" in found.text


def test_the_losses_alone_are_one_svg(tmp_path):
    run_of(tmp_path, ROWS)
    text = report([tmp_path], tmp_path / "loss.svg").read_text()
    assert text.startswith("<svg")
    assert all(f">{title}</text>" in text for title in ("loss", "l1"))
    assert "gradient norm" not in text
    assert text == report([tmp_path], tmp_path / "again.svg").read_text()


def test_a_long_run_is_a_short_page_that_says_so(tmp_path):
    found = page_of(tmp_path, loss([1 + step % 7 for step in range(20 * POINTS)]))
    assert f"more than {POINTS:,} rows is thinned" in found.text
    assert (tmp_path / "report.html").stat().st_size < (tmp_path / "log.jsonl").stat().st_size / 10


HOSTILE = "\"'><script>alert(1)<script>&amp;"


def test_what_comes_from_outside_is_text_and_never_markup(tmp_path):
    row = {"step": 0, f"{HOSTILE}/{HOSTILE}": 1.0, "\ud800": 2}
    found = page_of(tmp_path / HOSTILE, [row])
    assert found.charts_under("Loss")[0] == HOSTILE
    assert found.tables[""][1][1][:2] == [HOSTILE, HOSTILE]
    plain = page_of(tmp_path / "plain", [{"step": 0, "image/l1": 1.0, "other": 2}])
    assert found.tags == plain.tags


def add_image(folder, step, shade=0):
    path = folder / "images" / f"step-{step}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)
    return path.read_bytes()


def test_the_page_needs_nothing_but_itself_and_is_the_same_each_time(tmp_path):
    add_image(run_of(tmp_path, ROWS), "000004")
    first = report([tmp_path]).read_bytes()
    assert Page(tmp_path / "report.html").reaches_outside() == []
    assert report([tmp_path]).read_bytes() == first


def test_images_come_newest_first_as_they_are(tmp_path):
    folder = run_of(tmp_path, ROWS)
    data = {step: add_image(folder, step, shade) for shade, step in enumerate(("000009", "1000000", "000010"))}
    add_image(folder, "other")
    assert [(caption.removesuffix("image grid"), image) for _, caption, image in Page(report([folder])).images] == [
        ("step 1,000,000", data["1000000"]),
        ("step 10", data["000010"]),
        ("step 9", data["000009"]),
    ]


def test_older_images_that_do_not_fit_are_counted(tmp_path, monkeypatch):
    folder = run_of(tmp_path, ROWS)
    sizes = [len(add_image(folder, f"{step:06d}")) for step in range(5)]
    monkeypatch.setattr(module, "IMAGES", sum(sizes[3:]))
    found = Page(report([folder]))
    assert [caption for _, caption, _ in found.images] == ["step 4image grid", "step 3image grid"]
    assert "3 more images, too large for this page" in found.text


@pytest.mark.parametrize("cut", [b'{"step": 5, "tas', b'{"step": 5, "loss": 1.0}', b"\xff"])
def test_a_last_line_that_is_being_written_is_left_out(cut, tmp_path):
    whole = report([run_of(tmp_path, ROWS)]).read_bytes()
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write(cut)
    assert report([tmp_path]).read_bytes() == whole


DAMAGED = [
    b"\n",
    b"nonsense\n",
    b"[1]\n",
    b'{"loss": 1}\n',
    b'{"step": "x"}\n',
    b'{"step": NaN}\n',
    b'{"step": -1}\n',
    b"\xff\n",
    b"[" * 9999 + b"\n",
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_named_in_one_sentence(line, tmp_path):
    log = run_of(tmp_path, ROWS) / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    refused(tmp_path, "is damaged at line 3[;:]")
    assert not (tmp_path / "report.html").exists()


def refused(run, words, **options):
    assert issubclass(ReportError, AtokenError)
    with pytest.raises(ReportError, match=words) as error:
        report([run], **options)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_what_is_no_run_is_refused_in_one_sentence_and_nothing_is_made(tmp_path):
    refused(tmp_path / "missing", "is not the folder of a run")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is not the folder of a run")
    refused(tmp_path, "is not the folder of a run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for text in ("", '{"step": 0, "loss": 1.0}', '{"step": 0}\n'):
        (tmp_path / "log.jsonl").write_text(text)
        refused(tmp_path, "holds no finished step yet")


def test_the_page_appears_whole_or_the_older_one_stays(tmp_path):
    older = report([run_of(tmp_path, ROWS[:2])]).read_bytes()
    run_of(tmp_path, ROWS)
    with no_file_over(200):
        refused(tmp_path, "Cannot write")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "report.html"]
    assert (tmp_path / "report.html").read_bytes() == older
    refused(tmp_path, "Cannot write", out=tmp_path / "missing" / "page.html")
    assert report([tmp_path], tmp_path / "page.html") == tmp_path / "page.html"
    assert (tmp_path / "page.html").read_bytes() != older
