"""A store written as files of other programs, and a store made of such files; tokens come back bit for bit.

An export is written to ``.OUT.part`` beside OUT, a file for each shard, and renamed when it is whole; ``export.json``
says what it is of. An import makes a shard of each file. Both go on where they were interrupted.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
from msgspec import Struct, structs

from atoken.atomic import atomic_path, sync
from atoken.errors import AtokenWarning, StoreError
from atoken.io.token_checks import check_model
from atoken.modalities import IMAGE
from atoken.statistics import LatentStatistics
from atoken.store import lightningdit, shards, webdataset
from atoken.store.driver import Progress, tokenize
from atoken.store.exchange import Labelled
from atoken.store.layout import Options
from atoken.store.plan import Model, Plan, load_plan, locked, save_plan, writing
from atoken.store.reading import Job
from atoken.store.units import Report, written

if TYPE_CHECKING:
    from atoken.store.reader import TokenStore
    from atoken.store.source import Items
    from atoken.tokenizer import Tokenizer

WEBDATASET, LIGHTNINGDIT = "webdataset", "lightningdit"
SUFFIXES = {WEBDATASET: ".tar", LIGHTNINGDIT: ".safetensors"}
ABOUT = "export.json"
COLUMNS = ("key", "label", "captions", "flipped", "draw", "height", "width")

Told = Callable[[int], object]  # is told of items that are done


class Export(Struct, frozen=True, kw_only=True):
    """``export.json``. options: of the store. labels: each at the number that stands for it. left_out: rows, by why."""

    format: str
    model: str
    fingerprint: str
    options: Options
    rows: int
    left_out: dict[str, int]
    labels: tuple[str, ...]
    latents: LatentStatistics


def export(store: TokenStore, out: Path, format: str, told: Told = int) -> Export:
    """Write a store, or a view of one, shard by shard. Warns of what the format cannot hold.

    Raises: StoreError (OUT is there, a store that the format cannot hold), TokenFileError (a damaged shard).
    """
    if os.path.lexists(out):
        raise StoreError(f"{out} is already there; name a new folder.")
    kept, left_out = lightningdit.fitting(store) if format == LIGHTNINGDIT else (store, {})
    about = Export(
        format=format, model=store.model, fingerprint=store.fingerprint, options=store.options, rows=len(kept),
        left_out=left_out, labels=store.labels, latents=store.statistics,
    )  # fmt: skip
    work = _begun(out, msgspec.json.format(msgspec.json.encode(about)))
    kept = kept[np.argsort(kept.column("shard").to_numpy(), kind="stable")]
    shards, counts = np.unique(kept.column("shard").to_numpy(), return_counts=True)
    columns = {name: kept.column(name) for name in COLUMNS}  # each is read once, as Arrow keeps it
    for shard, first, count in zip(shards, counts.cumsum() - counts, counts.tolist(), strict=True):
        target = work / f"{shard:06d}{SUFFIXES[format]}"
        if not target.exists():
            module = lightningdit if format == LIGHTNINGDIT else webdataset
            known = {name: column.slice(first, count) for name, column in columns.items()}
            module.write(kept[first : first + count], known, first, target)
        told(count)
    if format == LIGHTNINGDIT:
        lightningdit.write_statistics(store.all_statistics[IMAGE.name], work / lightningdit.STATISTICS)
    with writing(out):
        work.rename(out)
        sync(out.parent)
    for what, count in left_out.items():
        warnings.warn(f"{count:,} {what} are left out, for which {format} has no place.", AtokenWarning, stacklevel=2)
    return about


def _begun(out: Path, about: bytes) -> Path:
    """The folder in which an export grows, new or as it was left. Raises: StoreError."""
    work = out.with_name(f".{out.name}.part")
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        for left in work.glob(".*.part"):
            left.unlink()
        if not (work / ABOUT).exists():
            with atomic_path(work / ABOUT, StoreError) as temporary:
                temporary.write_bytes(about)
        elif (work / ABOUT).read_bytes() != about:
            raise StoreError(f"{work} is what is left of another export; remove it, or name another folder.")
    return work


@dataclass(frozen=True)
class Files:
    """The files of an export, as the source of a store: each is an item of its plan, a unit and a shard."""

    format: str
    paths: tuple[Path, ...]

    @staticmethod
    def below(folder: Path, format: str) -> Files:
        """Those of a folder, in the order of their names. Raises: StoreError (there are none)."""
        paths = sorted(folder.glob(f"*{SUFFIXES[format]}"))
        if not paths:
            raise StoreError(f"There is no {SUFFIXES[format]} file in {folder}; name a folder in the form {format}.")
        return Files(format, tuple(paths))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def described(self) -> str:
        """In words."""
        return f"{self.format}:{self.paths[0].parent.name}"

    @property
    def digest(self) -> str:
        """SHA-256 of names and sizes."""
        sizes = [(path.name, path.stat().st_size) for path in self.paths]
        return hashlib.sha256(msgspec.msgpack.encode(sizes)).hexdigest()

    def read(self, number: int, tokenizer: Tokenizer) -> Iterator[Labelled]:
        """The items of a file. Raises: AtokenError."""
        path = self.paths[number]
        return webdataset.read(path) if self.format == WEBDATASET else lightningdit.read(path, tokenizer)

    def plan(self, model: Model) -> Plan:
        """Each file is an item, a unit and a shard."""
        return Plan(
            source=self.described, digest=self.digest, model=model, options=self.options(), items=len(self),
            unit_items=1, shard_units=1, tokens=0, size_bytes=0,
        )  # fmt: skip

    def options(self) -> Options:
        """Those of the store that was exported, as far as they hold for what was; the default of foreign files."""
        about = self.paths[0].parent / ABOUT
        if not about.exists():
            return Options(flip=self.format == LIGHTNINGDIT)
        try:
            stated = msgspec.json.decode(about.read_bytes(), type=Export).options
        except (OSError, msgspec.DecodeError) as error:
            raise StoreError(f"{about} is damaged ({error}); export the store again.") from error
        whole = structs.replace(stated, items=None, shuffle=None)  # of all files, in their order
        if self.format == WEBDATASET:
            return whole
        return structs.replace(whole, vectors=False, draws=min(stated.draws, 1))  # these files hold neither


class _Copying:
    """An engine whose units are files of tokens; nothing is encoded."""

    def __init__(self, files: Files, tokenizer: Tokenizer) -> None:
        self._files, self._tokenizer = files, tokenizer

    def encode(self, job: Job, units: Sequence[int]) -> Generator[Report]:
        """Make a unit of each of these files. Raises: AtokenError."""
        for number in units:
            start = perf_counter()
            with written(job, number) as unit:
                for item in self._files.read(number, self._tokenizer):
                    check_model(item.tokens, self._tokenizer.fingerprint, self._tokenizer.name)
                    if job.plan.options.vectors and item.tokens.pooled is None:
                        raise StoreError(f"{item.key} in {self._files.paths[number]} has no pooled vector any more.")
                    unit.put(item, item.flipped, item.draw, [item.tokens])
                    if unit.failures:
                        raise StoreError(unit.failures[0].reason)
            tokens = sum(row.tokens for row in unit.rows)
            yield Report(number, 1, tokens, (), perf_counter() - start, 0.0)

    def join(self, job: Job, shard: int) -> Future[None]:
        """Make a shard of a unit."""
        shards.join(job, shard)
        joined = Future[None]()
        joined.set_result(None)
        return joined


def bring(
    source: Path,
    store: Path,
    format: str,
    tokenizer: Tokenizer,
    shown: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Make a store of the files of a folder, which hold tokens of this tokenizer; the contents of its ``stats.json``.

    Raises: StoreError, TokenFileError (another model), MediaError (a damaged archive).
    """
    files = Files.below(source, format)
    if load_plan(store) is None:
        with locked(store):
            save_plan(store, files.plan(Model.of(tokenizer)))
    items = cast("Items", files)  # of which only the length and the digest are asked for
    return tokenize(items, store, tokenizer, {}, files.options(), _Copying(files, tokenizer), shown=shown)
