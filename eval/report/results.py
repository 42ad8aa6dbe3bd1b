"""Result files and their files of items, read as ``eval/protocol.py`` describes them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atoken.errors import ReportError
from eval.protocol import FORMAT, binding, fingerprint


class Column(NamedTuple):
    """What may stand in one column: numbers of one name whose fingerprint is the same."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Row:
    """A row of a result file; ``path`` is that file, ``run`` its block of what may differ between runs."""

    path: Path
    record: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self.record["task"])

    @property
    def model(self) -> str:
        """The name of what was measured."""
        return str(self.record["model"])

    def numbers(self) -> dict[Column, float]:
        """Its numbers by column; none where it has failed."""
        if self.record["status"] == "failed":
            return {}
        protocol, numbers = self.record["protocol"], self.record["numbers"]
        return {
            Column(name, fingerprint(protocol, number["metric"])): float(number["value"])
            for name, number in numbers.items()
        }

    def protocol(self) -> dict[str, str]:
        """The fields that must agree, those of all its metrics together."""
        found: dict[str, Any] = {}
        for metric in dict.fromkeys(number["metric"] for number in self.record["numbers"].values()):
            found |= binding(self.record["protocol"], metric)
        return {name: "not recorded" if value is None else str(value) for name, value in found.items()}

    def file(self, name: str) -> Path:
        """A file that the row names, which lies below its result file. Raises: ReportError for one that does not."""
        path = self.path.parent / name
        if not path.resolve().is_relative_to(self.path.parent.resolve()):
            raise ReportError(f"{self.path} names {name}, which is outside its folder; do not trust this file.")
        return path

    def items(self) -> dict[str, np.ndarray] | None:
        """What was measured of each item alone, (items,) float64 by name; None where the file is not there any more.

        A number that is not finite or that an item lacks is NaN. Raises: ReportError.
        """
        named = self.record["items"].get("file")
        path = None if named is None else self.file(named)
        if path is None or not path.is_file():
            return None
        columns: dict[str, dict[int, float]] = defaultdict(dict)
        lines = 0
        for place, line in _lines(path):
            lines = place + 1
            for name, value in line.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    columns[name][place] = value if math.isfinite(value) else math.nan
        return {name: _array(values, lines) for name, values in columns.items()}


def read_results(paths: Iterable[str | Path]) -> list[Row]:
    """The rows of result files, in order. Raises: ReportError (missing, damaged, of another format, or no rows)."""
    rows = [row for path in paths for row in _rows(Path(path))]
    if not rows:
        raise ReportError("The result files hold no rows, so there is nothing to report; run an evaluation first.")
    return rows


def _rows(path: Path) -> Iterator[Row]:
    try:
        result = json.loads(path.read_bytes())
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path} is not JSON; pass the result file of an evaluation.") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ReportError(f"{path} is not a result file of this version ({FORMAT}); run the evaluation again.")
    try:
        for record in result["rows"]:
            row = Row(path, record, result.get("run", {}))
            wrong = [column.name for column, value in row.numbers().items() if not math.isfinite(value)]
            row.protocol(), record["task"], record["model"], record["items"]["planned"]
            if wrong:
                raise ReportError(f"In {path}, {wrong[0]} of {row.model} is not finite; run the evaluation again.")
            yield row
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReportError(f"{path} is damaged: a row lacks what it must hold; run the evaluation again.") from error


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    numbers = count()
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in zip(numbers, lines, strict=False):
                yield number, dict(json.loads(line))
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ReportError(f"{path} is damaged at line {number + 1}; run the evaluation again.") from error


def _array(values: Mapping[int, float], lines: int) -> np.ndarray:
    column = np.full(lines, np.nan)
    column[list(values)] = list(values.values())
    return column
