"""One HTML page of results, whole in itself: tables, charts and images of one task after another."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image

from atoken.errors import ReportError
from atoken.io.atomic import atomic_path
from atoken.train.report import IMAGES, STYLE
from eval.protocol import digest
from eval.report import charts
from eval.report.findings import Box, Pair, crops, pairs, read_boxes, triptych
from eval.report.results import Column, Row, read_results
from eval.report.tables import Table, by_task, grouped, markdown, names, number_text, tables

SIZE = "size"  # the metric whose numbers say how much a model needs; quality is drawn against them
SMALLEST = 192  # pixels that an image is wide on the page, at least; smaller ones are enlarged
PARTS = {"worst": "Worst first", "shown": "A fixed sample"}  # blocks of images in a row

_STYLE = """
table { display: block; overflow-x: auto } td { max-width: 60ch; overflow-wrap: anywhere }
.words td, .words th { text-align: left }
img { image-rendering: pixelated } figcaption { font-size: .9rem } .images figure { margin: 1rem 0 }
.crops { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem }
"""


def report(results: Sequence[str | Path], out: str | Path, boxes: str | Path | None = None) -> Path:
    """Write results as one page, or, where ``out`` ends in .md, as Markdown tables; whole or not at all.

    boxes: JSON of boxes by key (``findings.read_boxes``), of which the page shows crops. Numbers stand in one column
    only where their fingerprints agree. Returns the path. Raises: ReportError, MissingExtraError (matplotlib).
    """
    rows, target = read_results(results), Path(out)
    placed = {} if boxes is None else read_boxes(boxes)
    text = markdown(rows) if target.suffix == ".md" else page(rows, placed)
    with atomic_path(target, ReportError) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")  # lone surrogates of a file's name
    return target


def page(rows: Sequence[Row], boxes: Mapping[str, list[tuple[str, Box]]]) -> str:
    """The page as HTML. Raises: as ``report``."""
    tasks = by_task(rows)
    title = " · ".join(tasks)
    parts = [part for task, of in tasks.items() for part in _task(task, of, boxes, IMAGES // len(rows))]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{STYLE}{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>Numbers share a column only where they were made in the same way: the eight digits behind a name are the fingerprint
of all that must agree. An empty cell was made in another way, or not at all.</p>
{"".join(parts)}</body></html>
"""


def _task(task: str, rows: Sequence[Row], boxes: Mapping[str, list[tuple[str, Box]]], room: int) -> Iterator[str]:
    first, *others = tables(rows)
    yield f"<h2>{escape(task)}</h2>\n{_table(first)}"
    if drawn := "".join(_charts(rows)):
        yield f'<h3>Charts</h3>\n<div class="charts">\n{drawn}</div>\n'
    for row, name in zip(rows, names(rows), strict=True):
        yield from _images(row, name, boxes, room)
    yield from map(_table, others)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows)
    kind = "numbers" if table.numbers else "words"
    return (
        f'<h3>{escape(table.title)}</h3>\n<table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table>\n"
    )


# ----------------------------------------------------------------------------------------------------------- charts


def _charts(rows: Sequence[Row]) -> Iterator[str]:
    for (size, quality), points in rate_curves(rows).items():
        title = f"{quality.name} by {size.name}"
        yield _figure(charts.curves(size.name, quality.name, points, logarithmic=True), title, title)
    yield from _codes(rows)
    yield from _histograms(rows)


