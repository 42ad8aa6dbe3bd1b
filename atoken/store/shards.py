"""Units joined to shards with their index, and a store finished. What is complete is never written again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import structs

from atoken.atomic import atomic_path
from atoken.errors import AtokenError, MissingExtraError, StoreError
from atoken.io.archive import Archive
from atoken.io.token_file import TokenFileWriter
from atoken.store.layout import (
    FAILURES,
    INDEX,
    MANIFEST,
    PLAN,
    SHARDS,
    STATS,
    VERSION,
    WORK,
    Listed,
    Manifest,
    Row,
    index_name,
    shard_name,
)
from atoken.store.plan import writing
from atoken.store.reading import Failure, Job
from atoken.store.totals import Totals
from atoken.store.units import Done, sound
from atoken.train.manifest import sha256


def join(job: Job, shard: int) -> None:
    """Put the units of a shard, which all must be there, together, and remove them; any process may.

    Raises: StoreError (a unit is damaged: it is made again by the next run), TokenFileError (as writing).
    """
    units = job.plan.units_of(shard)
    if _note(job, shard).exists():  # one that was killed while it removed them
        with writing(job.store):
            _remove_units(job, shard)
        return
    totals, failures, tables = Totals(job.plan.model), list[Failure](), list[Any]()
    try:
        with ExitStack() as stack:
            writer = None
            for unit in units:
                done = Done.load(job.unit_files(unit)[1])
                totals += Totals.of(job.plan.model, done.totals)
                failures += done.failures
                if done.rows:
                    writer = writer or stack.enter_context(_writer(job, shard))
                    tables.append(_append(job, shard, unit, done.rows, writer))
    except (OSError, ValueError, AtokenError) as error:
        for unit in units:
            if sound(job, unit) is None:
                job.unit_files(unit)[1].unlink(missing_ok=True)
                raise StoreError(f"Unit {unit} in {job.store / WORK} is damaged; run the command again.") from error
        raise
    if tables:
        write_index(job.store / INDEX / index_name(shard), tables)
    Done(totals=totals.plain(), failures=tuple(failures), files=_files(job, shard)).save(_note(job, shard))
    with writing(job.store):
        _remove_units(job, shard)


def _writer(job: Job, shard: int) -> TokenFileWriter:
    return TokenFileWriter(job.store / SHARDS / shard_name(shard), compress=False)


def _append(job: Job, shard: int, unit: int, rows: Sequence[Row], writer: TokenFileWriter) -> Any:
    """Copy a unit to its shard, and give its rows as a table. Raises: OSError, AtokenError."""
    first = len(writer.items)
    with Archive(job.unit_files(unit)[0]) as archive:
        writer.append(archive)
    if writer.checksums[first:] != [row.checksum for row in rows]:
        raise StoreError("A check sum is wrong.")
    joined = [
        structs.replace(
            row, shard=shard, number=number, offset=next(item.chunks()).offset, entry=msgspec.msgpack.encode(item)
        )
        for number, (row, item) in enumerate(zip(rows, writer.items[first:], strict=True), first)
    ]
    return index_table(joined, job.plan.model.width)


def index_table(rows: Sequence[Row], width: int) -> Any:
    """Rows, at least one, as a pyarrow.Table; a ``vector`` has ``width`` values. Raises: MissingExtraError."""
    pa = arrow()
    whole = {name: pa.int32() for name in ("shard", "number", "height", "width", "frames", "tokens", "draw")}
    types = whole | {
        "key": pa.string(), "offset": pa.int64(), "size_bytes": pa.int64(), "modality": pa.string(),
        "fps": pa.float64(), "label": pa.string(), "captions": pa.list_(pa.string()), "flipped": pa.bool_(),
        "checksum": pa.binary(32), "entry": pa.binary(),
    }  # fmt: skip
    columns = {name: pa.array([getattr(row, name) for row in rows], types[name]) for name in Row.__struct_fields__[:-1]}
    if rows[0].vector is not None:
        values = np.frombuffer(b"".join(row.vector or b"" for row in rows), "<f4")
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    return pa.table(columns)


def write_index(path: Path, tables: Sequence[Any]) -> None:
    """The rows of a shard, in tables one after another, as Parquet. Raises: StoreError, MissingExtraError."""
    import pyarrow.parquet as parquet

    whole = arrow().concat_tables(tables).combine_chunks()
    with atomic_path(path, StoreError) as temporary:
        parquet.write_table(whole, temporary, compression="zstd", write_page_checksum=True)


def arrow() -> Any:
    """The package pyarrow. Raises: MissingExtraError."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError("pyarrow", "store", "A token store") from error
    return pyarrow


def _note(job: Job, shard: int) -> Path:
    return job.store / WORK / f"{shard:06d}.shard"


def _files(job: Job, shard: int) -> dict[str, tuple[int, str]]:
    paths = job.store / SHARDS / shard_name(shard), job.store / INDEX / index_name(shard)
    return {_name(job, path): (path.stat().st_size, sha256(path)) for path in paths if path.exists()}


def _name(job: Job, path: Path) -> str:
    return path.relative_to(job.store).as_posix()


def _remove_units(job: Job, shard: int) -> None:
    for unit in job.plan.units_of(shard):
        for path in job.unit_files(unit):
            path.unlink(missing_ok=True)


def find_complete(job: Job) -> Iterator[tuple[int, Done]]:
    """The shards that are complete; of one whose files were changed, the note is removed, so that it is made again.

    Raises: StoreError.
    """
    for shard in range(job.plan.shards):
        if done := _complete(job, shard):
            yield shard, done


def _complete(job: Job, shard: int) -> Done | None:
    note = _note(job, shard)
    with writing(job.store):
        if not note.exists():
            return None
        with suppress(OSError, ValueError):
            done = Done.load(note)
            if all((job.store / name).stat().st_size == size for name, (size, _) in done.files.items()):
                _remove_units(job, shard)
                return done
        note.unlink()
    return None


def finish(job: Job) -> None:
    """Write statistics, failures and, last, the manifest of a store whose shards are all complete.

    Raises: StoreError.
    """
    totals, failures, files, complete = Totals(job.plan.model), list[Failure](), dict[str, tuple[int, str]](), 0
    for _, done in find_complete(job):
        complete += 1
        totals += Totals.of(job.plan.model, done.totals)
        failures += done.failures
        files |= done.files
    if complete < job.plan.shards:
        raise StoreError(f"Shards of {job.store} were changed while it was made; run the command again.")
    if not files:
        raise StoreError(f"None of the {job.plan.items:,} items could be used, such as {failures[0].reason}")
    counted = {"items": totals.items, "failures": len(failures)}
    stats = counted | {"size_bytes": sum(size for size, _ in files.values())} | totals.statistics()
    _save(job.store / STATS, msgspec.json.encode(stats))
    _save(job.store / FAILURES, b"\n".join(map(msgspec.json.encode, failures)))
    with writing(job.store):
        for name in (PLAN, STATS, FAILURES):
            files[name] = (job.store / name).stat().st_size, sha256(job.store / name)
        manifest = Manifest(VERSION, {name: Listed(*about) for name, about in sorted(files.items())})
        _save(job.store / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))


def sweep(job: Job) -> None:
    """Remove what only an unfinished store has. Raises: StoreError."""
    with writing(job.store):
        shutil.rmtree(job.store / WORK)


def _save(path: Path, data: bytes) -> None:
    with atomic_path(path, StoreError) as temporary:
        temporary.write_bytes(data + b"\n" if data else b"")
