"""Reports: which numbers share a column, what a page holds, and that it reaches for nothing outside itself."""

import json
import re

import numpy as np
import PIL.Image
import pytest

from atoken.errors import ReportError
from atoken.io import Image
from atoken.metrics.pixels import psnr
from eval import run
from eval.metrics.pixels import Psnr, Ssim
from eval.protocol import FORMAT, EvalProtocol
from eval.report import findings, page, tables
from eval.report.page import report
from eval.report.results import Column, read_results
from tests.eval import small
from tests.report.pages import Page

NUMBERS = "Numbers [fingerprint of their protocol]"
PROTOCOL = EvalProtocol(
    task="folder", data="d0", items=3, crop="none", filter="none", size="native", frames="all", fps="native",
    cameras="none", background="black", templates="none", dtype="float32", latents="mean", seed="none",
    code="0.1+abc", metrics={"psnr": {"peak": "255"}, "usage": {"codes of a group": "4096"}, "size": {"unit": "bits"}},
)  # fmt: skip


def row_of(model="nano", status="complete", numbers=None, protocol=PROTOCOL, **more):
    found = {"psnr": ("psnr", 24.126)} if numbers is None else numbers
    record = protocol.record()
    return {
        "task": protocol.task,
        "model": model,
        "identity": {"weights": f"of {model}"},
        "modality": "image",
        "status": status,
        "why": "" if status == "complete" else "Some sentence.",
        "protocol": record,
        "numbers": {
            name: {"value": value, "metric": metric, "fingerprint": protocol.fingerprint(metric)}
            for name, (metric, value) in found.items()
        },
        "faults": {},
        "skipped": {},
        "items": {"planned": 3, "measured": 3, "full": 3},
        "failed": [],
        "worst": [],
    } | more


def written(folder, *rows, run=None, name="result.json"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"format": FORMAT, "rows": list(rows), "run": {"host": "h"} if run is None else run}))
    return path


def changed(**fields):
    return EvalProtocol(**{name: getattr(PROTOCOL, name) for name in PROTOCOL.__dataclass_fields__} | fields)


# ----------------------------------------------------------------------------------------------------------- tables


def protocol_of(rows):
    return next(table for table in tables.tables(rows) if table.title.startswith("Protocol"))


def test_numbers_of_one_fingerprint_share_a_column(tmp_path):
    files = [written(tmp_path / "a", row_of("nano")), written(tmp_path / "b", row_of("JPEG"))]
    table = tables.numbers_table(read_results(files))
    psnr_ = f"psnr [{PROTOCOL.fingerprint('psnr')}]"
    assert table.head == ("model", "items", psnr_)
    assert table.rows == [("nano", "3", "24.13"), ("JPEG", "3", "24.13")]
    assert protocol_of(read_results(files)).head == ("field", "value")


@pytest.mark.parametrize("field", [name for name in PROTOCOL.__dataclass_fields__ if name not in ("task", "metrics")])
def test_numbers_whose_protocols_differ_in_any_field_stand_apart(tmp_path, field):
    other = changed(**{field: 4 if field == "items" else "another"})
    rows = read_results([written(tmp_path, row_of("nano"), row_of("JPEG", protocol=other))])
    table = tables.numbers_table(rows)
    assert [re.sub(r" \[.*", "", name) for name in table.head] == ["model", "items", "psnr", "psnr"]
    assert [row[2:] for row in table.rows] == [("24.13", ""), ("", "24.13")]
    marked = [row for row in protocol_of(rows).rows if row[0].endswith("(differs)")]
    assert [row[0] for row in marked] == [f"{field} (differs)"]
    assert len(set(marked[0][1:])) == 2


def test_a_convention_of_a_metric_parts_the_numbers_of_that_metric_alone(tmp_path):
    other = changed(metrics=PROTOCOL.metrics | {"psnr": {"peak": "1"}})
    numbers = {"psnr": ("psnr", 20.0), "bits": ("size", 3.0)}
    rows = read_results([written(tmp_path, row_of("a", numbers=numbers), row_of("b", numbers=numbers, protocol=other))])
    assert [re.sub(r" \[.*", "", name) for name in tables.numbers_table(rows).head[2:]] == ["psnr", "psnr", "bits"]


