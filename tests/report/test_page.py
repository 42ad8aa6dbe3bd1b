"""A page shows what it was given as text, needs nothing but itself, and is the same each time."""

import re
from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from atoken.errors import ReportError
from atoken.report.page import Figure, Figures, Table, fitting, write
from atoken.report.rows import read_rows
from tests.report.pages import Page

HOSTILE = "\"'><script src=http://x>alert(1)</script>&amp;| `c` [d](http://e) _f_\n# <img src=x> \ud800"
TABLE = Table("Numbers", ("model", "task", "psnr"), [("nano", "a", "24.1"), ("JPEG", "b", "30.0")], numbers=1)


def png(size=8):
    file = BytesIO()
    PIL.Image.fromarray(np.full((size, size, 3), 7, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def written(folder, sections, name="page.html", title="title"):
    write(folder / name, title, sections)
    return folder / name


def everything(text):
    table = Table(text, (text, text), [(text, text)])
    image = Figure(text, png(), text, 40)
    chart = Figure(text, "<svg><text>chart</text></svg>")
    return {text: [text, table, Figures(text, [image]), Figures(text, [chart])]}


def test_a_page_holds_tables_charts_images_and_texts_under_their_titles(tmp_path):
    blocks = ["Some words.", TABLE, Figures("Charts", [Figure("loss", "<svg><text>1.5</text></svg>")]),
              Figures("Images", [Figure("first", png(), "target above prediction")])]  # fmt: skip
    page = Page(written(tmp_path, {"": ["Before."], "task": blocks}))
    assert page.tables == {"Numbers": [[list(TABLE.head), *map(list, TABLE.rows)]]}
    assert page.charts == [("Charts", "loss", ["1.5"])]
    assert page.images == [("Images", "firsttarget above prediction", png())]
    assert page.text.index("Before.") < page.text.index("task") < page.text.index("Some words.")


def test_what_comes_from_outside_is_text_and_never_markup(tmp_path):
    hostile, plain = (Page(written(tmp_path, everything(text), title=text)) for text in (HOSTILE, "plain"))
    assert hostile.tags == plain.tags
    shown = HOSTILE.replace("\ud800", "\ufffd")
    assert hostile.tables.popitem()[1][0][0] == [shown] * 2
    assert hostile.charts[0][1] == shown
    assert hostile.text.count("<script src=http://x>") == plain.text.count("plain")


def test_a_page_reaches_for_nothing_and_is_the_same_each_time(tmp_path):
    path = written(tmp_path, everything("plain"))
    assert Page(path).reaches_outside() == []
    assert not re.search(
        r"https?:|//|url\(|@import|<script|<link|<iframe", re.sub('base64,[^"]*', "", path.read_text())
    )
    assert path.read_bytes() == written(tmp_path, everything("plain"), "again.html").read_bytes()


def test_a_page_has_the_reader_s_theme(tmp_path):
    text = written(tmp_path, everything("plain")).read_text()
    light, dark = re.findall(r":root \{[^}]*--paper: (#\w+)", text)
    assert (light, dark) == ("#fff", "#14171c")
    assert "prefers-color-scheme: dark" in text


def test_markdown_has_the_texts_and_tables_and_nothing_breaks_out(tmp_path):
    text = written(tmp_path, {"task": ["Words.", TABLE]}, "page.md").read_text()
    assert text.splitlines() == [
        "# title", "", "## task", "", "Words.", "", "### Numbers", "",
        "| model | task | psnr |", "| --- | --- | ---: |", "| nano | a | 24.1 |", "| JPEG | b | 30.0 |",
    ]  # fmt: skip
    text = written(tmp_path, everything(HOSTILE), "hostile.md", HOSTILE).read_text()
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()} == {3}
    assert not re.search(r"^# <|(?<!\\)[<`]|(?<!\\)\]\(", text, re.M)


def test_images_are_shown_as_far_as_they_fit_and_the_others_are_counted():
    images = [
        (title, Figure(str(size), bytes(size))) for title, size in (("a", 5), ("b", 9), ("a", 4), ("b", 1), ("b", 1))
    ]
    first, second, sentence = fitting(images, 10)
    assert [(of.title, [image.title for image in of.figures]) for of in (first, second)] == [
        ("a", ["5", "4"]),
        ("b", ["1"]),
    ]
    assert sentence.startswith("2 more images, too large for this page")
    assert list(fitting(images, 20)) == [
        Figures("a", [images[0][1], images[2][1]]),
        Figures("b", [images[i][1] for i in (1, 3, 4)]),
    ]
    assert list(fitting([], 1)) == []


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(ReportError, match=r"^Cannot write .*\.$"):
        written(tmp_path / "missing", {})


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b"[1]\n", b"7\n", b"\xff\n", b"[" * 99_999 + b"\n"])
def test_a_damaged_row_is_named_in_one_sentence(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + line + b'{"a": 3}\n')
    rows = read_rows(path)
    assert [next(rows), next(rows)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ReportError, match=r"is damaged at line 3;.*\.$"):
        next(rows)
    with pytest.raises(ReportError, match="Cannot read"):
        list(read_rows(tmp_path / "missing"))


@pytest.mark.parametrize("cut", [b'{"a": 2, "b', b'{"a": 2}', b"\xff"])
def test_a_last_line_without_an_end_is_left_out_of_a_growing_file_only(cut, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + cut)
    assert list(read_rows(path, growing=True)) == [{"a": 1}]
    if cut != b'{"a": 2}':
        with pytest.raises(ReportError, match="is damaged at line 2"):
            list(read_rows(path))
