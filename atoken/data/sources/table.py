"""Parquet and Arrow tables with a column of media bytes, or of paths of media, read a row group at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from atoken.data.sources.columns import Columns, chosen, class_names
from atoken.data.sources.sample import (
    MOST_MEDIA,
    SUFFIXES,
    Sample,
    clean_captions,
    files_at,
    located,
    stamp_of,
    text_of,
)
from atoken.errors import MediaError, MissingExtraError
from atoken.io import sniff
from atoken.media.source import missing, translated

TABLES = (".parquet", ".arrow", ".feather")
_MOST_GROUP = 2 << 30  # bytes of a row group, which is read whole


class TableSource:
    """The rows of one ``.parquet``, ``.arrow`` or ``.feather`` table, or of all tables below a folder.

    The column ``media`` has bytes, or structs of ``bytes`` and ``path`` as in Hugging Face's datasets, or paths of
    files, relative to the folder of the table; the column ``captions`` has texts or lists of texts. A column that is
    not named is the first of ``MEDIA`` that has bytes, or else of ``PATHS`` that has texts, and of ``CAPTIONS``;
    captions may be missing. The record of a sample has the columns ``fields``, and as its ``label`` the first of
    ``LABELS`` that has texts or whole numbers; numbers that Hugging Face's datasets have names for (``ClassLabel``)
    become these, and -1, their mark of a hidden label, None. To read one row, its whole row group is read, and the last
    few groups stay in memory: small groups (100 rows, for example) are faster.
    Raises: MediaError (missing or damaged tables, no such column, groups of over 2 GiB; for a sample: no bytes, or of
    an unknown format, no file at its path), MissingExtraError (pyarrow).
    """

    def __init__(
        self,
        path: str | Path,
        media: str | None = None,
        captions: str | None = None,
        fields: Iterable[str] = (),
    ) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise MissingExtraError("pyarrow", "train", f"Reading the table {path}")
        files = files_at(Path(path), TABLES)
        self._tables = [_described(file, name, media, captions, tuple(fields)) for name, file in files]
        self._ends = list(accumulate(table.ends[-1] for table in self._tables))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        number, row = located(self._ends, index)
        return _sample(self._tables[number], row)


@dataclass(frozen=True)
class _Table:
    """``stamp``: size and time of change; ``ends``: rows up to the end of each group."""

    name: str
    path: Path
    stamp: tuple[int, int]
    columns: Columns
    ends: tuple[int, ...]


@dataclass(frozen=True)
class _Reader:
    """An open table. ``counts`` gives the rows of each group, ``read`` a pyarrow.Table of columns of a group."""

    schema: Any
    counts: Callable[[], list[int]]
    read: Callable[[int, list[str]], Any]


def _described(path: Path, name: str, media: str | None, captions: str | None, fields: tuple[str, ...]) -> _Table:
    if not path.is_file() or path.suffix.lower() not in TABLES:
        raise MediaError(f"There is no table {path}; name a {', '.join(TABLES)} file, or a folder of them.")
    with translated(f"Cannot read the table {path}"):
        reader = _open(path)
        ends = tuple(accumulate(reader.counts()))
        if not ends or ends[-1] < 1:
            raise MediaError(f"The table {path} has no rows; leave it out.")
        columns = chosen(reader.schema, path, media, captions, fields)
        return _Table(name, path, stamp_of(path.stat()), columns, ends)


def _open(path: Path) -> _Reader:
    return _parquet(path) if path.suffix.lower() == ".parquet" else _arrow(path)


def _parquet(path: Path) -> _Reader:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    for group in groups:
        if group.total_byte_size > _MOST_GROUP:
            raise MediaError(f"A row group of {path} has {group.total_byte_size:,} bytes; write groups of 100 rows.")
    return _Reader(
        file.schema_arrow,
        lambda: [group.num_rows for group in groups],
        lambda number, columns: file.read_row_group(number, columns=columns, use_threads=False),
    )


def _arrow(path: Path) -> _Reader:
    """A file, or a stream as Hugging Face's datasets write it; memory-mapped, so that only what is used is read."""
    import pyarrow

    mapped = pyarrow.memory_map(str(path))
    if mapped.read(6) == b"ARROW1":
        file = pyarrow.ipc.open_file(mapped)
        schema, count, batch = file.schema, file.num_record_batches, file.get_batch
    else:
        mapped.seek(0)
        stream = pyarrow.ipc.open_stream(mapped)
        batches = list(stream)
        schema, count, batch = stream.schema, len(batches), batches.__getitem__

    def rows(number: int) -> int:
        batch(number).validate()
        return int(batch(number).num_rows)

    def read(number: int, columns: list[str]) -> Any:
        return pyarrow.Table.from_batches([batch(number)]).select(columns)

    return _Reader(schema, lambda: [rows(number) for number in range(count)], read)


@lru_cache(maxsize=8)
def _opened(table: _Table) -> _Reader:
    if stamp_of(table.path.stat()) != table.stamp:
        raise MediaError(f"The table {table.path} has changed since the run began; start the run again.")
    return _open(table.path)


@lru_cache(maxsize=2)
def _group(table: _Table, number: int) -> Any:
    """The columns of a row group, validated: an offset in a damaged Arrow file could point anywhere."""
    group = _opened(table).read(number, table.columns.all)
    group.validate(full=True)
    if group.num_rows != table.ends[number] - (table.ends[number - 1] if number else 0):
        raise MediaError(f"The table {table.path} is damaged: the number of rows of row group {number} is wrong.")
    return group


@lru_cache(maxsize=8)
def _names(table: _Table) -> Mapping[str, list[str]]:
    return class_names(_opened(table).schema)


def _sample(table: _Table, row: int) -> Sample:
    what = f"{table.name}/{row}"
    with translated(f"Cannot read {what}"):
        number, position = located(table.ends, row)
        group = _group(table, number)
        row_of = {column: group.column(column)[position].as_py() for column in table.columns.all}
        stated = {name: _class(row_of[column], _names(table).get(column)) for name, column in table.columns.record}
    cell, record = row_of[table.columns.media], {name: text for name, text in stated.items() if text is not None}
    captions = clean_captions(row_of.get(table.columns.captions or ""), what)
    path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
    media = cell.get("bytes") if isinstance(cell, dict) else cell if isinstance(cell, bytes) else None
    if media is None and path:
        return Sample(what, _file(table, path, what), Path(path).suffix.lower(), captions, record)
    if not media or len(media) > MOST_MEDIA:
        raise MediaError(f"{what} has {len(media or b''):,} bytes of media; there must be 1 to {MOST_MEDIA:,}.")
    return Sample(what, media, _suffix(media, path, what), captions, record)


def _class(value: Any, names: list[str] | None) -> str | None:
    """A label as a text; of a column with names of classes, the name of that number."""
    if names is None or not isinstance(value, int):
        return text_of(value)
    return names[value] if 0 <= value < len(names) else None


def _file(table: _Table, path: str, what: str) -> Path:
    file = table.path.parent / path
    with translated(f"Cannot read {what}"):  # a name that is too long, or has a zero in it
        if not file.is_file():
            raise MediaError(f"Cannot read {what}, {path}: {missing(path)}.")
    return file


def _suffix(media: bytes, path: object, what: str) -> str:
    """Of the path that is stored with the bytes, else by their first bytes."""
    stated = Path(path).suffix.lower() if isinstance(path, str) else ""
    if stated in SUFFIXES:
        return stated
    return sniff(media, name=what, first_frame=True).format.suffixes[0]
