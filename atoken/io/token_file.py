"""Token files (``.atok``): items written one after another in constant memory, and read in any order, tile by tile.

``docs/token-file.md`` describes the bytes. Everything that comes from a file is untrusted and checked before use.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

from atoken.atomic import atomic_path
from atoken.bottleneck import FSQ
from atoken.errors import TokenFileError
from atoken.io.chunks import DIGITS, Chunk, Levels, decode, encode
from atoken.io.token_toc import MAX_TOC, Item, pack_toc, unpack_toc
from atoken.io.tokens_record import TILE, Dtype, Tokens, check_follows, full_coords
from atoken.media.clock import varying
from atoken.modalities import MODALITIES
from atoken.modalities.pixels import PATCH

__all__ = ["Item", "TokenFile", "TokenFileWriter", "Tokens", "read_items"]

VERSION = 1
_PREFIX = struct.Struct("<4sHH")  # magic, version, reserved
_FOOTER = struct.Struct("<QQ32s4s")  # offset and length of the table of contents, SHA-256 of prefix and table, magic
_START = _PREFIX.pack(b"ATOK", VERSION, 0)


class TokenFileWriter:
    """Write a token file item by item; it appears at ``path`` when the ``with`` block ends well, whole or not at all.

    The same tokens give the same bytes. Memory does not grow with what is written but for the table of contents, about
    1 kB a tile of 16 frames, and 8 bytes a frame for the timestamps of the video being written.

    Raises: TokenFileError, also when the block ends without an item.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._items: list[Item] = []
        self._end = len(_START)  # of the last complete item
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path, TokenFileError))
            self._file = stack.enter_context(temporary.open("xb"))
            self._file.write(_START)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None:
            return self._stack.__exit__(kind, error, trace)
        with self._stack:  # so that a failure here, too, removes the temporary file
            self._finish()
        return None

    def add(self, tokens: Tokens | Iterable[Tokens], *, dtype: Dtype = "float32", clock_slack: float = 0.0) -> None:
        """Append one item: whole, or as the pieces of one video in order, of which only one is held at a time.

        Each piece but the last holds whole tiles of 16 frames; all have timestamps or none has; only the last may have
        a pooled vector. float16 rounds the latents of a continuous model; a discrete model's codes are always exact.
        Timestamps that are all within ``clock_slack`` seconds of i / fps are left out, for the rate implies them.

        Raises: TokenFileError; the items added before are not harmed.
        """
        if dtype not in ("float32", "float16"):
            raise TokenFileError(f"dtype must be float32 or float16, got {dtype!r}.")
        self._file.seek(self._end)  # over the remains of an item that failed
        tiles: list[tuple[Chunk, Chunk | None]] = []
        stamps: list[np.ndarray] = []
        first = last = None
        for piece in (tokens,) if isinstance(tokens, Tokens) else tokens:
            if last is not None:
                check_follows(last, piece)
            first, last = first or piece, piece
            tiles += self._put_tiles(piece, dtype)
            stamps += [] if piece.timestamps is None else [piece.timestamps]
        if first is None or last is None:
            raise TokenFileError("An item needs at least one piece of tokens, and none was given.")
        times = np.concatenate(stamps) if stamps else None
        if times is not None and first.fps is not None and not first.first_frame:
            times = varying(times, first.fps, clock_slack)
        self._items.append(self._complete(first, last, dtype, tiles, times))
        self._end = self._file.tell()

    def _put_tiles(self, piece: Tokens, dtype: str) -> Iterator[tuple[Chunk, Chunk | None]]:
        if piece.codes is not None and piece.levels is not None:
            if not torch.equal(piece.latents, FSQ(piece.levels).from_codes(piece.codes)):
                raise TokenFileError("The latents are not what the codes stand for; encode the input again.")
            values, dtype = piece.codes.numpy(), DIGITS
        else:
            values = piece.latents.detach().numpy()
        coords, end = piece.coords.numpy(), piece.first_frame + piece.frames
        firsts = np.arange(piece.first_frame, end, TILE)
        bounds = np.searchsorted(coords[:, 0], np.append(firsts, end + TILE) // PATCH[0]).tolist()
        modality = MODALITIES[piece.modality]
        for first, start, stop in zip(firsts.tolist(), bounds, bounds[1:], strict=False):
            places = coords[start:stop]
            cells = modality.cells(piece.size, min(TILE, end - first))
            full = not modality.sparse and np.array_equal(places, full_coords(cells, first))
            chunk = self._put(values[start:stop], dtype, piece.levels)
            yield chunk, None if full else self._put(places, "int32")

    def _complete(
        self,
        first: Tokens,
        last: Tokens,
        dtype: str,
        tiles: list[tuple[Chunk, Chunk | None]],
        times: np.ndarray | None,
    ) -> Item:
        return Item(
            modality=first.modality,
            size=first.size,
            frames=last.first_frame + last.frames - first.first_frame,
            first_frame=first.first_frame,
            fps=first.fps,
            model=first.model,
            fingerprint=first.fingerprint,
            name=first.name,
            dtype=dtype if first.levels is None else DIGITS,
            channels=first.latents.shape[1],
            levels=first.levels,
            tiles=tuple(tiles),
            timestamps=None if times is None else self._put(times, "float64"),
            alpha=None if first.alpha is None else self._put(first.alpha, "uint8"),
            pooled=None if last.pooled is None else self._put(last.pooled.detach().numpy(), "float32"),
        )

    def _put(self, array: np.ndarray, dtype: str, levels: Levels | None = None) -> Chunk:
        chunk, data = encode(array, dtype, levels, self._file.tell())
        self._file.write(data)
        return chunk

    def _finish(self) -> None:
        if not self._items:
            raise TokenFileError(f"{self.path} would hold no item; a token file needs at least one.")
        toc = pack_toc(self._items)
        digest = hashlib.sha256(_START + toc).digest()
        self._file.seek(self._end)
        self._file.write(toc + _FOOTER.pack(self._end, len(toc), digest, b"KOTA"))
        self._file.truncate()


class TokenFile:
    """Read a token file: ``items`` says what it holds; ``read`` and ``stream`` read no more than they need of it.

    Raises: TokenFileError for a file that is missing, damaged, changed, or newer than this program; also for reading
    more than ``max_memory`` bytes of tokens at once.
    """

    items: tuple[Item, ...]

    def __init__(self, path: str | Path, *, max_memory: int = 4 << 30) -> None:
        self.path = Path(path)
        self._max_memory = max_memory
        with ExitStack() as stack, _faults_of(self.path):
            if not self.path.is_file():  # a pipe would block, a device would never end
                raise _UnreadableError(f"There is no token file {self.path}; check the path.")
            self._file = stack.enter_context(self.path.open("rb"))
            self.items = _read_toc(self._file, self.path)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.items)

    def close(self) -> None:
        """Close the file; ``items`` stays readable."""
        self._stack.close()

    def read(self, index: int = 0, frames: tuple[int, int] | None = None) -> Tokens:
        """Read one item, or of a video the tiles of 16 frames that hold the frames from ``start`` to before ``stop``.

        Frames count from the start of the whole video; ``first_frame`` and ``frames`` of the result say what came.
        ``pooled`` belongs to the whole item and is None where only a part was read. Raises: TokenFileError.
        """
        item = self._item(index)
        tiles = range(len(item.tiles))
        if frames is not None:
            start, stop = (frame - item.first_frame for frame in frames)
            if not 0 <= start < stop <= item.frames:
                last = item.first_frame + item.frames
                raise TokenFileError(f"Frames {frames[0]} to {frames[1]} are not in {item.first_frame} to {last}.")
            tiles = range(start // TILE, -(-stop // TILE))
        self._check_memory(item, tiles)
        with self._reading():
            whole = len(tiles) == len(item.tiles)
            return self._tokens(item, tiles, self._get(item.timestamps, "float64"), pooled=whole)

    def vector(self, index: int = 0) -> Tensor:
        """(D,) fp32 unit vector of one item; nothing else of it is read. Raises: TokenFileError (a piece has none)."""
        item = self._item(index)
        with self._reading():
            pooled = self._get(item.pooled, "float32")
        if pooled is None:
            raise TokenFileError(
                f"{self.path} holds a piece of {item.name} without its vector; encode the whole video."
            )
        return torch.nn.functional.normalize(torch.from_numpy(pooled), dim=-1)

    def stream(self, index: int = 0) -> Iterator[Tokens]:
        """Read one item in pieces of one tile, in constant memory; the last has ``pooled``. Raises: TokenFileError."""
        item = self._item(index)
        with self._reading():
            stamps = self._get(item.timestamps, "float64")
        for tile in range(len(item.tiles)):
            tiles = range(tile, tile + 1)
            self._check_memory(item, tiles)
            with self._reading():
                piece = self._tokens(item, tiles, stamps, pooled=tile == len(item.tiles) - 1)
            yield piece

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if self._file.closed:
            raise TokenFileError(f"{self.path} was closed; open it again to read it.")
        with _faults_of(self.path):
            yield

    def _item(self, index: int) -> Item:
        if not 0 <= index < len(self.items):
            raise TokenFileError(f"{self.path} has no item {index}; it holds items 0 to {len(self.items) - 1}.")
        return self.items[index]

    def _check_memory(self, item: Item, tiles: range) -> None:
        tokens = sum(item.tiles[tile][0].shape[0] for tile in tiles)
        need = tokens * (4 * item.channels + 8 * (item.groups or 0) + 16)
        if need > self._max_memory:
            raise TokenFileError(
                f"{item.name} takes {need:,} bytes of memory, over the limit of {self._max_memory:,}; "
                "read it in pieces with stream(), or raise max_memory if you trust the file."
            )

    def _tokens(self, item: Item, tiles: range, stamps: np.ndarray | None, *, pooled: bool) -> Tokens:
        first, stop = tiles[0] * TILE, min(item.frames, (tiles[-1] + 1) * TILE)
        values = np.concatenate([self._must(item.tiles[tile][0], item.dtype, item.levels) for tile in tiles])
        latents, codes = torch.from_numpy(values), None
        if item.levels is not None:
            latents, codes = FSQ(item.levels).from_codes(latents), latents
        vector = self._get(item.pooled, "float32") if pooled else None
        return Tokens(
            latents=latents.float(),
            codes=codes,
            coords=torch.from_numpy(np.concatenate([self._coords(item, tile) for tile in tiles])),
            modality=item.modality,
            size=item.size,
            frames=stop - first,
            fps=item.fps,
            timestamps=None if stamps is None else stamps[first:stop],
            alpha=self._get(item.alpha, "uint8"),
            pooled=None if vector is None else torch.from_numpy(vector),
            model=item.model,
            fingerprint=item.fingerprint,
            name=item.name,
            levels=item.levels,
            first_frame=item.first_frame + first,
        )

    def _coords(self, item: Item, tile: int) -> np.ndarray:
        coords = self._get(item.tiles[tile][1], "int32")
        if coords is None:
            cells = MODALITIES[item.modality].cells(item.size, item.tile_frames(tile))
            return full_coords(cells, item.first_frame + tile * TILE)
        t = coords[:, 0] - (item.first_frame + tile * TILE) // PATCH[0]
        if ((t < 0) | (t >= TILE // PATCH[0])).any():
            raise TokenFileError("a token lies outside the time of its tile.")
        return coords

    def _get(self, chunk: Chunk | None, dtype: str) -> np.ndarray | None:
        return None if chunk is None else self._must(chunk, dtype)

    def _must(self, chunk: Chunk, dtype: str, levels: Levels | None = None) -> np.ndarray:
        return decode(chunk, _bytes(self._file, chunk.offset, chunk.stored), dtype, levels)


def read_items(path: str | Path) -> tuple[Item, ...]:
    """Say what a token file holds, reading only its table of contents. Raises: TokenFileError."""
    with TokenFile(path) as file:
        return file.items


def _read_toc(file: BinaryIO, path: Path) -> tuple[Item, ...]:
    size = file.seek(0, os.SEEK_END)
    _check_start(_bytes(file, 0, min(size, len(_START))), path)
    end = size - _FOOTER.size
    offset, length, digest, magic = _FOOTER.unpack(_bytes(file, max(end, 0), _FOOTER.size))
    if magic != b"KOTA" or offset < len(_START) or length > MAX_TOC or offset + length != end:
        raise TokenFileError("it was cut short or something was added to it.")
    toc = _bytes(file, offset, length)
    if hashlib.sha256(_START + toc).digest() != digest:
        raise TokenFileError("the check sum of its table of contents is wrong.")
    return unpack_toc(toc, len(_START), offset)


def _check_start(start: bytes, path: Path) -> None:
    magic, version, reserved = _PREFIX.unpack(start.ljust(len(_START), b"\0"))
    if magic != b"ATOK":
        raise _UnreadableError(f"{path} is not a token file; give one that AToken wrote.")
    if version > VERSION:
        raise _UnreadableError(f"{path} has format version {version}, newer than {VERSION}; update AToken to read it.")
    if version != VERSION or reserved:
        raise TokenFileError("its first bytes are wrong.")


def _bytes(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) != length:
        raise TokenFileError("it ends too early.")
    return data


class _UnreadableError(TokenFileError):
    """Already a whole sentence with the path in it."""


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Make one sentence with the path in it of whatever is wrong with a file."""
    try:
        yield
    except _UnreadableError as error:
        raise TokenFileError(str(error)) from error
    except TokenFileError as error:
        raise TokenFileError(
            f"{path} is damaged, {str(error).rstrip('.')}; make it again or get another copy."
        ) from error
    except OSError as error:
        raise TokenFileError(f"Cannot read {path}: {error.strerror or error}.") from error
