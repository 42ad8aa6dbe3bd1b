"""Rows of several result files side by side. Numbers with different fingerprints never stand in one column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from atoken.report.page import Table
from eval.protocol import binding
from eval.report.results import Column, Row, read_results
from eval.report.tables import by_task, names, numbers_table


@dataclass(frozen=True)
class Comparison:
    """A table for each task; why some numbers have columns of their own; tasks that only one file has."""

    tables: tuple[Table, ...]
    refused: tuple[str, ...]
    alone: tuple[str, ...]


def compare(paths: Sequence[str | Path]) -> Comparison:
    """What result files have in common.

    Refused are numbers of a task that two rows have under different protocols, and files without a common task.
    Raises: ReportError.
    """
    tasks = by_task(read_results(paths))
    shared = [rows for rows in tasks.values() if len({row.path for row in rows}) > 1 or len(paths) == 1]
    alone = tuple(f"{task}: only in {rows[0].path}." for task, rows in tasks.items() if rows not in shared)
    refused = [line for rows in tasks.values() for line in _refused(rows)]
    if not shared:
        refused.append(f"These files have no task in common: {', '.join(tasks)}.")
    tables = []
    for task, rows in tasks.items():
        table = numbers_table(rows)
        lines = [(str(row.path), *cells) for row, cells in zip(rows, table.rows, strict=True)]
        tables.append(Table(task, ("file", *table.head), lines, table.numbers))
    return Comparison(tuple(tables), tuple(refused), alone)


def _refused(rows: Sequence[Row]) -> Iterator[str]:
    """For every row, against the first row that has the same number under another fingerprint: which fields differ."""
    called = [f"{name} in {row.path}" for name, row in zip(names(rows), rows, strict=True)]
    for position, row in enumerate(rows):
        clashes: dict[tuple[int, str], list[str]] = {}
        for column in row.numbers():
            if (other := _first_clash(rows[:position], column)) is not None:
                fields = "; ".join(differences(rows[other], row, column.name))
                clashes.setdefault((other, fields), []).append(column.name)
        for (other, fields), numbers in clashes.items():
            yield f"{', '.join(numbers)} of {called[position]} cannot be compared with {called[other]}: {fields}."


def _first_clash(rows: Sequence[Row], column: Column) -> int | None:
    for position, row in enumerate(rows):
        if any(other.name == column.name and other != column for other in row.numbers()):
            return position
    return None


def differences(first: Row, second: Row, number: str) -> list[str]:
    """The fields that must agree for a number and do not, each with both values."""
    one, two = (
        {"metric": metric} | binding(row.record["protocol"], metric)
        for row in (first, second)
        for metric in [row.record["numbers"][number]["metric"]]
    )
    return [
        f"{name} is {one.get(name) or 'not recorded'} and {two.get(name) or 'not recorded'}"
        for name in dict.fromkeys(chain(one, two))
        if one.get(name) != two.get(name)
    ]


def plain(table: Table) -> str:
    """A table for a terminal: words to the left, numbers to the right."""
    lines = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = len(widths) - table.numbers
    pad = [str.ljust] * words + [str.rjust] * table.numbers
    return "\n".join(
        "  ".join(to(cell, width) for to, cell, width in zip(pad, line, widths, strict=True)).rstrip() for line in lines
    )
