"""The broken samples of a run: counted, listed in a file, and the end of a run that has too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atoken.errors import MediaError
from atoken.train.objective import Batch


class Tally:
    """``most``: the share of all samples tried that may be broken, checked from ``at_least`` samples on and at the end.

    path: the list, a line of JSON each. ``drawn`` (samples) and ``broken`` are the counts so far, where a run resumes.
    """

    def __init__(
        self, path: str | Path, most: float = 0.1, at_least: int = 100, *, drawn: int = 0, broken: int = 0
    ) -> None:
        self.path, self.most, self.at_least = Path(path), most, at_least
        self.drawn, self.broken = drawn, broken

    def listed(self, step: int, batches: Iterable[Batch | Any]) -> tuple[int, int]:
        """Write the broken samples of a step to the file. Returns how many samples are good, and how many broken.

        They are counted apart, by ``count``, because all ranks must stop together. Raises: MediaError (cannot write).
        """
        batches = list(batches)
        broken = [entry for batch in batches for entry in batch.broken]
        if broken:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps({"step": step, **entry._asdict()}) + "\n" for entry in broken)
            except OSError as error:
                raise MediaError(f"Cannot write the list of broken samples {self.path}: {error.strerror}.") from error
        return sum(batch.samples for batch in batches), len(broken)

    def count(self, drawn: int, broken: int, *, last: bool = False) -> dict[str, int]:
        """Add to the counts, and return them for the log. Raises: MediaError (too many are broken)."""
        self.drawn, self.broken = self.drawn + drawn, self.broken + broken
        tried = self.drawn + self.broken
        if (last or tried >= self.at_least) and self.broken > self.most * tried:
            found, limit = f"{self.broken} of {tried} samples are broken", f"over the limit of {self.most:.0%}"
            raise MediaError(f"{found}, {limit}; repair or remove those that {self.path} lists.")
        return {"drawn": self.drawn, "broken": self.broken}
