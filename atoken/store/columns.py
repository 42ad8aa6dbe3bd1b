"""The index of a store, a column at a time: numbers and check sums as arrays, texts as Arrow keeps them.

Columns are read when they are needed first. No Python object is kept for a row, so that 10^7 rows fit into memory.
Letters: ``R`` rows of the store.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from atoken.errors import MissingExtraError, StoreError
from atoken.store.layout import index_name, numbers_first

SHARDS_OF_ENTRIES = 64  # whose column ``entry``, the largest, stays in memory: about 6 MB of 20,000 images each


class Columns:
    """The columns of an index, whose Parquet files have these paths, in the order of the shards.

    Raises: MissingExtraError (pyarrow), StoreError (a damaged file, no such column).
    """

    def __init__(self, files: Sequence[Path]) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise MissingExtraError("pyarrow", "store", "Reading a token store")
        self._files = [str(path) for path in files]
        self._numbers: dict[str, np.ndarray] = {}
        self._names: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
        self._entries = lru_cache(SHARDS_OF_ENTRIES)(self._read_entries)

    def __len__(self) -> int:
        return self._rows

    @cached_property
    def _rows(self) -> int:
        with self._readable():
            return int(self._dataset.count_rows(use_threads=False))

    @cached_property
    def _dataset(self) -> Any:
        with self._readable():
            return _opened(self._files)

    def table(self, name: str) -> Any:
        """A column as a pyarrow.ChunkedArray of R values."""
        with self._readable():
            if name not in self._dataset.schema.names:
                known = ", ".join(self._dataset.schema.names)
                raise StoreError(f"The index of the store has no column {name!r}; it has {known}.")
            return _column(self._dataset, name, len(self))

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, (R,), or of bytes of one length, (R, length) uint8; kept for the next time."""
        from pyarrow.types import is_fixed_size_binary

        if name not in self._numbers:
            column = self.table(name).combine_chunks()
            if is_fixed_size_binary(column.type):
                values = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, column.type.byte_width)
                self._numbers[name] = values[column.offset : column.offset + len(column)]
            else:
                self._numbers[name] = column.to_numpy(zero_copy_only=False)
        return self._numbers[name]

    def names(self, name: str) -> tuple[tuple[str, ...], np.ndarray]:
        """The different texts of a column, sorted, and the number of each row's among them, (R,) int32, -1 for none.

        Whole numbers are sorted as such (``numbers_first``).
        """
        if name not in self._names:
            encoded = self.table(name).dictionary_encode().combine_chunks()
            with self._readable():
                found = encoded.dictionary.to_pylist()
            order = sorted(range(len(found)), key=lambda place: numbers_first(found[place]))
            ranks = np.full(len(found) + 1, -1, np.int32)
            ranks[order] = np.arange(len(found))
            numbers = ranks[encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]
            self._names[name] = tuple(found[place] for place in order), numbers
        return self._names[name]

    def matches(self, expression: Any, equal: Mapping[str, Any]) -> np.ndarray:
        """(R,) bool: rows that fulfil a pyarrow.dataset expression, if there is one, and have these values.

        equal: a value, None, or a list of values by column.
        """
        import pyarrow.dataset as dataset

        for name, value in equal.items():
            field = dataset.field(name)
            if isinstance(value, list | tuple | set | frozenset | np.ndarray):
                one = field.isin(list(value))
            else:
                one = field.is_null() if value is None else field == value
            expression = one if expression is None else expression & one
        if expression is None:
            return np.ones(len(self), bool)
        try:
            table = self._dataset.to_table(columns={"matches": expression}, use_threads=False)
            return np.asarray(table["matches"].fill_null(False).to_numpy(), dtype=bool)
        except (OSError, ValueError, TypeError, NotImplementedError) as error:
            reason, names = str(error).partition(" in ")[0].rstrip("."), ", ".join(self._dataset.schema.names)
            raise StoreError(f"The condition does not fit the columns of the store ({names}): {reason}.") from error

    def entry(self, row: int) -> tuple[int, bytes]:
        """The shard of a row, and what the table of contents of the shard says of the item."""
        shards = self.numbers("shard")
        first, end = np.searchsorted(shards, [shards[row], shards[row] + 1]).tolist()
        return int(shards[row]), self._entries(int(shards[row]), end - first)[row - first].as_py()

    def _read_entries(self, shard: int, rows: int) -> Any:
        with self._readable():
            (path,) = (path for path in self._files if Path(path).name == index_name(shard))
            return _column(_opened([path]), "entry", rows).combine_chunks()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # pyarrow's are of these classes
            raise StoreError(f"{Path(self._files[0]).parent} is damaged; get another copy of its files.") from error


def _opened(files: list[str]) -> Any:
    """Parquet files as a pyarrow dataset that compares the check sums of pages."""
    import pyarrow.dataset as arrow

    checked = arrow.ParquetFragmentScanOptions(page_checksum_verification=True)
    return arrow.dataset(files, format=arrow.ParquetFileFormat(default_fragment_scan_options=checked))


def _column(opened: Any, name: str, rows: int) -> Any:
    """A column of a dataset. Raises: ValueError (other than so many rows)."""
    column = opened.to_table(columns=[name], use_threads=False)[name]  # threads of a parent do not survive a fork
    if len(column) != rows:
        raise ValueError("rows are missing")
    return column


def distinct(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The different rows of a table of whole numbers, (K, columns), in order, and the number among them of each row."""
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, places = np.unique(column, return_inverse=True)
        key = key * len(values) + places
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return np.stack([column[first] for column in columns], axis=1), inverse
