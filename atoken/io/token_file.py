"""Tokens and their files (``.atok``): items written one after another in constant memory, and read in any order.

``docs/token-file.md`` describes the bytes. ``Tokens``, its writer and its reader are one file because each needs the
others: tokens save and load themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from atoken.atomic import Target
from atoken.bottleneck import FSQ
from atoken.errors import TensorError, TokenFileError
from atoken.io.archive import Archive, ArchiveWriter
from atoken.io.chunks import DIGITS, Chunk
from atoken.io.contents import TILE, Description, Item, Tile, described, plain_name
from atoken.io.token_checks import check_arrays, check_follows
from atoken.media.clock import exact_fps, varying
from atoken.media.source import Source, name_of
from atoken.media.video import joined_alpha
from atoken.modalities import MODALITIES, Modality
from atoken.patches import PATCH, Size, from_grid, sizes_of, to_grid
from atoken.summary import Summary
from atoken.tokens import SparseTokens

if TYPE_CHECKING:
    from atoken.tokenizer import Tokenizer

Dtype = Literal["float32", "float16"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Tokens(Summary):
    """An image, a video, a piece of a video, or a 3D asset, as N tokens ordered by t, x (row), y (column), z.

    Tensors are on the CPU. H and W are the original size; padding to whole patches and groups of 4 frames is implied.
    The ``size`` of an asset is the side of its voxel grid, twice.
    A piece of a video (``first_frame`` > 0, or fewer frames than the video has) starts at a whole tile of 16 frames,
    and its ``coords`` and ``timestamps`` count from the start of the video.

    Raises: TokenFileError where the fields do not fit together.
    """

    latents: Tensor  # (N, C) float32: posterior mean, or the quantised values of a discrete model
    codes: Tensor | None  # (N, G) int64 in [0, prod(levels)), None if the model has no quantiser
    coords: Tensor  # (N, 4) int32: t (groups of 4 frames), x (row), y (column), z
    modality: str  # a name of MODALITIES
    size: tuple[int, int]  # H, W in pixels; of an asset voxels
    frames: int = 1  # T, 1 for an image or an asset
    fps: Fraction | None = None
    timestamps: np.ndarray | None = None  # (T,) float64 seconds, strictly rising; None = constant rate
    alpha: np.ndarray | None = None  # uint8, (H, W) of an image, (T, H, W) of a video; None = opaque
    pooled: Tensor | None  # (D,) float32, not normalised; of a video in pieces only the last has it
    model: str
    fingerprint: str  # 64 hex digits: SHA-256 of the model's config and weights
    name: str  # a plain file name; separators and control characters become "_"
    levels: tuple[int, ...] | None  # FSQ levels of the dimensions of one group, None for a continuous model
    first_frame: int = 0  # of the whole video

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", plain_name(self.name))
        self.description()
        check_arrays(self)

    @property
    def packed(self) -> SparseTokens:
        """The latents at their positions, as the model takes them."""
        return SparseTokens(self.latents, self.coords, (len(self.latents),))

    def description(self) -> Description:
        """What a file says of these tokens without their arrays. Raises: TokenFileError."""
        try:
            sha256 = bytes.fromhex(self.fingerprint)
        except ValueError:
            sha256 = b""
        if len(sha256) != 32 or sha256.hex() != self.fingerprint:
            raise TokenFileError("fingerprint must be the 64 lower-case hex digits of a SHA-256.")
        names = ("modality", "size", "frames", "first_frame", "model", "name", "levels")
        rate = None if self.fps is None else self.fps.as_integer_ratio()
        return described({name: getattr(self, name) for name in names} | {"fps": rate, "fingerprint": sha256})

    def save(self, target: Target, *, dtype: Dtype = "float32") -> None:
        """Write a token file of this one item: atomically to a path, or to a binary file object.

        float16 rounds the latents of a continuous model. Raises: TokenFileError.
        """
        with TokenFileWriter(target) as writer:
            writer.add(self, dtype=dtype)

    @classmethod
    def from_latents(
        cls, latents: Tensor, *, like: Tokens | Tokenizer, size: Size | None = None, fps: Fraction | float = 24
    ) -> Tokens:
        """Tokens of generated or changed latents: a grid (C, T', H', W'), or (C, H', W') of an image.

        like: tokens with the same grid, of which all but the latents and the pooled vector is kept (latents may then
        also be (N, C), in the order of those tokens); or a tokenizer. With a tokenizer, size is (H, W) or (T, H, W) in
        pixels, whole patches where left out; fps is of a video. A discrete model's latents become the nearest levels.
        Raises: TensorError.
        """
        if not isinstance(latents, Tensor) or latents.ndim not in (2, 3, 4):
            raise TensorError("Latents must be a tensor (C, T', H', W') or (C, H', W').")
        if isinstance(like, Tokens):
            shape = like.latents.shape if latents.ndim == 2 else to_grid(like)[0].shape
            if shape not in (latents.shape, latents[:, None].shape):
                raise TensorError(f"The latents are {tuple(latents.shape)}, those of like {tuple(shape)}.")
            feats, codes = _nearest(latents if latents.ndim == 2 else from_grid([latents]).feats, like.levels)
            return replace(like, latents=feats, codes=codes, pooled=None)
        packed = from_grid([latents])
        like.model.check_latents(packed)
        (pixels,) = sizes_of(packed, size, images=latents.ndim == 3)
        feats, codes = _nearest(packed.feats, like.model.config.fsq_levels)
        frames, height, width = (1, *pixels)[-3:]
        timed = {"modality": "video", "frames": frames, "fps": exact_fps(fps)}
        of_kind: dict[str, Any] = timed if len(pixels) == 3 else {"modality": "image"}
        return cls(
            **of_kind, size=(height, width), name="", latents=feats, codes=codes, coords=packed.coords.cpu(),
            pooled=None, model=like.name, fingerprint=like.fingerprint, levels=like.model.config.fsq_levels,
        )  # fmt: skip

    @classmethod
    def load(cls, source: Source, *, item: int | None = None) -> Tokens:
        """Read one item of a token file (a path, bytes, or a binary file); None means the only one.

        Raises: TokenFileError, also if there are several.
        """
        with TokenFile(source) as file:
            if item is None and len(file) > 1:
                name, last = name_of(source), len(file) - 1
                raise TokenFileError(f"{name} holds {len(file)} items; say which with item=0 to item={last}.")
            return file.read(item or 0)

    @classmethod
    def join(cls, pieces: Iterable[Tokens]) -> Tokens:
        """Put the pieces of one video, given in order, together. Raises: TokenFileError if they do not follow."""
        parts = list(pieces)
        if not parts:
            raise TokenFileError("There are no pieces to join; give at least one.")
        for before, after in pairwise(parts):
            check_follows(before, after)
        stamps = [part.timestamps for part in parts if part.timestamps is not None]
        codes = [part.codes for part in parts if part.codes is not None]
        shapes = [(part.frames, *part.size) for part in parts]
        return replace(
            parts[0],
            latents=torch.cat([part.latents for part in parts]),
            codes=torch.cat(codes) if codes else None,
            coords=torch.cat([part.coords for part in parts]),
            frames=sum(part.frames for part in parts),
            timestamps=np.concatenate(stamps) if stamps else None,
            alpha=parts[0].alpha if len(parts) == 1 else joined_alpha([part.alpha for part in parts], shapes),
            pooled=parts[-1].pooled,
        )


def _nearest(feats: Tensor, levels: tuple[int, ...] | None) -> tuple[Tensor, Tensor | None]:
    """Latents as a file holds them, fp32 on the CPU, and the codes of a discrete model. Raises: TensorError."""
    latents = feats.detach().to("cpu", torch.float32)
    if not bool(latents.isfinite().all()):
        raise TensorError("The latents are not finite; there is nothing to decode.")
    if levels is None:
        return latents, None
    codes = FSQ(levels).to_codes(latents)
    return FSQ(levels).from_codes(codes), codes


class TokenFileWriter(ArchiveWriter):
    """Write a token file item by item; it appears at ``target`` when the ``with`` block ends well, and not otherwise.

    ``target``: a path, or a binary file object, which gets the whole file at the end of the block. The same tokens give
    the same bytes. Memory does not grow with what is written but for the table of contents, about 1 kB a tile of 16
    frames, and 8 bytes a frame for the timestamps of the video being written.

    Raises: TokenFileError, also when the block ends without an item.
    """

    def add(self, tokens: Tokens | Iterable[Tokens], *, dtype: Dtype = "float32", clock_slack: float = 0.0) -> None:
        """Append one item: whole, or as the pieces of one video in order, of which only one is held at a time.

        Each piece but the last holds whole tiles of 16 frames; all have timestamps or none has; only the last may have
        a pooled vector. float16 rounds the latents of a continuous model; a discrete model's codes are always exact.
        Timestamps that are all within ``clock_slack`` seconds of i / fps are left out, for the rate implies them.

        Raises: TokenFileError; the items added before are not harmed.
        """
        if dtype not in ("float32", "float16"):
            raise TokenFileError(f"dtype must be float32 or float16, got {dtype!r}.")
        self.begin()
        tiles: list[Tile] = []
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
        self.complete(self._item(first, last, dtype, tuple(tiles), times))

    def _put_tiles(self, piece: Tokens, dtype: str) -> Iterator[Tile]:
        if piece.codes is not None and piece.levels is not None:
            if not torch.equal(piece.latents, FSQ(piece.levels).from_codes(piece.codes)):
                raise TokenFileError("The latents are not what the codes stand for; encode the input again.")
            values, dtype = piece.codes.numpy(), DIGITS
        else:
            values = piece.latents.detach().numpy()
        modality, coords, end = MODALITIES[piece.modality], piece.coords.numpy(), piece.first_frame + piece.frames
        firsts = np.arange(piece.first_frame, end, TILE)
        bounds = np.searchsorted(coords[:, 0], np.append(firsts, end + TILE) // PATCH[0]).tolist()
        alpha = None if piece.alpha is None else piece.alpha.reshape(-1, piece.size[1])  # frames one below the other
        for first, start, stop in zip(firsts.tolist(), bounds, bounds[1:], strict=False):
            positions, frames = coords[start:stop], min(TILE, end - first)
            full = not modality.sparse and np.array_equal(positions, full_coords(modality, piece.size, frames, first))
            row = (first - piece.first_frame) * piece.size[0]
            yield Tile(
                tokens=self.put(values[start:stop], dtype, piece.levels),
                coords=None if full else self.put(positions, "int32"),
                alpha=None if alpha is None else self.put(alpha[row : row + frames * piece.size[0]], "uint8"),
            )

    def _item(
        self, first: Tokens, last: Tokens, dtype: Dtype, tiles: tuple[Tile, ...], times: np.ndarray | None
    ) -> Item:
        put, frames = self.put, last.first_frame + last.frames - first.first_frame
        return Item(
            **structs.asdict(first.description()) | {"frames": frames},
            dtype=dtype if first.levels is None else "digits",
            channels=first.latents.shape[1],
            tiles=tiles,
            timestamps=None if times is None else put(times, "float64"),
            pooled=None if last.pooled is None else put(last.pooled.detach().numpy(), "float32"),
        )


class TokenFile(Archive):
    """Read a token file: ``items`` says what it holds; ``read`` and ``stream`` read no more than they need of it.

    ``items``: where they are known; the table of contents is then not read.
    Raises: TokenFileError for a file that is missing, damaged, changed, or of another version; also for reading more
    than ``max_memory`` bytes of tokens at once.
    """

    def __init__(self, source: Source, *, items: tuple[Item, ...] | None = None, max_memory: int = 4 << 30) -> None:
        super().__init__(source, items=items)
        self._max_memory = max_memory

    def __len__(self) -> int:
        return len(self.items)

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
        with self.reading():
            whole = len(tiles) == len(item.tiles)
            return self._tokens(item, tiles, self._get(item.timestamps, "float64"), pooled=whole)

    def vector(self, index: int = 0) -> Tensor:
        """(D,) fp32 unit vector of one item; nothing else of it is read. Raises: TokenFileError (a piece has none)."""
        item = self._item(index)
        with self.reading():
            pooled = self._get(item.pooled, "float32")
        if pooled is None:
            raise TokenFileError(
                f"{self.name} holds a piece of {item.name} without its vector; encode the whole video."
            )
        return torch.nn.functional.normalize(torch.from_numpy(pooled), dim=-1)

    def stream(self, index: int = 0) -> Iterator[Tokens]:
        """Read one item in pieces of one tile, in constant memory; the last has ``pooled``. Raises: TokenFileError."""
        item = self._item(index)
        with self.reading():
            stamps = self._get(item.timestamps, "float64")
        for tile in range(len(item.tiles)):
            tiles = range(tile, tile + 1)
            self._check_memory(item, tiles)
            with self.reading():
                piece = self._tokens(item, tiles, stamps, pooled=tile == len(item.tiles) - 1)
            yield piece

    def _item(self, index: int) -> Item:
        if not 0 <= index < len(self.items):
            raise TokenFileError(f"{self.name} has no item {index}; it holds items 0 to {len(self.items) - 1}.")
        return self.items[index]

    def _check_memory(self, item: Item, tiles: range) -> None:
        chosen = item.tiles[tiles.start : tiles.stop]
        need = sum(tile.tokens.shape[0] for tile in chosen) * (4 * item.channels + 8 * (item.groups or 0) + 16)
        need += any(tile.alpha for tile in chosen) * TILE * len(chosen) * math.prod(item.size)
        if need > self._max_memory:
            raise TokenFileError(
                f"{item.name} takes {need:,} bytes of memory, over the limit of {self._max_memory:,}; "
                "read it in pieces with stream(), or raise max_memory if you trust the file."
            )

    def _tokens(self, item: Item, tiles: range, stamps: np.ndarray | None, *, pooled: bool) -> Tokens:
        first, stop = tiles[0] * TILE, min(item.frames, (tiles[-1] + 1) * TILE)
        values = np.concatenate([self.get(item.tiles[tile].tokens, item.dtype, item.levels) for tile in tiles])
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
            alpha=self._alpha(item, tiles),
            pooled=None if vector is None else torch.from_numpy(vector),
            model=item.model,
            fingerprint=item.fingerprint,
            name=item.name,
            levels=item.levels,
            first_frame=item.first_frame + first,
        )

    def _alpha(self, item: Item, tiles: range) -> np.ndarray | None:
        chunks = [self._get(item.tiles[tile].alpha, "uint8") for tile in tiles]
        alpha = joined_alpha(chunks, [(item.tile_frames(tile), *item.size) for tile in tiles])
        return alpha if alpha is None or MODALITIES[item.modality].read_frames else alpha[0]

    def _coords(self, item: Item, tile: int) -> np.ndarray:
        coords, first_frame = self._get(item.tiles[tile].coords, "int32"), item.first_frame + tile * TILE
        if coords is None:
            return full_coords(MODALITIES[item.modality], item.size, item.tile_frames(tile), first_frame)
        t = coords[:, 0] - first_frame // PATCH[0]
        if ((t < 0) | (t >= TILE // PATCH[0])).any():
            raise TokenFileError("a token lies outside the time of its tile.")
        return coords

    def _get(self, chunk: Chunk | None, dtype: str) -> np.ndarray | None:
        return None if chunk is None else self.get(chunk, dtype)


def read_items(source: Source) -> tuple[Item, ...]:
    """Say what a token file holds, reading only its table of contents. Raises: TokenFileError."""
    with Archive(source) as file:
        return file.items


def full_coords(modality: Modality, size: tuple[int, int], frames: int, first_frame: int = 0) -> np.ndarray:
    """(N, 4) int32: t, x (row), y (column), z of every cell of the grid, in the order of tokens."""
    cells = np.indices(modality.cells(size, frames), np.int32).reshape(4, -1).T
    return np.ascontiguousarray(cells) + np.array([first_frame // PATCH[0], 0, 0, 0], np.int32)
