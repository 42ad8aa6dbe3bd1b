"""Files of rows: a JSON object in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atoken.errors import ReportError


def read_rows(path: Path, *, growing: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of a file; of one that is ``growing``, without a last line that has no end yet. Raises: ReportError."""
    number = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007 - for the message
                if not growing or line.endswith(b"\n"):
                    yield dict(json.loads(line))
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ReportError(f"{path} is damaged at line {number}; remove that line, or write the file again.") from error
