"""Token files for ``benchmarks.fuzz`` whose check sums are right and whose contents are not."""

from __future__ import annotations

import hashlib
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import msgpack

from tests.media.seed_files import Case, not_files

_FOOTER = struct.Struct("<QQ32s4s")
_START = 8
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}]

NUMBERS = (0, 1, -1, 15, 255, 1 << 16, 1 << 31, 1 << 62, 1.5, float("nan"))
ODD: tuple[Any, ...] = (*NUMBERS, None, True, "", "x", "video", "raw", b"", bytes(32), [], [0], [1, 2], {})

Mutate = Callable[[bytes, np.random.Generator], bytes]
Table = dict[str, Any]


def resealed(data: bytes, rng: np.random.Generator, mutate: Mutate) -> bytes:
    """Damage the table of contents, one value of it, or the array of one chunk, and make all check sums right."""
    body, toc = _parts(data)
    table = msgpack.decode(toc)
    way = rng.integers(3)
    if way == 0:
        return sealed(body, mutate(toc, rng))
    if way == 1:
        places = list(_places(table))
        owner, key = places[rng.integers(len(places))]
        owner[key] = ODD[rng.integers(len(ODD))]
        return sealed(body, msgpack.encode(table))
    return _with_damaged_array(body, table, rng, mutate)


def _with_damaged_array(body: bytes, table: Table, rng: np.random.Generator, mutate: Mutate) -> bytes:
    chunks = list(_chunks(table))
    parts = [body[chunk[0] - _START :][: chunk[1]] for chunk in chunks]
    index = rng.integers(len(chunks))
    raw = _expanded(parts[index], chunks[index][2])
    chunks[index][2], parts[index] = "raw", mutate(raw, rng)[: len(raw)].ljust(len(raw), b"\0")
    end = _START
    for chunk, part in zip(chunks, parts, strict=True):
        chunk[:2] = end, len(part)
        end += len(part)
    body = b"".join(parts)
    return sealed(body, _summed(body, table))


def _expanded(data: bytes, codec: str) -> bytes:
    if codec == "deflate":
        return zlib.decompress(data, -zlib.MAX_WBITS)
    return data if codec == "raw" else lzma.decompress(data, format=lzma.FORMAT_RAW, filters=_LZMA)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in nested maps and lists, as its owner and its key or index."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def sealed(body: bytes, toc: bytes) -> bytes:
    """A token file of these chunks and this table of contents, whose own check sum is right."""
    start = b"ATOK\x03\0\0\0"
    footer = _FOOTER.pack(_START + len(body), len(toc), hashlib.sha256(start + toc).digest(), b"KOTA")
    return start + body + toc + footer


def hostile_token_files(folder: Path, seeds: Path) -> Iterator[Case]:
    """Bombs and false counts under right check sums, other versions, other files, and what is no file at all."""
    data = (seeds / "continuous-image.atok").read_bytes()
    video = (seeds / "discrete-video.atok").read_bytes()
    hostile = {
        "version-2": data[:4] + b"\x02\0" + data[6:],
        "version-4": data[:4] + b"\x04\0" + data[6:],
        "footer-only": data[-_FOOTER.size :],
        "head-and-footer": data[:_START] + data[-_FOOTER.size :],
        "twice": data + data,
        "png": (seeds / "rgb.png").read_bytes(),
        "endless-list": sealed(b"", b"\x81\xa5items\xdd\xff\xff\xff\xff"),
        "deep-list": sealed(b"", b"\x91" * 100_000 + b"\xc0"),
        "no-items": sealed(b"", msgpack.encode({"items": []})),
        "huge-image": _changed(data, size=[1 << 20, 1 << 20]),
        "huge-channels": _changed(data, channels=1 << 16),
        "huge-video": _changed(video, frames=1 << 31),
        "huge-first-frame": _changed(video, first_frame=(1 << 31) - 16),
        "alpha-of-other-frames": _changed(video, frames=19),
        "huge-rate": _changed(video, fps=[1 << 62, 1]),
        "path-as-name": _changed(data, name="../../secret.mp4"),
        "lzma-bomb": _bomb(data, "lzma", lzma.compress(bytes(128 << 20), format=lzma.FORMAT_RAW, filters=_LZMA)),
        "deflate-bomb": _bomb(data, "deflate", zlib.compress(bytes(128 << 20), 9, wbits=-15)),
    }
    for name, content in hostile.items():
        (folder / f"{name}.atok").write_bytes(content)
        yield Case(folder / f"{name}.atok", "refused")
    yield from not_files(folder, ".atok")


def _parts(data: bytes) -> tuple[bytes, bytes]:
    offset, length, _, _ = _FOOTER.unpack(data[-_FOOTER.size :])
    return data[_START:offset], data[offset : offset + length]


def _changed(data: bytes, **fields: Any) -> bytes:
    """Change fields of the first item, and the shapes and lengths of its chunks as far as that is possible."""
    body, toc = _parts(data)
    table = msgpack.decode(toc)
    table["items"][0].update(fields)
    return sealed(body, msgpack.encode(table))


def _bomb(data: bytes, codec: str, payload: bytes) -> bytes:
    """An image of 4096x4096 whose tokens are this stream; it expands to more than they take."""
    table = msgpack.decode(_parts(data)[1])
    item = table["items"][0]
    tile = [_START, len(payload), codec, [65_536, item["channels"]], b""]
    item.update(size=[4096, 4096], tiles=[[tile, None, None]], pooled=None)
    return sealed(payload, _summed(payload, table))


def _summed(body: bytes, table: Table) -> bytes:
    """The table of contents with the check sums of what lies in the file."""
    for chunk in _chunks(table):
        chunk[4] = hashlib.sha256(body[chunk[0] - _START :][: chunk[1]]).digest()
    return msgpack.encode(table)


def _chunks(table: Table) -> Iterator[list[Any]]:
    for item in table["items"]:
        chunks = [chunk for tile in item["tiles"] for chunk in tile]
        yield from filter(None, (*chunks, item["timestamps"], item["pooled"]))
