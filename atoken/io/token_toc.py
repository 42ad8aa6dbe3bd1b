"""The table of contents of a token file: what each item is and where its chunks lie, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any, cast

import msgpack

from atoken.errors import TokenFileError
from atoken.io.chunks import CODECS, DIGITS, MAX_RAW, Chunk, raw_size
from atoken.io.tokens_record import (
    MAX_CHANNELS,
    MAX_CODES,
    MAX_FRAMES,
    MAX_NAME,
    TILE,
    plain_name,
)
from atoken.modalities import MODALITIES

MAX_TOC = 16 << 20  # bytes
MAX_ENTRIES = 1 << 20  # of one list
MAX_BYTES = 1 << 62  # of a file


@dataclass(frozen=True)
class Item:
    """Everything that a file says about one item, without its arrays; the fields are those of ``Tokens``."""

    modality: str
    size: tuple[int, int]  # H, W in pixels; of an asset voxels
    frames: int
    first_frame: int
    fps: Fraction | None
    model: str
    fingerprint: str
    name: str
    dtype: str  # how latents are stored: "float32", "float16", or "digits" (codes, from which latents follow)
    channels: int  # latent channels C
    levels: tuple[int, ...] | None
    tiles: tuple[tuple[Chunk, Chunk | None], ...]  # latents or codes of 16 frames, and coords unless the grid is full
    timestamps: Chunk | None
    alpha: Chunk | None
    pooled: Chunk | None

    @property
    def groups(self) -> int | None:
        """Groups of codes G, None for a continuous model."""
        return self.channels // len(self.levels) if self.levels else None

    @cached_property
    def tokens(self) -> int:
        """Number of tokens N."""
        return sum(tokens.shape[0] for tokens, _ in self.tiles)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of all chunks in the file."""
        return sum(chunk.stored for chunk in self.chunks())

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk in the order in which they lie in the file."""
        for tokens, coords in self.tiles:
            yield tokens
            if coords is not None:
                yield coords
        yield from (chunk for chunk in (self.timestamps, self.alpha, self.pooled) if chunk is not None)

    def tile_frames(self, tile: int) -> int:
        """Frames of a tile: 16, or what is left for the last."""
        return min(TILE, self.frames - tile * TILE)


_ITEM_KEYS = frozenset(field.name for field in fields(Item))


def pack_toc(items: list[Item]) -> bytes:
    """Write the table of contents. Raises: TokenFileError if there are too many items for one file."""
    toc = msgpack.packb({"items": [_pack_item(item) for item in items]})
    if len(toc) > MAX_TOC or len(items) > MAX_ENTRIES:
        raise TokenFileError(f"{len(items):,} items are too many for one token file; split them into several files.")
    return cast(bytes, toc)


def unpack_toc(toc: bytes, start: int, end: int) -> tuple[Item, ...]:
    """Read and check a table of contents whose chunks fill bytes ``start`` to ``end``. Raises: TokenFileError."""
    try:
        limits = {"max_str_len": 4 * MAX_NAME, "max_bin_len": 32, "max_array_len": MAX_ENTRIES}
        table = msgpack.unpackb(toc, max_map_len=len(_ITEM_KEYS), max_ext_len=0, use_list=False, **limits)
    except (ValueError, msgpack.UnpackException) as error:
        raise TokenFileError("its table of contents is not readable.") from error
    items = tuple(_item(entry) for entry in _list(_map(table, frozenset({"items"}))["items"], 1, MAX_ENTRIES))
    for item in items:
        for chunk in item.chunks():
            if chunk.offset != start:
                raise TokenFileError("its chunks overlap or leave a gap.")
            start += chunk.stored
    if start != end:
        raise TokenFileError("its chunks do not fill the file.")
    return items


def _pack_item(item: Item) -> dict[str, Any]:
    return {
        "modality": item.modality,
        "size": item.size,
        "frames": item.frames,
        "first_frame": item.first_frame,
        "fps": None if item.fps is None else item.fps.as_integer_ratio(),
        "model": item.model,
        "fingerprint": bytes.fromhex(item.fingerprint),
        "name": item.name,
        "dtype": item.dtype,
        "channels": item.channels,
        "levels": item.levels,
        "tiles": [[_pack_chunk(tokens), _pack_chunk(coords)] for tokens, coords in item.tiles],
        "timestamps": _pack_chunk(item.timestamps),
        "alpha": _pack_chunk(item.alpha),
        "pooled": _pack_chunk(item.pooled),
    }


def _pack_chunk(chunk: Chunk | None) -> list[Any] | None:
    return None if chunk is None else [chunk.offset, chunk.stored, chunk.codec, chunk.shape, chunk.sha256]


def _item(value: object) -> Item:
    entry = _map(value, _ITEM_KEYS)
    size = _list(entry["size"], 2, 2)
    item = Item(
        modality=_choice(entry["modality"], tuple(MODALITIES)),
        size=(_int(size[0], 1, MAX_BYTES), _int(size[1], 1, MAX_BYTES)),
        frames=(frames := _int(entry["frames"], 1, MAX_FRAMES)),
        first_frame=_int(entry["first_frame"], 0, MAX_FRAMES - frames),
        fps=_fps(entry["fps"]),
        model=_name(entry["model"]),
        fingerprint=_bytes32(entry["fingerprint"]).hex(),
        name=_name(entry["name"]),
        dtype=_choice(entry["dtype"], ("float32", "float16", DIGITS)),
        channels=_int(entry["channels"], 1, MAX_CHANNELS),
        levels=_levels(entry["levels"]),
        tiles=tuple(_tile(pair) for pair in _list(entry["tiles"], 1, MAX_ENTRIES)),
        timestamps=_chunk(entry["timestamps"]),
        alpha=_chunk(entry["alpha"]),
        pooled=_chunk(entry["pooled"]),
    )
    _check_sums(item)
    return item


def _check_sums(item: Item) -> None:
    if (item.dtype == DIGITS) != (item.levels is not None) or (item.levels and item.channels % len(item.levels)):
        raise TokenFileError("its dtype, channels and levels contradict each other.")
    modality = MODALITIES[item.modality]
    if not modality.allows_size(item.size):
        raise TokenFileError("its size is not one of its modality.")
    if item.first_frame % TILE or (not modality.read_frames and item.frames != 1):
        raise TokenFileError("its frames do not fit its kind.")
    if len(item.tiles) != -(-item.frames // TILE):
        raise TokenFileError("it has another number of tiles than its frames need.")
    width = item.groups or item.channels
    for tile, (tokens, coords) in enumerate(item.tiles):
        count, most = tokens.shape[0], math.prod(modality.cells(item.size, item.tile_frames(tile)))
        if count > most or (coords is None and (count != most or modality.sparse)):
            raise TokenFileError("a tile has another number of tokens than its size.")
        _check_chunk(tokens, (count, width), item.dtype, item.levels)
        _check_chunk(coords, (count, 4), "int32")
    _check_chunk(item.timestamps, (item.frames,), "float64")
    _check_chunk(item.alpha, item.size, "uint8")
    if item.pooled is not None:
        _check_chunk(item.pooled, item.pooled.shape[:1], "float32")


def _check_chunk(
    chunk: Chunk | None, shape: tuple[int, ...], dtype: str, levels: tuple[int, ...] | None = None
) -> None:
    if chunk is None:
        return
    size = raw_size(shape, dtype, levels)
    if chunk.shape != shape or size > MAX_RAW:
        raise TokenFileError(f"a chunk has the shape {chunk.shape}.")
    if chunk.stored != size if chunk.codec == "raw" else chunk.stored >= size:
        raise TokenFileError("the stored length of a chunk contradicts its shape.")


def _tile(value: object) -> tuple[Chunk, Chunk | None]:
    tokens, coords = _list(value, 2, 2)
    chunk = _chunk(tokens)
    if chunk is None:
        raise TokenFileError("a tile has no tokens.")
    return chunk, _chunk(coords)


def _chunk(value: object) -> Chunk | None:
    if value is None:
        return None
    offset, stored, codec, shape, sha256 = _list(value, 5, 5)
    return Chunk(
        offset=_int(offset, 0, MAX_BYTES),
        stored=_int(stored, 0, MAX_RAW),
        codec=_choice(codec, CODECS),
        shape=tuple(_int(side, 0, MAX_BYTES) for side in _list(shape, 1, 2)),
        sha256=_bytes32(sha256),
    )


def _fps(value: object) -> Fraction | None:
    if value is None:
        return None
    numerator, denominator = _list(value, 2, 2)
    denominator = _int(denominator, 1, 100_000)
    return Fraction(_int(numerator, 1, 1000 * denominator), denominator)


def _levels(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    levels, codes = tuple(_int(level, 2, MAX_CODES) for level in _list(value, 1, 16)), 1
    for level in levels:
        codes *= level
    _int(codes, 2, MAX_CODES)
    return levels


def _int(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise TokenFileError(f"a number of its table of contents must be from {least} to {most}.")
    return value


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if type(value) is not str or value not in choices:
        raise TokenFileError(f"an entry of its table of contents must be one of {', '.join(choices)}.")
    return value


def _name(value: object) -> str:
    if type(value) is not str or value != plain_name(value):
        raise TokenFileError("a name of its table of contents is not a plain name.")
    return value


def _bytes32(value: object) -> bytes:
    if type(value) is not bytes or len(value) != 32:
        raise TokenFileError("a check sum of its table of contents is not 32 bytes.")
    return value


def _list(value: object, least: int, most: int) -> tuple[Any, ...]:
    if type(value) is not tuple or not least <= len(value) <= most:
        raise TokenFileError(f"a list of its table of contents must have {least} to {most} entries.")
    return value


def _map(value: object, keys: frozenset[str]) -> dict[str, Any]:
    if type(value) is not dict or value.keys() != keys:
        raise TokenFileError("a map of its table of contents has missing or unknown entries.")
    return value
