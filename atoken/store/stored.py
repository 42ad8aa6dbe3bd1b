"""An open store: its plan, statistics and index, and the bytes of its items, memory-mapped and checked.

The chunks of a store are raw (docs/token-store.md). So the numbers of an item of at most 16 frames begin where the item
begins, and the columns of the index say how many there are: many items become an array at once, and what the index has
from the table of contents is read for longer videos only, and for what is known of an item beside its numbers.
Letters: ``B`` items, ``N`` tokens of each, ``C`` latent channels, ``G`` code groups; rows are those of the whole store.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Struct

from atoken.errors import StoreError, TokenFileError
from atoken.io.chunks import DIGITS, raw_size, unpack
from atoken.io.contents import MAX_FRAMES, TILE, Item, unpack_item
from atoken.io.token_checks import check_positions
from atoken.io.token_file import TokenFile, Tokens, full_coords
from atoken.modalities import MODALITIES
from atoken.statistics import LatentStatistics
from atoken.store.columns import Columns, distinct
from atoken.store.layout import INDEX, MANIFEST, PLAN, SHARDS, STATS, Manifest, shard_name
from atoken.store.plan import load_plan
from atoken.train.manifest import sha256

COORD = 4 * 4  # bytes of the position of a token


class Alike(NamedTuple):
    """What items must have in common to be read at once."""

    modality: str
    size: tuple[int, int]
    frames: int
    tokens: int

    @property
    def cells(self) -> tuple[int, int, int, int]:
        """Steps, rows, columns and layers of the grid."""
        return MODALITIES[self.modality].cells(self.size, self.frames)

    @property
    def grid(self) -> tuple[str, tuple[int, int, int, int]]:
        """What items must have in common to make a dense batch, if they are ``full``."""
        return self.modality, self.cells

    @property
    def possible(self) -> bool:
        """Whether there are such items."""
        modality = MODALITIES.get(self.modality)
        sound = modality is not None and modality.allows_size(self.size) and 1 <= self.frames <= MAX_FRAMES
        return sound and 0 <= self.tokens <= math.prod(self.cells)

    @property
    def full(self) -> bool:
        """Whether the tokens fill the grid, so that their positions are not in the file."""
        return not MODALITIES[self.modality].sparse and self.tokens == math.prod(self.cells)

    def __str__(self) -> str:
        steps, rows, columns, _ = self.cells
        return f"{self.tokens} tokens in a grid of {steps} x {rows} x {columns} ({self.modality})"


class _Stats(Struct):
    latents: dict[str, LatentStatistics]


class Stored:
    """What the views of a store share. Raises: StoreError (no store, unfinished, damaged, another version)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        plan = load_plan(path) if path.is_dir() else None
        if plan is None:
            raise StoreError(f"There is no token store {path}: it has no {PLAN}; atoken tokenize makes stores.")
        if not (path / MANIFEST).is_file():
            raise StoreError(f"The store {path} is not finished; run the command that made it again to go on.")
        self.plan = plan
        levels = plan.model.levels
        self._dtype = DIGITS if levels else plan.options.latents
        self._width = plan.model.channels // len(levels) if levels else plan.model.channels
        self._listed = self._json(MANIFEST, Manifest).files
        self._check(PLAN)
        self.columns = Columns([self._whole(name) for name in sorted(self._listed) if name.startswith(f"{INDEX}/")])
        self._mapped: dict[int, np.ndarray] = {}

    @cached_property
    def statistics(self) -> dict[str, LatentStatistics]:
        """Mean and deviation of each channel, by modality and over all."""
        self._check(STATS)
        return self._json(STATS, _Stats).latents

    def _json(self, name: str, expected: Any) -> Any:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=expected)
        except (OSError, msgspec.DecodeError) as error:
            raise StoreError(f"{self.path / name} is damaged ({error}); make the store again.") from error

    def _check(self, name: str) -> None:
        """Compare a small file with the manifest. Raises: StoreError."""
        if sha256(self._whole(name)) != self._listed[name].sha256:
            raise StoreError(f"{self.path / name} is damaged, it has another check sum; get another copy of it.")

    def alike(self, rows: np.ndarray) -> tuple[list[Alike], np.ndarray]:
        """What there is among rows, and the number of each among it."""
        modalities, modality = self.columns.names("modality")
        numbers = [self.columns.numbers(name)[rows] for name in ("height", "width", "frames", "tokens")]
        found, inverse = distinct([modality[rows], *numbers])
        different = [Alike(modalities[m], (h, w), frames, n) for m, h, w, frames, n in found.tolist()]
        if not all(one.possible for one in different):
            raise StoreError(f"The index of {self.path} is damaged; get another copy of it.")
        return different, inverse

    def item(self, row: int) -> Tokens:
        """All of one item. Raises: TokenFileError, StoreError."""
        shard, item = self._described(row)
        with TokenFile(self.path / SHARDS / shard_name(shard), items=(item,)) as file:
            return file.read()

    def _described(self, row: int) -> tuple[int, Item]:
        shard, entry = self.columns.entry(row)
        try:
            return shard, unpack_item(entry)
        except TokenFileError as error:
            raise StoreError(f"Row {row} of the index of {self.path} is damaged, {error}") from error

    def values(self, rows: np.ndarray, alike: Alike) -> tuple[np.ndarray, np.ndarray]:
        """Latents (B, C, N) float32 or codes (B, G, N) int64 of rows that are alike, and coords (B, N, 4) int32.

        Raises: TokenFileError, StoreError.
        """
        if alike.frames > TILE:
            items = [self.item(row) for row in rows.tolist()]
            each = [(one.latents if one.codes is None else one.codes).numpy().T for one in items]
            return np.stack(each), np.stack([one.coords.numpy() for one in items])
        levels, shape = self.plan.model.levels, (alike.tokens, self._width)
        size = raw_size(shape, self._dtype, levels)
        raws = self._raw(rows, size + (0 if alike.full else COORD * alike.tokens))
        try:
            arrays = unpack(raws[:, :size], shape, self._dtype, levels)
            if alike.full:
                coords = full_coords(MODALITIES[alike.modality], alike.size, alike.frames)
                coords = np.broadcast_to(coords, (len(rows), *coords.shape))
            else:
                coords = unpack(raws[:, size:], (alike.tokens, 4), "int32", None).transpose(0, 2, 1)
                check_positions(coords, alike.cells)
        except TokenFileError as error:
            raise TokenFileError(f"A row of {self.path} from {min(rows)} to {max(rows)} is damaged: {error}") from error
        return arrays.astype(np.float32, copy=False) if arrays.dtype.kind == "f" else arrays, coords

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """(B, D) float32 pooled vectors, the last chunk of each item. Raises: TokenFileError, StoreError (none)."""
        width = self.plan.model.width
        for row in rows.tolist():
            if self._described(row)[1].pooled is None:
                raise StoreError(
                    f"Row {row} of {self.path} has no vector, as what comes from files without vectors has none; only "
                    "atoken tokenize makes them, of the original."
                )
        return unpack(self._raw(rows, 4 * width, last=True), (width,), "float32", None)

    def _raw(self, rows: np.ndarray, size: int, *, last: bool = False) -> np.ndarray:
        """(B, size) uint8: the first or last bytes of items, whose check sums are compared with all of their bytes."""
        where = [self.columns.numbers(name)[rows].tolist() for name in ("shard", "offset", "size_bytes")]
        if size > min(where[2]):
            raise StoreError(f"The index of {self.path} is damaged; get another copy of it.")
        raws, checksums = np.empty((len(rows), size), np.uint8), self.columns.numbers("checksum")[rows]
        for number, (shard, offset, length) in enumerate(zip(*where, strict=True)):
            data = self._bytes(shard)[offset : offset + length]
            if hashlib.sha256(data.data).digest() != checksums[number].tobytes():
                raise TokenFileError(
                    f"Row {rows[number]} of {self.path} is damaged: its bytes in {SHARDS}/{shard_name(shard)} have "
                    "another check sum; get another copy of that file, or make the store again."
                )
            raws[number] = data[-size:] if last else data[:size]
        return raws

    def _bytes(self, shard: int) -> np.ndarray:
        """The bytes of a shard. They are mapped once a process; the file does not stay open."""
        if shard not in self._mapped:
            path = self._whole(f"{SHARDS}/{shard_name(shard)}")  # beyond a file's end a map gives a signal, no error
            try:
                mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise TokenFileError(f"Cannot read {path}: {error}.") from error
            self._mapped[shard] = mapped.numpy()
        return self._mapped[shard]

    def _whole(self, name: str) -> Path:
        """The path of a file of the store that has the size that the manifest says. Raises: StoreError."""
        path, expected = self.path / name, self._listed[name].size_bytes if name in self._listed else None
        try:
            size = path.stat().st_size
        except OSError as error:
            raise StoreError(f"Cannot read {path}: {error.strerror or error}.") from error
        if size != expected:
            raise StoreError(f"{path} is damaged, it has {size} bytes and not {expected}; get another copy of it.")
        return path

    def close(self) -> None:
        """Give the memory maps back."""
        self._mapped.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return Stored, (self.path.absolute(),)
