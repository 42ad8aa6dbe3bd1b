"""Tokens as WebDataset shards, for programs that know neither this package nor its files.

The members of an item are ``000000012.json``, ``.coords.npy`` (N, 4) int32 (t, row, column, z) and ``.latents.npy``
(N, C) float32 or float16, or ``.codes.npy`` (N, G) int32 of a discrete model; ``.pooled.npy``, ``.alpha.npy`` and
``.timestamps.npy`` where there are any. Samples are named by their number because keys may hold dots, at which a name
ends here (https://github.com/webdataset/webdataset); the key is in the JSON. Of a full grid that states ``grid``:
``latents.reshape(*grid, C)`` is (T', H', W', C).
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from msgspec import Struct

from atoken.atomic import atomic_path
from atoken.bottleneck import FSQ
from atoken.data.sources.sample import MOST_TEXT
from atoken.data.sources.shards import split_name
from atoken.data.sources.tar import FILES, entries
from atoken.errors import MediaError, StoreError, TokenFileError
from atoken.io.chunks import MAX_RAW
from atoken.io.token_file import Tokens
from atoken.modalities import MODALITIES
from atoken.store.exchange import Labelled

if TYPE_CHECKING:
    from atoken.store.reader import TokenStore

RECORD = ".json"
ARRAYS = ("latents", "codes", "coords", "pooled", "alpha", "timestamps")  # fields of ``Tokens``
OF_ROW = ("key", "label", "captions", "flipped", "draw")
OF_TOKENS = ("modality", "size", "frames", "name", "model", "fingerprint", "levels")


class Record(Struct, frozen=True, kw_only=True):
    """The JSON of a sample. fps: such as "30000/1001". grid: time steps, rows and columns where all cells are there."""

    key: str
    label: str | None = None
    captions: tuple[str, ...] = ()
    flipped: bool = False
    draw: int = 0
    modality: str
    size: tuple[int, int]
    frames: int = 1
    fps: str | None = None
    grid: tuple[int, ...] | None = None
    name: str = ""
    model: str
    fingerprint: str
    levels: tuple[int, ...] | None = None


def write(store: TokenStore, columns: Mapping[str, Any], first: int, target: Path) -> None:
    """Write a view as a shard, atomically, its rows numbered from ``first``, one in memory.

    columns: of the view, by name. The same rows give the same bytes. Raises: StoreError, TokenFileError.
    """
    rows = zip(store, *(columns[name] for name in OF_ROW), strict=True)
    with atomic_path(target, StoreError) as temporary, tarfile.open(temporary, "x", format=tarfile.PAX_FORMAT) as tar:
        for number, (tokens, *values) in enumerate(rows, first):
            stated = {name: value.as_py() for name, value in zip(OF_ROW, values, strict=True)}
            for suffix, data in _members(tokens, stated, store.options.latents):
                header = tarfile.TarInfo(f"{number:09d}{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def _members(tokens: Tokens, stated: dict[str, Any], dtype: str) -> Iterator[tuple[str, bytes]]:
    """Suffix and bytes of each member of a sample. dtype: of latents, in which they are exact."""
    cells, fps = MODALITIES[tokens.modality].cells(tokens.size, tokens.frames), tokens.fps
    grid = cells[:3] if cells[3] == 1 and prod(cells) == len(tokens.coords) else None
    stated |= {name: getattr(tokens, name) for name in OF_TOKENS}
    yield RECORD, msgspec.json.encode(Record(**stated, fps=None if fps is None else str(fps), grid=grid))
    for name in ARRAYS:
        array = getattr(tokens, name)
        if array is None or (name == "latents" and tokens.codes is not None):  # those follow from the codes
            continue
        file = io.BytesIO()
        np.save(file, np.asarray(array, {"latents": dtype, "codes": "int32"}.get(name)))
        yield f".{name}.npy", file.getvalue()


def read(path: Path) -> Iterator[Labelled]:
    """The items of a shard that this package or another wrote, one in memory. Raises: StoreError, MediaError."""
    try:
        with path.open("rb") as file:
            for key, members in _samples(file.fileno(), path):
                yield _item(f"{key} in {path}", members)
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}.") from error


def _samples(descriptor: int, path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members with the same name up to its first dot, which lie one after the other. Raises: MediaError."""
    last, members = "", dict[str, bytes]()
    for entry in entries(descriptor, path):
        key, suffix = split_name(entry.name)
        known = suffix == RECORD or (suffix[1:-4] in ARRAYS and suffix.endswith(".npy"))
        if entry.kind not in FILES or not known:
            continue
        if entry.size > (MOST_TEXT if suffix == RECORD else MAX_RAW):
            raise MediaError(f"{entry.name} in {path} has {entry.size:,} bytes, which are too many.")
        if key != last and members:
            yield last, members
            members = {}
        last, members[suffix] = key, os.pread(descriptor, entry.size, entry.offset)
    if members:
        yield last, members


def _item(what: str, members: dict[str, bytes]) -> Labelled:
    try:
        record = msgspec.json.decode(members.pop(RECORD, b""), type=Record)
        arrays = dict.fromkeys(ARRAYS) | {suffix[1:-4]: _array(data) for suffix, data in members.items()}
        latents, codes, coords, pooled = (None if a is None else torch.from_numpy(a) for a in list(arrays.values())[:4])
        if record.levels is not None and codes is not None:
            codes = codes.long()
            latents = FSQ(record.levels).from_codes(codes)
        if latents is None or coords is None:
            raise ValueError("latents.npy, or of a discrete model codes.npy, and coords.npy must be there")
        tokens = Tokens(
            **{name: getattr(record, name) for name in OF_TOKENS},
            **{name: arrays[name] for name in ("alpha", "timestamps")},
            fps=None if record.fps is None else Fraction(record.fps),
            latents=latents.float(), codes=codes, coords=coords, pooled=pooled,
        )  # fmt: skip
    except (msgspec.DecodeError, ValueError, TypeError, ZeroDivisionError, TokenFileError) as error:
        raise StoreError(f"The sample {what} holds no tokens: {str(error).rstrip('.')}.") from error
    return Labelled(**{name: getattr(record, name) for name in OF_ROW}, tokens=tokens)


def _array(data: bytes) -> np.ndarray:
    """Of the bytes of an .npy file, whose header is not trusted with memory. Raises: ValueError."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is of another version of NumPy's format")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if by_columns or dtype.hasobject:
        raise ValueError("an array is not plain numbers, row by row")
    return np.frombuffer(bytearray(file.read()), dtype).reshape(shape)  # writable, as torch wants it
