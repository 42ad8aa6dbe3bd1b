"""The tables of a report, and all of them as Markdown. Numbers of different fingerprints never share a column."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.report.results import Column, Row

LISTED = 20  # failed items named for each row
_GROUPED = re.compile(r"(.+)/(\d+)")  # a number of one group of codes


@dataclass(frozen=True)
class Table:
    """Cells as text, as a rule of ``numbers``; all rows as long as ``head``."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = False


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one task together, tasks in the order in which they come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(row)
    return found


def names(rows: Sequence[Row]) -> list[str]:
    """How the rows of one task are called: by model, and by number where several have the same."""
    models = [row.model for row in rows]
    return [
        name if models.count(name) == 1 else f"{name} ({models[: place + 1].count(name)})"
        for place, name in enumerate(models)
    ]


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Those of the rows of one task: numbers, numbers by group, what the models are, protocol, problems."""
    yield numbers_table(rows)
    for row, name in zip(rows, names(rows), strict=True):
        if groups := grouped(row):
            yield _groups_table(name, groups)
    yield _records_table("Models", rows, [row.record.get("identity", {}) for row in rows])
    yield protocol_table(rows)
    yield _records_table("Runs", rows, [_flat(row.run) for row in rows])
    if problems := tuple(_problems(rows)):
        yield Table("Problems", ("model", "what", "why"), problems)


def numbers_table(rows: Sequence[Row]) -> Table:
    """A line for each row; a column for each number and fingerprint, empty where a row has it under another one."""
    found = [row.numbers() for row in rows]
    columns = list(dict.fromkeys(column for of in found for column in of if not _GROUPED.fullmatch(column.name)))
    order = [column.name for column in columns]
    columns.sort(key=lambda column: order.index(column.name))
    head = ("model", "items", *(f"{column.name} [{column.fingerprint}]" for column in columns))
    lines = [
        (name, _measured(row), *(_text(of, column) for column in columns))
        for name, row, of in zip(names(rows), rows, found, strict=True)
    ]
    return Table("Numbers [fingerprint of how they were made]", head, tuple(lines), numbers=True)


def grouped(row: Row) -> dict[str, dict[int, float]]:
    """Numbers of groups of codes, by name and group."""
    found: dict[str, dict[int, float]] = {}
    for column, value in row.numbers().items():
        if match := _GROUPED.fullmatch(column.name):
            found.setdefault(match[1], {})[int(match[2])] = value
    return {name: dict(sorted(of.items())) for name, of in found.items()}


def protocol_table(rows: Sequence[Row]) -> Table:
    """Every field that must agree: one value where it does, else that of each row, and the field is marked."""
    protocols = [row.protocol() for row in rows]
    fields = list(dict.fromkeys(name for of in protocols for name in of))
    lines = [(name, [of.get(name, "not recorded") for of in protocols]) for name in fields]
    if all(len(set(values)) == 1 for _, values in lines):
        return Table("Protocol", ("field", "value"), tuple((name, values[0]) for name, values in lines))
    marked = tuple((name if len(set(values)) == 1 else f"{name} (differs)", *values) for name, values in lines)
    return Table("Protocol: fields differ, so numbers are in columns of their own", ("field", *names(rows)), marked)


def number_text(value: float) -> str:
    """Four places below 10, two below 10,000, none above."""
    size = abs(value)
    return f"{value:.4f}" if size < 10 else f"{value:,.2f}" if size < 10_000 else f"{value:,.0f}"


def markdown(rows: Sequence[Row]) -> str:
    """All tables, task by task."""
    parts = []
    for task, of in by_task(rows).items():
        parts.append(f"## {_escaped(task)}\n")
        parts += [_markdown(table) for table in tables(of)]
    return "\n".join(parts)


def _markdown(table: Table) -> str:
    head, *lines = (tuple(map(_escaped, row)) for row in (table.head, *table.rows))
    body = [head, ("---",) * len(head), *lines]
    return f"### {_escaped(table.title)}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in body)


def _escaped(text: str) -> str:
    """As plain text of Markdown, in one line."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", " ".join(text.split()))


def _text(numbers: Mapping[Column, float], column: Column) -> str:
    return number_text(numbers[column]) if column in numbers else ""


def _measured(row: Row) -> str:
    items = row.record["items"]
    measured, full = items.get("measured", 0), items.get("full", items["planned"])
    parts = f"{measured:,}" if measured == full else f"{measured:,} of {full:,}"
    return parts if row.record["status"] == "complete" else f"{parts}, {row.record['status']}"


def _groups_table(name: str, groups: Mapping[str, Mapping[int, float]]) -> Table:
    places = sorted({group for of in groups.values() for group in of})
    lines = tuple(
        (str(group), *(number_text(of[group]) if group in of else "" for of in groups.values())) for group in places
    )
    return Table(f"Codes of {name}", ("group", *groups), lines, numbers=True)


def _records_table(title: str, rows: Sequence[Row], records: Sequence[Mapping[str, object]]) -> Table:
    fields = list(dict.fromkeys(name for record in records for name in record))
    lines = [
        (name, *(str(record.get(field, "")) for field in fields))
        for name, record in zip(names(rows), records, strict=True)
    ]
    return Table(title, ("model", *fields), tuple(lines))


def _flat(record: Mapping[str, object]) -> dict[str, object]:
    """Blocks inside a block as ``outer.inner``."""
    found: dict[str, object] = {}
    for name, value in record.items():
        inner = {f"{name}.{key}": more for key, more in value.items()} if isinstance(value, Mapping) else {name: value}
        found |= inner
    return found


def _problems(rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    for name, row in zip(names(rows), rows, strict=True):
        record = row.record
        if record.get("why"):
            yield name, str(record["status"]), str(record["why"])
        yield from ((name, f"{metric}: no number", str(why)) for metric, why in record.get("faults", {}).items())
        yield from ((name, f"{metric}: left out", str(why)) for metric, why in record.get("skipped", {}).items())
        failed = record.get("failed", [])
        yield from ((name, str(one["key"]), str(one["why"])) for one in failed[:LISTED])
        if len(failed) > LISTED:
            yield name, f"{len(failed) - LISTED:,} more items or more", "see the file of items"
