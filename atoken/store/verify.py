"""Whether all files of a store are as they were written, and if not, which items are damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from atoken.errors import StoreError
from atoken.store import vectors
from atoken.store.layout import INDEX, MANIFEST, SHARDS, WORK, Listed, Manifest
from atoken.store.units import Done
from atoken.train.manifest import sha256


class Finding(Struct, frozen=True, kw_only=True):
    """fault: what is wrong with a file, None where nothing is. items: keys of those that it damages, where known."""

    file: str
    size_bytes: int
    fault: str | None = None
    items: tuple[str, ...] = ()


def known_files(store: Path) -> dict[str, Listed]:
    """Sizes and checksums of the files of a store; of an unfinished one, of the shards that are complete.

    Raises: StoreError (no store, a damaged manifest).
    """
    try:
        if (store / MANIFEST).exists():
            return msgspec.json.decode((store / MANIFEST).read_bytes(), type=Manifest).files
        if not (store / WORK).is_dir():
            raise StoreError(f"{store} is no token store, or its {MANIFEST} is lost.")
        notes = [Done.load(path) for path in sorted((store / WORK).glob("*.shard"))]
    except (OSError, ValueError) as error:
        raise StoreError(f"What {store} says of its files is damaged: {error}.") from error
    return {name: Listed(*about) for note in notes for name, about in note.files.items()}


def verify(store: Path, files: Mapping[str, Listed]) -> Iterator[Finding]:
    """Read every file and compare; then list files that are not of the store, and look at the index of search.

    Raises: MissingExtraError.
    """
    for name, entry in files.items():
        fault = _fault(store / name, entry)
        shard = Path(name).stem if name.startswith(f"{SHARDS}/") and fault else None
        items = tuple(_damaged(store, shard)) if shard else ()
        yield Finding(file=name, size_bytes=entry.size_bytes, fault=fault, items=items)
    if (store / MANIFEST).exists():
        for path in sorted(path for folder in (SHARDS, INDEX) for path in (store / folder).iterdir()):
            name = path.relative_to(store).as_posix()
            if name not in files:
                yield Finding(file=name, size_bytes=path.stat().st_size, fault="is not of this store")
        if (store / vectors.FOLDER).exists():
            yield Finding(file=vectors.FOLDER, size_bytes=_size(store / vectors.FOLDER), fault=_of_index(store))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _of_index(store: Path) -> str | None:
    """What is wrong with the index of search. Raises: MissingExtraError."""
    try:
        vectors.load(store)
    except StoreError as error:
        return str(error)
    return None


def _fault(path: Path, entry: Listed) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.size_bytes:
            return f"has {size:,} bytes instead of {entry.size_bytes:,}"
        return None if sha256(path) == entry.sha256 else "has another SHA-256"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _damaged(store: Path, shard: str) -> Iterator[str]:
    """Keys of the items of a shard, the bytes of which are not those of the index; none where that is lost, too."""
    for row in _rows(store / INDEX / f"{shard}.parquet"):
        try:
            with (store / SHARDS / f"{shard}.atok").open("rb") as file:
                file.seek(row["offset"])
                data = file.read(row["size_bytes"])
        except OSError:
            data = b""
        if hashlib.sha256(data).digest() != row["checksum"]:
            yield row["key"]


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        return parquet.read_table(path, columns=["key", "offset", "size_bytes", "checksum"]).to_pylist()
    except (OSError, ArrowException):
        return []
