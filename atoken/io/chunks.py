"""Arrays to the bytes of a chunk and back: a reversible layout by dtype, then the smallest of three codecs.

The layouts put alike bytes side by side so that the entropy coder has something to find; ``docs/token-file.md`` gives
them byte by byte. What comes in from a file is untrusted: no input makes ``decode`` allocate more than ``MAX_RAW``.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import zlib
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct

from atoken.errors import TokenFileError

MAX_RAW = 256 << 20  # bytes of one chunk before its codec
MAX_BYTES = 1 << 62  # of a file
DIGITS = "digits"  # the dtype of codes: the digits of each code, one dimension after the other
Levels = tuple[int, ...]
Codec = Literal["raw", "deflate", "lzma"]

# A decoder needs these numbers, so they belong to the format. Contexts of literals only hurt: every byte of a plane
# already holds four digits of one dimension, or one byte of one channel.
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}]


class Chunk(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where an array lies in the file: ``stored`` bytes at ``offset``, its codec, its shape, its SHA-256 as stored."""

    offset: Annotated[int, Meta(ge=0, le=MAX_BYTES)]
    stored: Annotated[int, Meta(ge=0, le=MAX_RAW)]
    codec: Codec
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=MAX_BYTES)], ...], Meta(min_length=1, max_length=2)]
    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]


def raw_size(shape: tuple[int, ...], dtype: str, levels: Levels | None) -> int:
    """Bytes of an array in its layout, before the codec."""
    if dtype == DIGITS:
        return (math.prod(shape) * sum(_bits(levels or ())) + 7) // 8
    return math.prod(shape) * np.dtype(dtype).itemsize


def encode(
    array: np.ndarray, dtype: str, levels: Levels | None, offset: int, *, compress: bool = True
) -> tuple[Chunk, bytes]:
    """Lay out ``array`` as ``dtype`` and give it to the codec that makes it smallest; ``offset`` is where it will lie.

    compress: try codecs at all; without them a chunk is its layout, which takes a hundredth of the time.
    Raises: TokenFileError for NaN or infinity, for a value too large for float16, for a chunk over ``MAX_RAW``.
    """
    if (size := raw_size(array.shape, dtype, levels)) > MAX_RAW:
        raise TokenFileError(
            f"An array of {size:,} bytes is over the {MAX_RAW:,} that a token file holds in one chunk; "
            "split the image, or lower its resolution."
        )
    raw = _to_digits(array, levels or ()) if dtype == DIGITS else _shuffle(_rounded(array, dtype))
    candidates: dict[Codec, bytes] = {"raw": raw}
    if compress:
        deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        candidates["deflate"] = deflate.compress(raw) + deflate.flush()
        candidates["lzma"] = lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_LZMA)
    codec, data = min(candidates.items(), key=lambda pair: len(pair[1]))
    return Chunk(offset, len(data), codec, tuple(array.shape), hashlib.sha256(data).digest()), data


def decode(chunk: Chunk, data: bytes, dtype: str, levels: Levels | None) -> np.ndarray:
    """Give back the array of ``encode`` from the stored bytes.

    Raises: TokenFileError for bytes of another SHA-256, of another size than the shape says, or with impossible values.
    """
    if hashlib.sha256(data).digest() != chunk.sha256:
        raise TokenFileError("the check sum of a chunk is wrong.")
    raw = _expand(data, chunk.codec, raw_size(chunk.shape, dtype, levels))
    (columns,) = unpack(np.frombuffer(raw, np.uint8)[None], chunk.shape, dtype, levels)
    return np.array(columns.T, order="C")  # a copy: torch wants it writable


def unpack(raws: np.ndarray, shape: tuple[int, ...], dtype: str, levels: Levels | None) -> np.ndarray:
    """Arrays of one shape (N, width) from the bytes (B, R) of their layouts, column after column: (B, width, N).

    Raises: TokenFileError for impossible values.
    """
    if dtype == DIGITS:
        return _from_digits(raws, shape, levels or ())
    arrays = _unshuffle(raws, shape, dtype)
    if arrays.dtype.kind == "f" and not np.isfinite(arrays).all():
        raise TokenFileError("a chunk holds NaN or infinity.")
    return arrays


def _expand(data: bytes, codec: str, size: int) -> bytes:
    if codec == "raw":
        raw, whole = data, True
    else:
        decoder = zlib.decompressobj(-zlib.MAX_WBITS) if codec == "deflate" else _lzma_decoder()
        try:  # one byte more than expected is enough to see a bomb, and to reach the end mark otherwise
            raw = decoder.decompress(data, size + 1)
        except (zlib.error, lzma.LZMAError) as error:
            raise TokenFileError("a chunk does not decompress.") from error
        whole = decoder.eof and not decoder.unused_data
    if len(raw) != size or not whole:
        raise TokenFileError(f"a chunk does not hold the {size:,} bytes that its shape says.")
    return raw


def _lzma_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_LZMA)


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise TokenFileError("Tokens with NaN or infinity are not saved; look for the fault in the input or the model.")
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype, copy=False)
    if rounded.dtype.kind == "f" and not np.isfinite(rounded).all():
        raise TokenFileError(f"Some latents are too large for {dtype}; save them as float32.")
    return rounded


def _shuffle(array: np.ndarray) -> bytes:
    """Column after column, then the first byte of every value, the second byte of every value, and so on."""
    if array.dtype == np.int32:  # coordinates: from row to row they hardly change; the difference wraps, losslessly
        array = np.diff(array, axis=0, prepend=np.zeros((1, *array.shape[1:]), np.int32))
    columns = np.ascontiguousarray(array.T, dtype=array.dtype.newbyteorder("<"))
    return columns.view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()


def _unshuffle(raws: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    little = np.dtype(dtype).newbyteorder("<")
    values = np.ascontiguousarray(raws.reshape(len(raws), little.itemsize, -1).transpose(0, 2, 1)).view(little)
    arrays = values.reshape(len(raws), *shape[::-1]).astype(dtype, copy=False)
    return np.cumsum(arrays, axis=-1, dtype=np.int32) if arrays.dtype == np.int32 else arrays


def _bits(levels: Levels) -> list[int]:
    return [(level - 1).bit_length() for level in levels]


def _to_digits(codes_NG: np.ndarray, levels: Levels) -> bytes:
    planes = []
    for codes in codes_NG.T:
        for level, bits in zip(levels, _bits(levels), strict=True):
            codes, digits = np.divmod(codes, level)
            planes.append((digits[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8).ravel())
    return np.packbits(np.concatenate(planes)).tobytes()


def _from_digits(raws: np.ndarray, shape: tuple[int, ...], levels: Levels) -> np.ndarray:
    tokens, groups = shape
    stream, at = np.unpackbits(raws, axis=1), 0
    codes = np.zeros((len(raws), groups, tokens), np.int64)
    for group in range(groups):
        basis = 1
        for level, bits in zip(levels, _bits(levels), strict=True):
            planes = stream[:, at : at + tokens * bits].reshape(len(raws), tokens, bits)
            digits = planes @ (1 << np.arange(bits - 1, -1, -1))
            if (digits >= level).any():
                raise TokenFileError("a code has a digit that its levels do not have.")
            codes[:, group] += digits * basis
            at, basis = at + tokens * bits, basis * level
    return codes
