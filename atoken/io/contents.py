"""The table of contents of a token file: what each item is and where its chunks lie.

msgspec checks types and limits as declared here, before it takes memory for what a file announces.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, structs

from atoken.errors import TokenFileError
from atoken.io.chunks import DIGITS, MAX_RAW, Chunk, raw_size
from atoken.modalities import MODALITIES

TILE = 16  # frames of a tile, 4 steps: what the model encodes at once and what a file holds in one chunk

MAX_TOC = 16 << 20  # bytes
MAX_ENTRIES = 1 << 20  # of one list
MAX_FRAMES = 1 << 31  # of a whole video
MAX_CHANNELS = 1 << 16  # latent channels, pooled values
MAX_CODES = 1 << 16  # different codes of one group
MAX_NAME = 255  # characters
MAX_FPS = 1000
_FORBIDDEN = r"/\\\x00-\x1f\x7f-\x9f\ud800-\udfff"  # in a name that is safe to print and to write to

Name = Annotated[str, Meta(max_length=MAX_NAME, pattern=rf"^(?!\.\.?\Z)[^{_FORBIDDEN}]*\Z")]
Positive = Annotated[int, Meta(ge=1)]
Level = Annotated[int, Meta(ge=2, le=MAX_CODES)]


class Tile(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The chunks of 16 frames: latents or codes, positions where the grid is not full, alpha where there is any."""

    tokens: Chunk
    coords: Chunk | None
    alpha: Chunk | None

    def chunks(self) -> Iterator[Chunk]:
        """Those that there are, as they lie in the file."""
        yield from filter(None, (self.tokens, self.coords, self.alpha))


