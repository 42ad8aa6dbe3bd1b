"""The page of result files: tables, charts and images of one task after another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from atoken.report.charts import by_number, histogram
from atoken.report.page import IMAGES, Block, Figure, Figures, fitting, write
from eval.protocol import digest
from eval.report.findings import Boxes, Pair, pairs, read_boxes
from eval.report.results import Column, Row, read_results
from eval.report.tables import by_task, grouped, names, tables

SIZE = "size"  # the metric whose numbers say how much a model needs; quality is drawn against them
KEPT = {"worst": "Worst first", "shown": "A fixed sample"}  # blocks of images in a row
EXPLAINED = (
    "Numbers share a column only if they were measured in the same way: the eight digits behind a name are the "
    "fingerprint of everything that must agree. An empty cell was measured in another way, or not at all."
)

Points = dict[str, list[tuple[float, float]]]  # (x, y) by name of a line


def report(
    results: Sequence[str | Path], out: str | Path, boxes: str | Path | None = None, *, short: bool = False
) -> Path:
    """Write results as one page, or, where ``out`` ends in .md, as Markdown tables.

    boxes: JSON of boxes by key (``findings.read_boxes``), of which the page shows crops. short: without
    images, histograms of items, and charts by bytes beside those by bits per pixel. Numbers share a column only where
    their fingerprints agree. Returns the path. Raises: ReportError, MissingExtraError (matplotlib).
    """
    rows, target = read_results(results), Path(out)
    placed = {} if boxes is None else read_boxes(boxes)
    sections: dict[str, Sequence[Block]] = {"": [EXPLAINED]}
    for task, of in by_task(rows).items():
        first, *others = tables(of)
        figures = [] if target.suffix == ".md" else [*_charts(of, short=short)]
        if not short and target.suffix != ".md":
            figures += _shown(of, placed, IMAGES // len(rows))
        sections[task] = [first, *figures, *others]
    write(target, " · ".join(by_task(rows)), sections)
    return target


def _charts(rows: Sequence[Row], *, short: bool) -> Iterator[Block]:
    of_items = () if short else _histograms(rows)
    if charts := [*_rate_charts(rows, short=short), *_code_charts(rows), *of_items]:
        yield Figures("Charts", charts)


def _shown(rows: Sequence[Row], boxes: Boxes, room: int) -> Iterator[Block]:
    for row, name in zip(rows, names(rows), strict=True):
        yield from fitting(_images(row, name, boxes), room)
        if missing := len(boxes.keys() - {one["key"] for block in KEPT for one in row.record.get(block, ())}):
            yield f"Of {missing:,} keys with boxes no image of {name} was kept, so no crop is shown."


def rate_curves(rows: Sequence[Row]) -> dict[tuple[Column, Column], Points]:
    """Points (size, quality) by these two columns, and by kind of model: the name up to its first comma.

    Only pairs that make a curve: a kind of model has several sizes. Other kinds with the same fingerprints are added.
    """
    found: dict[tuple[Column, Column], Points] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        numbers, groups = row.numbers(), grouped(row)
        sizes = [column for column in numbers if row.record["numbers"][column.name]["metric"] == SIZE]
        for size in sizes:
            for quality in numbers:
                if quality not in sizes and quality.name.rpartition("/")[0] not in groups:
                    found[size, quality][row.model.partition(",")[0]].append((numbers[size], numbers[quality]))
    return {pair: kinds for pair, kinds in sorted(found.items()) if max(map(len, kinds.values())) > 1}


def _rate_charts(rows: Sequence[Row], *, short: bool) -> Iterator[Figure]:
    found = rate_curves(rows)
    first = min((size.name for size, _ in found), default="")  # bits per pixel, before bytes
    for (size, quality), points in found.items():
        if short and size.name != first:
            continue
        title = f"{quality.name} by {size.name}"
        yield Figure(title, by_number(title, size.name, quality.name, points, logarithmic=True))


def _code_charts(rows: Sequence[Row]) -> Iterator[Figure]:
    lines: dict[str, Points] = defaultdict(dict)
    for row, name in zip(rows, names(rows), strict=True):
        for number, of in grouped(row).items():
            lines[number][name] = [*of.items()]
    for number, points in lines.items():
        title = f"{number} by group"
        yield Figure(title, by_number(title, "group of codes", number, points))


def _histograms(rows: Sequence[Row]) -> Iterator[Figure]:
    values: dict[Column, dict[str, np.ndarray]] = defaultdict(dict)
    for row, name in zip(rows, names(rows), strict=True):
        columns = {column.name: column for column in row.numbers()}
        for number, of_items in row.items().items():
            of_items_alone = Column(number, digest(row.protocol())[:8])  # all of the protocol must agree
            values[columns.get(number, of_items_alone)][name] = of_items
    for column, of in values.items():
        if any(np.isfinite(numbers).any() for numbers in of.values()):
            title = f"{column.name} of each item [{column.fingerprint}]"
            yield Figure(title, histogram(title, column.name, of))


def _images(row: Row, name: str, boxes: Boxes) -> Iterator[tuple[str, Figure]]:
    kept: dict[str, tuple[str, Pair]] = {}
    for block, title in KEPT.items():
        for pair in pairs(row, block):
            kept.setdefault(pair.key, (f"{title}: {name}", pair))
    for title, pair in kept.values():
        yield title, pair.triptych()
        yield from ((f"Crops: {name}", crop) for crop in pair.crops(boxes))
