"""The tables of a report. Numbers of different fingerprints never share a column."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from atoken.report.page import Table
from eval.report.results import Row

LISTED = 20  # failed items named for each row
_GROUPED = re.compile(r"(.+)/(\d+)")  # a number of one group of codes


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one task together, tasks in the order in which they come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.task, []).append(row)
    return found


def names(rows: Sequence[Row]) -> list[str]:
    """What the rows of one task are called: their model, and a number where several have the same."""
    models = [row.model for row in rows]
    return [
        name if models.count(name) == 1 else f"{name} ({models[: position + 1].count(name)})"
        for position, name in enumerate(models)
    ]


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Those of the rows of one task: numbers, numbers by group, what the models are, protocol, problems."""
    yield numbers_table(rows)
    for row, name in zip(rows, names(rows), strict=True):
        if groups := grouped(row):
            numbers = [
                (str(group), *(number_text(of[group]) if group in of else "" for of in groups.values()))
                for group in sorted(set().union(*groups.values()))
            ]
            yield Table(f"Codes of {name}", ("group", *groups), numbers, len(groups))
    identities = [row.record.get("identity", {}) for row in rows]
    fields = tuple(dict.fromkeys(field for identity in identities for field in identity))
    models = [
        (name, *(str(identity.get(field, "")) for field in fields))
        for name, identity in zip(names(rows), identities, strict=True)
    ]
    yield Table("Models", ("model", *fields), models)
    yield _agreement("Protocol", rows, [row.protocol() for row in rows])
    yield _agreement("Run", rows, [dict(_flat(row.run)) for row in rows])
    if problems := list(_problems(rows)):
        yield Table("Problems", ("model", "what", "why"), problems)


def numbers_table(rows: Sequence[Row]) -> Table:
    """A line for each row; a column for each number and fingerprint, empty where a row has it under another one."""
    found = [row.numbers() for row in rows]
    columns = list(dict.fromkeys(column for of in found for column in of if not _GROUPED.fullmatch(column.name)))
    order = [column.name for column in columns]
    columns.sort(key=lambda column: order.index(column.name))
    lines = [
        (name, _measured(row), *(number_text(of[column]) if column in of else "" for column in columns))
        for name, row, of in zip(names(rows), rows, found, strict=True)
    ]
    head = ("model", "items", *(f"{column.name} [{column.fingerprint}]" for column in columns))
    return Table("Numbers [fingerprint of their protocol]", head, lines, len(head) - 1)


def grouped(row: Row) -> dict[str, dict[int, float]]:
    """Numbers of groups of codes, by name and group."""
    found: dict[str, dict[int, float]] = {}
    for column, value in row.numbers().items():
        if match := _GROUPED.fullmatch(column.name):
            found.setdefault(match[1], {})[int(match[2])] = value
    return {name: dict(sorted(of.items())) for name, of in found.items()}


def _agreement(title: str, rows: Sequence[Row], records: Sequence[Mapping[str, str]]) -> Table:
    """Every field: one value where all fields agree, else that of each row, and the fields that differ are marked."""
    fields = dict.fromkeys(field for record in records for field in record)
    values = {field: [record.get(field, "not recorded") for record in records] for field in fields}
    if all(len(set(of)) == 1 for of in values.values()):
        return Table(title, ("field", "value"), [(field, of[0]) for field, of in values.items()])
    marked = [(field if len(set(of)) == 1 else f"{field} (differs)", *of) for field, of in values.items()]
    return Table(f"{title}: fields differ", ("field", *names(rows)), marked)


def number_text(value: float) -> str:
    """Four decimals below 10, two below 10,000, none above."""
    size = abs(value)
    return f"{value:.4f}" if size < 10 else f"{value:,.2f}" if size < 10_000 else f"{value:,.0f}"


def _measured(row: Row) -> str:
    items = row.record["items"]
    measured, full = items.get("measured", 0), items.get("full", items["planned"])
    count = f"{measured:,}" if measured == full else f"{measured:,} of {full:,}"
    return count if row.record["status"] == "complete" else f"{count}, {row.record['status']}"


def _flat(record: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    """Blocks inside a block as ``outer.inner``."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, str(value)


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
