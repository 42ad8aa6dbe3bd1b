"""A source with items that kill the process that decodes them; it lies in a module that any process can import."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoken.store.source import Entry, Items


@dataclass(frozen=True)
class Deadly:
    """``items``, of which ``deaths`` says how many readers each kills; the process that made this lives."""

    items: Items
    deaths: dict[int, int]
    marks: Path
    maker: int = field(default_factory=os.getpid)

    @property
    def digest(self) -> str:
        return self.items.digest

    @property
    def described(self) -> str:
        return self.items.described

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Entry:
        def die(entry: Entry) -> Any:
            for death in range(self.deaths.get(index, 0)) if os.getpid() != self.maker else ():
                mark = self.marks / f"{index}-{death}"
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return entry[1]

        class Fatal(Entry):
            sample = property(die)

        return Fatal(*self.items[index])
