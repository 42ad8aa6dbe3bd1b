"""Files of conversations, JSON or JSONL, read by number: a record stays bytes until it is asked for."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from atoken.data.mixing import hashed
from atoken.errors import AtokenError
from mllm.conversation import Conversation, read

STRATEGIES = "all, first:N, end:N, random:N, and these with N%"
_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")


class Records:
    """The conversations of a file that a strategy chooses, in the forms that ``mllm.conversation`` reads.

    The file is a list, or has a record a line. strategy: ``STRATEGIES``, LLaVA's words; a random choice depends on
    ``seed`` alone. folder: what paths of media are relative to; None is the file's own. Raises: AtokenError (a file
    that cannot be read, another strategy, nothing chosen; for a record: as ``read``, with its number in the file).
    """

    def __init__(
        self, path: str | Path, strategy: str = "all", folder: str | Path | None = None, seed: int = 0
    ) -> None:
        self.path = Path(path)
        self.folder = self.path.parent if folder is None else Path(folder)
        self._chosen = chosen(strategy, len(self._raw), seed)
        if not len(self._chosen):
            raise AtokenError(f"No record of {path} is left by the strategy {strategy}.")

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Conversation:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no conversation {index} among {len(self)}.")
        number = int(self._chosen[index])
        key = f"{self.path}, record {number}"
        try:
            record = msgspec.json.decode(self._raw[number])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AtokenError(f"{key} is not valid JSON: {error}.") from error
        return read(record, key, self.folder)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_raw"}

    @cached_property
    def _raw(self) -> list[msgspec.Raw]:
        """Views of the file, which is mapped, so that processes share it."""
        try:
            with self.path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise AtokenError(f"Cannot read {self.path}: {error.strerror}.") from error
        except ValueError:
            raise AtokenError(f"{self.path} is empty; it must hold conversations as JSON.") from None
        try:
            if data[:4096].lstrip().startswith(b"["):
                return msgspec.json.decode(data, type=list[msgspec.Raw])
            return msgspec.json.Decoder(msgspec.Raw).decode_lines(data)
        except msgspec.DecodeError as error:
            raise AtokenError(f"{self.path} is neither a JSON list nor JSON lines: {error}.") from error


def chosen(strategy: str, count: int, seed: int) -> Sequence[int] | np.ndarray:
    """The numbers of the records that a strategy takes of ``count``. Raises: AtokenError."""
    if strategy == "all":
        return range(count)
    if (found := _STRATEGY.fullmatch(strategy)) is None:
        raise AtokenError(f"{strategy!r} is no sampling_strategy; there are {STRATEGIES}.")
    which, number, percent = found[1], int(found[2]), found[3]
    taken = min(ceil(number * count / 100) if percent else number, count)
    if which == "random":
        order = np.argsort(np.random.PCG64(hashed(seed)).random_raw(count), kind="stable")
        return np.sort(order[:taken])
    return range(taken) if which == "first" else range(count - taken, count)