def test_failed_rows_show_no_number_and_say_why(tmp_path):
    failed = row_of("bad", "failed", faults={"psnr": "It is NaN."}, skipped={"lpips": "No weights."},
                    failed=[{"key": f"{n}.png", "why": "Broken."} for n in range(30)])  # fmt: skip
    partial = row_of("some", "partial", items={"planned": 3, "measured": 2, "full": 9})
    (first, *others) = tables.tables(read_results([written(tmp_path, failed, partial)]))
    assert [row[1:] for row in first.rows] == [("3, failed", ""), ("2 of 9, partial", "24.13")]
    problems = others[-1].rows
    assert ("bad", "failed", "Some sentence.") in problems
    assert ("bad", "psnr: no number", "It is NaN.") in problems
    assert ("bad", "lpips: left out", "No weights.") in problems
    assert sum(row[2] == "Broken." for row in problems) == tables.LISTED
    assert any("10 more" in row[1] for row in problems)


def test_models_of_one_name_are_told_apart(tmp_path):
    rows = read_results([written(tmp_path, row_of("a"), row_of("b"), row_of("a"))])
    assert tables.names(rows) == ["a (1)", "b", "a (2)"]


def test_numbers_by_group_are_a_table_of_their_own(tmp_path):
    numbers = {f"codes used/{g}": ("usage", g / 16) for g in (1, 0)} | {"codes used": ("usage", 1 / 32)}
    first, second, *_ = tables.tables(read_results([written(tmp_path, row_of(numbers=numbers))]))
    assert len(first.head) == 3
    assert (second.head, second.rows) == (("group", "codes used"), [("0", "0.0000"), ("1", "0.0625")])


def test_markdown_is_tables_whose_cells_cannot_break_out(tmp_path):
    evil = "a|b\n# <img src=x> `c` [d](http://e) _f_"
    rows = row_of(evil, "partial", why=evil), row_of(evil, protocol=changed(seed=evil))
    text = report([written(tmp_path, *rows)], tmp_path / "table.md").read_text()
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len(set(cells)) == 1
    assert not re.search(r"^# <", text, re.M)
    assert not re.search(r"(?<!\\)[<`]", text)
    assert not re.search(r"(?<!\\)\]\(", text)
    assert text.startswith("# folder\n\n")
    assert "## folder\n\n### Numbers" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"format": "older"}', "not a result file of this version"),
        (json.dumps({"format": FORMAT, "rows": [{"task": "x"}]}), "is damaged"),
        (json.dumps({"format": FORMAT, "rows": []}), "hold no rows"),
        (json.dumps({"format": FORMAT, "rows": [row_of(numbers={"psnr": ("psnr", float("nan"))})]}), "not finite"),
    ],
)
def test_what_is_no_result_is_refused_in_one_sentence(tmp_path, content, message):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ReportError, match=message):
        report([tmp_path / "result.json"], tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


# ------------------------------------------------------------------------------------------------------------- page


def with_images(folder, sizes=((40, 60), (24, 24)), **more):
    """A result with images of the worst items, a fixed sample and a file of items."""
    rng, worst = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        target = rng.integers(0, 256, (*size, 3), np.uint8)
        prediction = np.clip(target + rng.integers(-9, 10, target.shape), 0, 255).astype(np.uint8)
        for side, pixels in (("target", target), ("prediction", prediction)):
            Image(pixels).save(folder / f"{number}-{side}.png")
        names = {side: f"{number}-{side}.png" for side in ("target", "prediction")}
        worst.append({"key": f"<{number}>.png", "psnr": psnr(prediction, target)} | names)
    lines = [{"key": "a", "psnr": 30.5}, {"key": "b", "psnr": "inf"}, {"key": "c", "failed": "Broken."}]
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = {"planned": 3, "measured": 2, "full": 3, "file": "items.jsonl"}
    numbers = {"psnr": ("psnr", 24.126)} | {f"codes used/{g}": ("usage", g / 16) for g in range(8)}
    return row_of(worst=worst[:-1], shown=worst, items=items, numbers=numbers, **more)


def test_what_the_runner_writes_becomes_a_page(tmp_path):
    jobs = [small.job(20, model=small.Copy(noise), metrics=[Psnr(), Ssim()], unreadable=(3,)) for noise in (3, 9)]
    rows = [run.measure(job, tmp_path) for job in jobs]
    result = written(tmp_path, *rows, run={"seconds": 3.5, "versions": {"numpy": "2"}})
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({rows[0]["shown"][0]["key"]: [{"box": [2, 2, 9, 12]}]}))
    found = Page(report([result], tmp_path / "page.html", boxes))
    (table,) = found.tables[NUMBERS]
    assert [line[:2] for line in table[1:]] == [["copy (1)", "19 of 20, partial"], ["copy (2)", "19 of 20, partial"]]
    assert len({name.partition(" [")[0] for name in table[0]}) == len(table[0])  # all numbers may be compared
    assert found.tables["Run"] == [[["field", "value"], ["seconds", "3.5"], ["versions.numpy", "2"]]]
    for name, row in zip(("copy (1)", "copy (2)"), rows, strict=True):
        captions = [caption for caption, _ in found.images_under(f"Worst first: {name}")]
        assert [caption.partition(",")[0] for caption in captions] == [one["key"] for one in row["worst"]]
        psnrs = [float(re.search(r", psnr ([\d.]+)", caption)[1]) for caption in captions]
        assert len(psnrs) == 8
        assert psnrs == sorted(psnrs)
        more = {one["key"] for one in row["shown"]} - {one["key"] for one in row["worst"]}
        assert len(found.images_under(f"A fixed sample: {name}")) == len(more)
        assert len(found.images_under(f"Crops: {name}")) == 1
    measured = [title.partition(" of each item")[0] for title in found.charts_under("Charts")]
    assert sorted(measured) == ["error", "psnr", "ssim"]