class Description(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tokens are of and who made them, in memory and in files; ``docs/token-file.md`` explains the fields."""

    modality: str
    size: tuple[Positive, Positive]
    frames: Annotated[int, Meta(ge=1, le=MAX_FRAMES)]
    first_frame: Annotated[int, Meta(ge=0, le=MAX_FRAMES, multiple_of=TILE)]
    rate: tuple[Positive, Annotated[int, Meta(ge=1, le=100_000)]] | None = msgspec.field(name="fps")
    model: Name
    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)] = msgspec.field(name="fingerprint")
    name: Name
    levels: Annotated[tuple[Level, ...], Meta(min_length=1, max_length=16)] | None

    def __post_init__(self) -> None:
        """Raises: ValueError, which msgspec makes one of its own."""
        modality = MODALITIES.get(self.modality)
        if modality is None:
            raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got {self.modality[:MAX_NAME]!r}")
        if not modality.allows_size(self.size):
            raise ValueError(f"the size of an item ({modality.name}) must be {modality.sizes}, got {self.size}")
        if not modality.read_frames and (self.frames, self.first_frame, self.rate) != (1, 0, None):
            raise ValueError("only a video has more than one frame, a first_frame, fps or timestamps")
        if self.first_frame + self.frames > MAX_FRAMES:
            raise ValueError(f"a video has at most {MAX_FRAMES:,} frames")
        if self.rate is not None and self.rate[0] > MAX_FPS * self.rate[1]:
            raise ValueError(f"fps must be at most {MAX_FPS}, got {self.fps}")
        if self.levels is not None and math.prod(self.levels) > MAX_CODES:
            raise ValueError(f"levels must be at most {MAX_CODES} multiplied, got {self.levels}")

    @property
    def fps(self) -> Fraction | None:
        """Frames a second."""
        return None if self.rate is None else Fraction(*self.rate)

    @property
    def fingerprint(self) -> str:
        """64 hex digits."""
        return self.sha256.hex()


class Item(Description, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Everything that a file says about one item, without its arrays."""

    dtype: Literal["float32", "float16", "digits"]  # of latents as stored; of codes, from which latents follow: digits
    channels: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]  # latent channels C
    tiles: Annotated[tuple[Tile, ...], Meta(min_length=1, max_length=MAX_ENTRIES)]
    timestamps: Chunk | None
    pooled: Chunk | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.dtype == DIGITS) != (self.levels is not None) or (self.levels and self.channels % len(self.levels)):
            raise ValueError("dtype, channels and levels contradict each other")
        modality = MODALITIES[self.modality]
        if (self.timestamps and not modality.read_frames) or (self.has_alpha and not modality.has_alpha):
            raise ValueError(f"an item ({modality.name}) has timestamps or alpha")
        if len(self.tiles) != -(-self.frames // TILE):
            raise ValueError("the number of tiles is not that of the frames")
        width = self.groups or self.channels
        for number, tile in enumerate(self.tiles):
            frames, count = self.tile_frames(number), tile.tokens.shape[0]
            most = math.prod(modality.cells(self.size, frames))
            if count > most or (tile.coords is None and (count != most or modality.sparse)):
                raise ValueError("the number of tokens of a tile does not fit its size")
            _check_chunk(tile.tokens, (count, width), self.dtype, self.levels)
            _check_chunk(tile.coords, (count, 4), "int32")
            _check_chunk(tile.alpha, (frames * self.size[0], self.size[1]), "uint8")
        _check_chunk(self.timestamps, (self.frames,), "float64")
        if self.pooled is not None:
            _check_chunk(self.pooled, self.pooled.shape[:1], "float32")

    @property
    def groups(self) -> int | None:
        """Groups of codes G, None for a continuous model."""
        return self.channels // len(self.levels) if self.levels else None

    @cached_property
    def tokens(self) -> int:
        """Number of tokens N."""
        return sum(tile.tokens.shape[0] for tile in self.tiles)

    @cached_property
    def has_alpha(self) -> bool:
        """Whether any frame has alpha."""
        return any(tile.alpha for tile in self.tiles)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of all chunks in the file."""
        return sum(chunk.stored for chunk in self.chunks())

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk in the order in which they lie in the file."""
        for tile in self.tiles:
            yield from tile.chunks()
        yield from filter(None, (self.timestamps, self.pooled))

    def moved(self, by: int) -> Item:
        """The same item with its chunks so many bytes further back in a file."""

        def moved(chunk: Chunk) -> Chunk:
            return structs.replace(chunk, offset=chunk.offset + by)

        def shifted(chunk: Chunk | None) -> Chunk | None:
            return chunk and moved(chunk)

        tiles = tuple(Tile(moved(tile.tokens), shifted(tile.coords), shifted(tile.alpha)) for tile in self.tiles)
        return structs.replace(self, tiles=tiles, timestamps=shifted(self.timestamps), pooled=shifted(self.pooled))

    def tile_frames(self, tile: int) -> int:
        """Frames of a tile: 16, or what is left for the last."""
        return min(TILE, self.frames - tile * TILE)


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    items: Annotated[tuple[Item, ...], Meta(min_length=1, max_length=MAX_ENTRIES)]


def described(fields: dict[str, Any]) -> Description:
    """Check the fields of a description. Raises: TokenFileError."""
    try:
        return msgspec.convert(fields, Description)
    except msgspec.ValidationError as error:
        raise TokenFileError(f"Tokens cannot be like this: {_said(error)}.") from error


def pack(items: list[Item]) -> bytes:
    """Write the table of contents. Raises: TokenFileError if there are too many items for one file."""
    contents = msgspec.msgpack.encode(_Table(tuple(items)))
    if len(contents) > MAX_TOC or len(items) > MAX_ENTRIES:
        raise TokenFileError(f"{len(items):,} items are too many for one token file; split them into several files.")
    return contents


def unpack(contents: bytes, start: int, end: int) -> tuple[Item, ...]:
    """Read and check a table of contents whose chunks fill bytes ``start`` to ``end``. Raises: TokenFileError."""
    try:
        items = msgspec.msgpack.decode(contents, type=_Table).items
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenFileError(f"its table of contents is not readable ({_said(error)}).") from error
    for item in items:
        for chunk in item.chunks():
            if chunk.offset != start:
                raise TokenFileError("its chunks overlap or leave a gap.")
            start += chunk.stored
    if start != end:
        raise TokenFileError("its chunks do not fill the file.")
    return items


def unpack_item(entry: bytes) -> Item:
    """Read and check what a table of contents says of one item. Raises: TokenFileError."""
    try:
        return msgspec.msgpack.decode(entry, type=Item)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenFileError(f"what it says of an item is not readable ({_said(error)}).") from error


def plain_name(name: str) -> str:
    """Make a file name of ``name`` that is safe to print and to write to: no path, no control or broken characters."""
    plain = re.sub(f"[{_FORBIDDEN}]", "_", name)[:MAX_NAME]
    return "_" if plain in (".", "..") else plain


def _check_chunk(
    chunk: Chunk | None, shape: tuple[int, ...], dtype: str, levels: tuple[int, ...] | None = None
) -> None:
    if chunk is None:
        return
    size = raw_size(shape, dtype, levels)
    if chunk.shape != shape or size > MAX_RAW:
        raise ValueError(f"a chunk has the shape {chunk.shape}")
    if chunk.stored != size if chunk.codec == "raw" else chunk.stored >= size:
        raise ValueError("the stored length of a chunk contradicts its shape")


def _said(error: Exception) -> str:
    """An error of msgspec, the field first: "frames: expected `int` >= 1"."""
    what, _, where = str(error).partition(" - at `$")
    where = where.rstrip("`").lstrip(".")
    return f"{where}: {what[:1].lower()}{what[1:]}" if where else what[:1].lower() + what[1:]
