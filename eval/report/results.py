"""Result files and their files of items, read as ``eval/protocol.py`` describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atoken.errors import ReportError
from atoken.report.rows import read_rows
from eval.protocol import FORMAT, binding, fingerprint


class Column(NamedTuple):
    """What may stand in one column: numbers of one name whose fingerprint is the same."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Row:
    """A row of a result file; ``path`` is that file, ``run`` its block of what may differ between runs."""

    path: Path
    task: str
    model: str
    record: Mapping[str, Any]
    run: Mapping[str, Any]

    def numbers(self) -> dict[Column, float]:
        """Its numbers by column; none where it has failed."""
        if self.record["status"] == "failed":
            return {}
        return {
            Column(name, fingerprint(self.record["protocol"], number["metric"])): float(number["value"])
            for name, number in self.record["numbers"].items()
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

    def items(self) -> dict[str, np.ndarray]:
        """What was measured of each item alone, (items,) float64 by name; nothing where its file was removed.

        A number that an item lacks is NaN. Raises: ReportError.
        """
        named = self.record["items"].get("file")
        path = None if named is None else self.file(named)
        lines = [*read_rows(path)] if path and path.is_file() else []
        names = dict.fromkeys(name for line in lines for name, value in line.items() if isinstance(value, int | float))
        return {name: np.array([float(line.get(name, "nan")) for line in lines]) for name in names}


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
            row = Row(path, str(record["task"]), str(record["model"]), record, result.get("run", {}))
            wrong = [column.name for column, value in row.numbers().items() if not math.isfinite(value)]
            row.protocol(), record["items"]["planned"]
            if wrong:
                raise ReportError(f"In {path}, {wrong[0]} of {row.model} is not finite; run the evaluation again.")
            yield row
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReportError(f"{path} is damaged: a row is incomplete; run the evaluation again.") from error
