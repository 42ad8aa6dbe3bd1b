"""A unit of a store: consecutive items of the source that are read and encoded together, by whoever has time.

Until its shard is joined it is kept as ``.work/000123.atok``, a token file, which is missing where no item could be
used, and ``.work/000123.unit``, which is written last. Both are a function of plan and source alone, so that any
process may make them again at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import torch
from msgspec import Struct
from torch import Tensor
from torch.nn.functional import normalize

from atoken.atomic import atomic_path
from atoken.data.mixing import hashed
from atoken.errors import AtokenError, StoreError, TokenFileError
from atoken.io.archive import Archive
from atoken.io.token_file import TokenFileWriter, Tokens
from atoken.loading import load
from atoken.store.layout import Options, Row
from atoken.store.plan import Model, Plan
from atoken.store.reading import Failure, Job, Read
from atoken.store.totals import Totals

if TYPE_CHECKING:
    from atoken.store.exchange import Labelled
    from atoken.store.media import Decoded
    from atoken.tokenizer import Tokenizer


class Done(Struct, frozen=True, kw_only=True):
    """What a unit or a shard became. rows: of a unit, with 0 and nothing for what only joining knows."""

    rows: tuple[Row, ...] = ()
    totals: dict[str, Any]  # ``Totals.plain``
    failures: tuple[Failure, ...]
    files: dict[str, tuple[int, str]] = {}  # of a shard: bytes and SHA-256 of its files by their names in the store

    def save(self, path: Path, *, durable: bool = True) -> None:
        """Write it, as ``atomic_path``. Raises: StoreError."""
        with atomic_path(path, StoreError, durable=durable) as temporary:
            temporary.write_bytes(msgspec.msgpack.encode(self))

    @staticmethod
    def load(path: Path) -> Done:
        """Read it. Raises: OSError, ValueError (damaged)."""
        return msgspec.msgpack.decode(path.read_bytes(), type=Done)


@dataclass(frozen=True)
class Report:
    """What an engine says of a unit that is on disk. decoding, encoding: seconds, of one process each."""

    unit: int
    items: int
    tokens: int
    failures: tuple[Failure, ...]
    decoding: float
    encoding: float


def encode_unit(job: Job, tokenizer: Tokenizer, read: Read) -> Report:
    """Encode a unit and write its files. Raises: StoreError, TokenFileError (what cannot be written)."""
    start = perf_counter()
    with written(job, read.unit) as unit:
        unit.failures += [item for item in read.items if isinstance(item, Failure)]
        for batch in _batches(read.items, job.plan.options):
            _encode(unit, tokenizer, job.plan.options, batch)
    tokens = sum(row.tokens for row in unit.rows)
    return Report(read.unit, len(read.items), tokens, tuple(unit.failures), read.seconds, perf_counter() - start)


@contextmanager
def written(job: Job, number: int) -> Iterator[Unit]:
    """Give a unit to put items into; its files appear when the block ends well. Raises: StoreError, TokenFileError."""
    # Not durable: what a power cut spoils has other check sums, and is made again.
    target, note = job.unit_files(number)
    with suppress(_NothingError), TokenFileWriter(target, compress=False, durable=False) as writer:
        unit = Unit(job.plan, writer)
        yield unit
        if not writer.items:
            raise _NothingError
    Done(rows=tuple(unit.rows), totals=unit.totals.plain(), failures=tuple(unit.failures)).save(note, durable=False)


def sound(job: Job, unit: int) -> Done | None:
    """What a unit became, if it is there and undamaged; all of it is read."""
    target, note = job.unit_files(unit)
    try:
        done = Done.load(note)
        if done.rows:
            with Archive(target) as archive:
                sums = [hashlib.sha256(b"".join(archive.stored(item))).digest() for item in archive.items]
            if sums != [row.checksum for row in done.rows]:
                return None
    except (OSError, ValueError, TokenFileError):
        return None
    return done


def encoder(job: Job, **changes: Any) -> Tokenizer:
    """The model of a job, loaded; ``changes`` of its arguments: the device. Raises: StoreError, CheckpointError."""
    tokenizer = load(**{**job.model, **changes})
    if Model.of(tokenizer) != job.plan.model:
        raise StoreError(f"The model here is not that of the plan of {job.store}; name the same model and --dtype.")
    return tokenizer


class _NothingError(Exception):
    """No item of a unit could be used."""


class _Variant(NamedTuple):
    """An item as it is, or mirrored."""

    item: Decoded
    flipped: bool
    media: Any


def _batches(items: Iterable[Decoded | Failure], options: Options) -> Iterator[list[_Variant]]:
    """What is encoded at once, in order: about ``batch_tokens``, or one long video as a stream."""
    batch: list[_Variant] = []
    tokens = 0
    for item in items:
        if isinstance(item, Failure):
            continue
        for flipped, media in item.variants(options.flip):
            count = item.tokens or options.batch_tokens
            if batch and (item.tokens is None or tokens + count > options.batch_tokens):
                yield batch
                batch, tokens = [], 0
            batch.append(_Variant(item, flipped, media))
            tokens += count
    if batch:
        yield batch


def _encode(unit: Unit, tokenizer: Tokenizer, options: Options, batch: list[_Variant]) -> None:
    """Encode a batch and put its items into a unit."""
    draws = [[_generator(one, draw, options.seed) for one in batch] for draw in range(options.draws)]
    if batch[0].item.tokens is None:
        (one,) = batch
        for draw, generator in enumerate([row[0] for row in draws] or [None]):
            pieces = tokenizer.encode_tiles(one.media.tiles(), name=one.item.key, generator=generator)
            unit.put(one.item, one.flipped, draw, pieces, one.media.clock_slack)
        return
    media, names = [one.media for one in batch], [one.item.key for one in batch]
    for one, row in zip(batch, tokenizer.encode_draws(media, names, draws), strict=True):
        for draw, tokens in enumerate(row):
            unit.put(one.item, one.flipped, draw, [tokens])


def _generator(one: _Variant, draw: int, seed: int) -> torch.Generator:
    """Of the noise of a draw: a function of seed, key, flip and number, not of where the item stands."""
    return torch.Generator().manual_seed(hashed(seed, int(one.flipped), draw, *one.item.key.encode()))


class Unit:
    """Rows, totals and failures of a unit that is being written."""

    def __init__(self, plan: Plan, writer: TokenFileWriter) -> None:
        self._plan, self._options, self._writer = plan, plan.options, writer
        self.rows: list[Row] = []
        self.totals = Totals(plan.model)
        self.failures: list[Failure] = []

    def put(
        self, item: Decoded | Labelled, flipped: bool, draw: int, pieces: Iterable[Tokens], clock_slack: float = 0.0
    ) -> None:
        """Write a row, of tokens in one piece or several; an item that fails is listed."""
        writer, totals, vectors = self._writer, Totals(self._plan.model), list[Tensor]()

        def counted() -> Iterator[Tokens]:
            for piece in pieces:
                rounds = self._options.latents == "float16" and piece.codes is None
                latents = piece.latents.half().float() if rounds else piece.latents
                totals.add(piece.modality, latents, piece.codes, samples=int(not piece.first_frame))
                vectors.extend([] if piece.pooled is None else [normalize(piece.pooled, dim=-1)])
                yield piece

        try:
            writer.add(counted(), dtype=self._options.latents, clock_slack=clock_slack)
        except AtokenError as error:
            self.failures.append(Failure(item.key, str(error)))
            return
        totals.items = int(not flipped and not draw)
        if item.label is not None:
            totals.labels[item.label] += 1
        self.totals += totals
        written = writer.items[-1]
        self.rows.append(
            Row(
                key=item.key, shard=0, number=len(self.rows), offset=0, size_bytes=written.stored_bytes,
                modality=written.modality, height=written.size[0], width=written.size[1], frames=written.frames,
                fps=None if written.fps is None else float(written.fps), tokens=written.tokens, label=item.label,
                captions=item.captions, flipped=flipped, draw=draw, checksum=writer.checksums[-1], entry=b"",
                vector=vectors[-1].numpy().tobytes() if self._options.vectors else None,
            )
        )  # fmt: skip