def read(path):
    return np.asarray(PIL.Image.open(path))


def test_a_page_holds_tables_charts_and_images_and_reaches_for_nothing(tmp_path):
    result = written(tmp_path, with_images(tmp_path, why="<script>"))
    found = Page(report([result], tmp_path / "page.html"))
    (table,) = found.tables[NUMBERS]
    assert table[1] == ["nano", "2 of 3", "24.13"]
    assert ["psnr.peak", "255"] in found.tables["Protocol"][0]
    assert found.tables["Codes of nano"][0][1:][3] == ["3", "0.1875"]
    assert found.tables["Problems"][0][1] == ["nano", "complete", "<script>"]
    assert found.reaches_outside() == []
    text = (tmp_path / "page.html").read_text()
    assert found.charts_under("Charts") == [
        "codes used by group",
        f"psnr of each item [{PROTOCOL.fingerprint('psnr')}]",
    ]
    assert [len(found.images_under(title)) for title in ("Worst first: nano", "A fixed sample: nano")] == [
        1,
        1,
    ]  # no twice
    assert text == report([result], tmp_path / "again.html").read_text()


def test_a_short_page_has_no_images_and_no_histograms(tmp_path):
    found = Page(report([written(tmp_path, with_images(tmp_path))], tmp_path / "page.html", short=True))
    assert found.images_under("Worst first: nano") == []
    assert not any("of each item" in title for title in found.charts_under("Charts"))


def test_images_are_shown_with_their_difference(tmp_path):
    found = Page(report([written(tmp_path, with_images(tmp_path))], tmp_path / "page.html"))
    ((caption, pixels),) = found.images_under("Worst first: nano")
    target, prediction = (read(tmp_path / f"0-{side}.png") for side in ("target", "prediction"))
    factor = int(re.search(r"difference x (\d+)", caption)[1])
    assert factor == 16  # differences are at most 9, so that 16 x 9 < 255 < 32 x 9, more than 1 % of them
    assert "<0>.png, psnr " in caption
    wanted = np.concatenate([target, prediction, np.abs(target.astype(int) - prediction) * factor], axis=1)
    assert (pixels == wanted).all()