def rate_curves(rows: Sequence[Row]) -> dict[tuple[Column, Column], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Points (sizes, qualities) by what is drawn, and by kind of model: the name up to its first comma.

    Only what makes a curve: a kind of model with several sizes, beside all others with the same fingerprints.
    """
    found: dict[tuple[Column, Column], dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        numbers = row.numbers()
        sizes = [column for column in numbers if row.record["numbers"][column.name]["metric"] == SIZE]
        for size in sizes:
            for quality in numbers.keys() - set(sizes) - {*_of_groups(row)}:
                kinds = found.setdefault((size, quality), {})
                kinds.setdefault(row.model.partition(",")[0], []).append((numbers[size], numbers[quality]))
    drawn = {pair: kinds for pair, kinds in sorted(found.items()) if max(map(len, kinds.values())) > 1}
    return {
        pair: {kind: (np.array(points)[:, 0], np.array(points)[:, 1]) for kind, points in kinds.items()}
        for pair, kinds in drawn.items()
    }


def _of_groups(row: Row) -> Iterator[Column]:
    of = grouped(row)
    return (column for column in row.numbers() if column.name.rpartition("/")[0] in of)


def _codes(rows: Sequence[Row]) -> Iterator[str]:
    lines: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for row, name in zip(rows, names(rows), strict=True):
        for number, of in grouped(row).items():
            lines.setdefault(number, {})[name] = np.array([*of]), np.array([*of.values()])
    for number, points in lines.items():
        yield _figure(charts.curves("group of codes", number, points), f"{number} by group", f"{number} by group")


def _histograms(rows: Sequence[Row]) -> Iterator[str]:
    values: dict[Column, dict[str, np.ndarray]] = {}
    for row, name in zip(rows, names(rows), strict=True):
        items, columns = row.items() or {}, {column.name: column for column in row.numbers()}
        for number, of_items in items.items():
            column = columns.get(number, Column(number, digest(row.protocol())[:8]))  # of items alone: all must agree
            values.setdefault(column, {})[name] = of_items
    for column, of in values.items():
        if any(np.isfinite(numbers).any() for numbers in of.values()):
            title = f"{column.name} of each item [{column.fingerprint}]"
            yield _figure(charts.histogram(column.name, of), title, title)


# --------------------------------------------------------------------------------------------------------- images


@dataclass
class _Room:
    """Bytes that are left for images, and how many images were larger than that."""

    left: int
    refused: int = 0
    crops: list[str] = field(default_factory=list)

    def takes(self, pixels: np.ndarray) -> bytes | None:
        data = _png(pixels)
        if len(data) > self.left:
            self.refused += 1
            return None
        self.left -= len(data)
        return data


def _images(row: Row, name: str, boxes: Mapping[str, list[tuple[str, Box]]], room: int) -> Iterator[str]:
    space, seen = _Room(room), set()
    for block, title in PARTS.items():
        figures = []
        for pair in pairs(row, block):
            if pair.key not in seen:
                space.crops += _crops(pair, boxes, space)
                figures.append(_triptych(pair, space))
            seen.add(pair.key)
        if any(figures):
            yield f'<h3>{title}: {escape(name)}</h3>\n<div class="images">\n{"".join(figures)}</div>\n'
    if space.crops:
        yield (
            f"<h3>Crops: {escape(name)}</h3>\n<p>Original left, reconstruction right.</p>\n"
            f'<div class="crops">\n{"".join(space.crops)}</div>\n'
        )
    if missing := len(boxes.keys() - seen):
        yield f"<p>Of {missing:,} keys with boxes no image of {escape(name)} was kept, so no crop is shown.</p>\n"
    if space.refused:
        yield f"<p>{space.refused:,} more images, too large for this page, are in the folder of the results.</p>\n"


def _triptych(pair: Pair, space: _Room) -> str:
    pixels, factor, (left, top, right, bottom) = triptych(pair.target, pair.prediction)
    if (data := space.takes(pixels)) is None:
        return ""
    height, width = pair.target.shape[:2]
    whole = (right - left, bottom - top) == (width, height)
    where = (
        ""
        if whole
        else f"; where it errs most, rows {top} to {bottom}, columns {left} to {right} of {height} x {width}"
    )
    numbers = "".join(f", {name} {number_text(value)}" for name, value in pair.numbers.items())
    what = f"original, reconstruction, difference x {factor}{where}"
    return _figure(data, f"{pair.key}{numbers}", what, _width(pixels, 3), what)


def _crops(pair: Pair, boxes: Mapping[str, list[tuple[str, Box]]], space: _Room) -> Iterator[str]:
    for crop in crops(pair, boxes.get(pair.key, ())):
        if (data := space.takes(crop.pixels)) is not None:
            title = f"{crop.what} of {crop.key}, PSNR {crop.psnr:.2f} dB"
            yield _figure(data, title, "original left of reconstruction", _width(crop.pixels, 2))


def _width(pixels: np.ndarray, beside: int) -> int:
    """Of so many images side by side, enlarged by a whole factor."""
    width = pixels.shape[1]
    return width * -(-SMALLEST // (width // beside)) if width < SMALLEST * beside else width


def _figure(png: bytes, title: str, words: str, width: int | None = None, small: str = "") -> str:
    data, size = base64.b64encode(png).decode(), "" if width is None else f' width="{width}"'
    below = f"<br><small>{escape(small)}</small>" if small else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{below}</figcaption>\n"
        f'<img src="data:image/png;base64,{data}" alt="{escape(words)}"{size}></figure>\n'
    )


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()