def test_crops_stand_side_by_side_with_their_psnr(tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(
        json.dumps({"<0>.png": [{"box": [5, 10, 25, 18], "what": "face"}], "gone": [{"box": [0, 0, 1, 1]}]})
    )
    found = Page(report([written(tmp_path, with_images(tmp_path))], tmp_path / "page.html", boxes))
    ((caption, pixels),) = found.images_under("Crops: nano")
    target, prediction = (read(tmp_path / f"0-{side}.png")[10:18, 5:25] for side in ("target", "prediction"))
    assert (pixels == np.concatenate([target, prediction], axis=1)).all()
    error = np.square(target.astype(float) - prediction).mean()
    assert caption.startswith(f"face of <0>.png, PSNR {10 * np.log10(255**2 / error):.2f} dB")
    assert "Of 1 keys with boxes" in found.text
    for box in ([5, 10, 61, 18], [-1, 10, 25, 18], [5, 18, 25, 18]):
        boxes.write_text(json.dumps({"<0>.png": [{"box": box}]}))
        with pytest.raises(ReportError, match="not inside its 60x40 pixels"):
            report([tmp_path / "result.json"], tmp_path / "page.html", boxes)
    for wrong in ('{"a": [[0, 0, 1, 1]]}', "[]", "{"):
        boxes.write_text(wrong)
        with pytest.raises(ReportError, match="holds no boxes"):
            findings.read_boxes(boxes)


def test_images_over_the_limit_are_counted_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "IMAGES", 9_000)
    row = with_images(tmp_path, ((10, 10), (60, 60), (11, 11)))
    found = Page(report([written(tmp_path, row)], tmp_path / "page.html"))
    assert "1 more images, too large for this page" in found.text
    assert len(found.images_under("Worst first: nano")) + len(found.images_under("A fixed sample: nano")) == 2


def test_a_report_goes_on_without_the_file_of_items_and_refuses_files_of_elsewhere(tmp_path):
    row = with_images(tmp_path)
    (tmp_path / "items.jsonl").unlink()
    charts = Page(report([written(tmp_path, row)], tmp_path / "p.html")).charts_under("Charts")
    assert charts == ["codes used by group"]
    row["worst"][0]["target"] = "../secret.png"
    with pytest.raises(ReportError, match="outside its folder"):
        report([written(tmp_path, row)], tmp_path / "p.html")
    row["worst"][0]["target"] = "missing.png"
    with pytest.raises(ReportError, match="cannot be read"):
        report([written(tmp_path, row)], tmp_path / "p.html")


def test_items_are_read_by_name(tmp_path):
    (row,) = read_results([written(tmp_path, with_images(tmp_path))])
    assert np.array_equal(row.items()["psnr"], [30.5, np.inf, np.nan], equal_nan=True)
    (tmp_path / "items.jsonl").write_text('{"key": "a"}\n{"key"')
    with pytest.raises(ReportError, match="damaged at line 2"):
        row.items()


def test_rate_curves_join_the_sizes_of_one_kind_of_model(tmp_path):
    def at(model, bits, quality, protocol=PROTOCOL):
        return row_of(model, numbers={"bits": ("size", bits), "psnr": ("psnr", quality)}, protocol=protocol)

    rows = [at("JPEG, quality 50", 2.0, 30.0), at("JPEG, quality 10", 1.0, 25.0), at("nano", 1.5, 28.0)]
    elsewhere = at("JPEG, quality 90", 3.0, 33.0, changed(dtype="bfloat16"))
    found = page.rate_curves(read_results([written(tmp_path, *rows, elsewhere)]))
    ((size, quality),) = found  # the other one is a point alone
    assert (size, quality) == (
        Column("bits", PROTOCOL.fingerprint("size")),
        Column("psnr", PROTOCOL.fingerprint("psnr")),
    )
    assert found[size, quality] == {"JPEG": [(2.0, 30.0), (1.0, 25.0)], "nano": [(1.5, 28.0)]}
    shown = Page(report([written(tmp_path, *rows)], tmp_path / "page.html"))
    assert shown.charts_under("Charts") == ["psnr by bits"]
    assert {"JPEG", "nano"} <= set(shown.charts[0][2])
