"""Damaged and hostile token files: each gets one sentence, and nothing else happens."""

import hashlib
import lzma
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import msgpack, structs

from atoken.errors import TokenFileError
from atoken.io.chunks import decode, encode
from atoken.io.contents import Item
from atoken.io.token_file import TokenFile, TokenFileWriter, read_items
from tests.io.token_cases import frame_tokens, make, read_all, take


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the table of contents of a file and make its check sum right again."""
    data = path.read_bytes()
    offset, length = struct.unpack("<QQ", data[-52:-36])
    table = msgpack.decode(data[offset : offset + length])
    change(table)
    toc = msgpack.encode(table)
    digest = hashlib.sha256(data[:8] + toc).digest()
    path.write_bytes(data[:offset] + toc + struct.pack("<QQ32s4s", offset, len(toc), digest, b"KOTA"))


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.atok"
    with TokenFileWriter(path) as writer:
        writer.add(make((16, 17), discrete=True, alpha=np.zeros((16, 17), np.uint8)))
        writer.add(take(make((16, 16), 18, timestamps=np.arange(18.0)), np.arange(5) > 0))
    data = path.read_bytes()
    for at in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            with pytest.raises(TokenFileError, match=r"a\.atok .*[.]$"):
                read_all(path)


def test_every_truncation_and_anything_appended_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.atok"
    make((16, 16), discrete=True).save(path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(TokenFileError):
            read_all(path)
    for extra in (b"\0", b"x" * 100, data):
        path.write_bytes(data + extra)
        with pytest.raises(TokenFileError):
            read_all(path)


def test_the_wrong_file_gets_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.atok"
    make().save(path)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\x04\x00" + data[6:])
    with pytest.raises(TokenFileError, match="format version 4, newer than 3; update AToken"):
        TokenFile(path)
    path.write_bytes(data[:4] + b"\x02\x00" + data[6:])
    sentence = (
        r"^[^\n]*a\.atok has format version 2, which this AToken no longer reads \(it reads 3\); encode the original"
    )
    with pytest.raises(TokenFileError, match=sentence):
        TokenFile(path)
    path.write_bytes(b"\x89PNG" + data[4:])
    with pytest.raises(TokenFileError, match="is not a token file"):
        TokenFile(path)
    with pytest.raises(TokenFileError, match="File name too long"):
        TokenFile(tmp_path / ("x" * 300))
    for missing in (tmp_path, tmp_path / "none.atok", Path(os.devnull)):
        with pytest.raises(TokenFileError, match="There is no token file"):
            TokenFile(missing)


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    make().save(tmp_path / "a.atok")
    with TokenFile(tmp_path / "a.atok") as file:
        stream = file.stream()
    with pytest.raises(TokenFileError, match="was closed"):
        file.read()
    with pytest.raises(TokenFileError, match="was closed"):
        next(stream)
    assert isinstance(file.items[0], Item)


def deflated(data: bytes) -> bytes:
    return zlib.compress(data, 9, wbits=-15)


def lzmad(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}]
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)


@pytest.mark.parametrize(("codec", "data"), [("deflate", deflated(bytes(20 << 20))), ("lzma", lzmad(bytes(90 << 20)))])
def test_a_bomb_does_not_expand(tmp_path: Path, codec: str, data: bytes) -> None:
    tokens = make((512, 512), pooled=None)
    tokens.save(tmp_path / "a.atok")
    chunk = read_items(tmp_path / "a.atok")[0].tiles[0].tokens
    bomb = structs.replace(chunk, stored=len(data), codec=codec, sha256=hashlib.sha256(data).digest())
    tracemalloc.start()
    with pytest.raises(TokenFileError, match="does not hold the 49,152 bytes"):
        decode(bomb, data, "float32", None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20  # the dictionary of LZMA, and little more


@pytest.mark.parametrize("codec", ["deflate", "lzma"])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-3], lambda data: data + b"\0", lambda data: b"", lambda data: b"\xff" * 9]
)
def test_a_chunk_that_does_not_decompress_is_refused(codec: str, change: Callable[[bytes], bytes]) -> None:
    chunk, _ = encode(np.zeros((8, 4), np.float32), "float32", None, 0)
    data = change({"deflate": deflated, "lzma": lzmad}[codec](bytes(128)))
    with pytest.raises(TokenFileError, match="a chunk does not"):
        decode(structs.replace(chunk, codec=codec, sha256=hashlib.sha256(data).digest()), data, "float32", None)


def test_impossible_values_in_a_chunk_are_refused(tmp_path: Path) -> None:
    raw = np.array([np.nan], "<f4").tobytes()
    chunk, _ = encode(np.ones((1, 1), np.float32), "float32", None, 0)
    with pytest.raises(TokenFileError, match="NaN"):
        decode(structs.replace(chunk, sha256=hashlib.sha256(raw).digest()), raw, "float32", None)
    raw = bytes([0b111_00000])  # digit 7 of 5 levels
    with pytest.raises(TokenFileError, match="digit"):
        decode(structs.replace(chunk, sha256=hashlib.sha256(raw).digest()), raw, "digits", (5,))


def write_two(path: Path) -> None:
    with TokenFileWriter(path) as writer:
        alpha = np.arange(20 * 32 * 48, dtype=np.uint8).reshape(20, 32, 48)
        writer.add(take(frame_tokens(20, alpha=alpha), np.arange(30) > 0))
        writer.add(make((20, 20), discrete=True, alpha=np.zeros((20, 20), np.uint8)))


def saves_nothing(chunk: list[Any]) -> None:
    """Stored bytes as many as the array has, of a codec that is only used where it takes fewer."""
    chunk[1:3] = 4 * chunk[3][0] * chunk[3][1], "lzma"


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no items": lambda toc: toc.update(items=[]),
    "unknown key": lambda toc: toc.update(more=1),
    "missing key": lambda toc: toc["items"][0].pop("pooled"),
    "unknown item key": lambda toc: toc["items"][0].update(more=1),
    "items a map": lambda toc: toc.update(items={"a": 1}),
    "negative width": lambda toc: toc["items"][0].update(size=[-1, 3]),
    "boolean number": lambda toc: toc["items"][0].update(first_frame=False),
    "float number": lambda toc: toc["items"][0].update(frames=20.0),
    "huge size": lambda toc: toc["items"][1].update(size=[1 << 20, 1 << 20]),
    "huger size": lambda toc: toc["items"][1].update(size=[1 << 60, 1]),
    "huge channels": lambda toc: toc["items"][0].update(channels=1 << 16),
    "other frames": lambda toc: toc["items"][0].update(frames=21),
    "odd first frame": lambda toc: toc["items"][0].update(first_frame=8),
    "fourth modality": lambda toc: toc["items"][0].update(modality="voxels"),
    "video as image": lambda toc: toc["items"][0].update(modality="image"),
    "image as asset": lambda toc: toc["items"][1].update(modality="asset"),
    "fps over zero": lambda toc: toc["items"][0].update(fps=[24, 0]),
    "fps too high": lambda toc: toc["items"][0].update(fps=[1001, 1]),
    "path as name": lambda toc: toc["items"][0].update(name="../x"),
    "name too long": lambda toc: toc["items"][0].update(name="x" * 256),
    "name as bytes": lambda toc: toc["items"][0].update(name=b"x"),
    "short fingerprint": lambda toc: toc["items"][0].update(fingerprint=b"x"),
    "no levels": lambda toc: toc["items"][1].update(levels=None),
    "level of one": lambda toc: toc["items"][1].update(levels=[1] * 6),
    "too many codes": lambda toc: toc["items"][1].update(levels=[16] * 6),
    "levels that do not divide": lambda toc: toc["items"][1].update(levels=[4] * 5),
    "levels of a float item": lambda toc: toc["items"][0].update(levels=[4] * 6),
    "no tiles": lambda toc: toc["items"][0].update(tiles=[]),
    "a tile more": lambda toc: toc["items"][0]["tiles"].append(toc["items"][0]["tiles"][0]),
    "no tokens": lambda toc: toc["items"][0]["tiles"][0].__setitem__(0, None),
    "alpha of other frames": lambda toc: toc["items"][0]["tiles"][1][2].__setitem__(3, [16 * 32, 48]),
    "alpha of other rows": lambda toc: toc["items"][1]["tiles"][0][2].__setitem__(3, [10, 40]),
    "alpha left out": lambda toc: toc["items"][0]["tiles"][0].__setitem__(2, None),
    "a tile of two chunks": lambda toc: toc["items"][0]["tiles"][0].pop(),
    "no coords": lambda toc: toc["items"][0]["tiles"][0].__setitem__(1, None),
    "overlap": lambda toc: toc["items"][1]["tiles"][0][0].__setitem__(0, 8),
    "before the file": lambda toc: toc["items"][0]["tiles"][0][0].__setitem__(0, 0),
    "behind the file": lambda toc: toc["items"][0]["tiles"][0][0].__setitem__(0, 1 << 40),
    "huge length": lambda toc: toc["items"][0]["tiles"][0][0].__setitem__(1, 1 << 63),
    "negative length": lambda toc: toc["items"][0]["tiles"][0][0].__setitem__(1, -8),
    "unknown codec": lambda toc: toc["items"][0]["tiles"][0][0].__setitem__(2, "pickle"),
    "other shape": lambda toc: toc["items"][0]["tiles"][0][0].__setitem__(3, [12, 29]),
    "three axes": lambda toc: toc["items"][0]["tiles"][0][0].__setitem__(3, [29, 12, 1]),
    "another hash": lambda toc: toc["items"][0]["tiles"][0][0].__setitem__(4, bytes(32)),
    "a chunk left out": lambda toc: toc["items"][0].update(timestamps=None),
    "a time": lambda toc: toc["items"][0].update(frames=datetime.fromtimestamp(1, UTC)),
    "an extension": lambda toc: toc["items"][0].update(frames=msgpack.Ext(5, b"x")),
    "the last chunk left out": lambda toc: toc["items"][1].update(pooled=None),
    "timestamps of fewer frames": lambda toc: toc["items"][0]["timestamps"].__setitem__(3, [19]),
    "a codec that saves nothing": lambda toc: saves_nothing(toc["items"][0]["tiles"][0][0]),
    "a raw chunk that is too short": lambda toc: toc["items"][0]["timestamps"].__setitem__(2, "raw"),
    "deep": lambda toc: toc["items"][0].update(size=[[[[[1]]]]]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_table_of_contents_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    write_two(tmp_path / "a.atok")
    rewrite(tmp_path / "a.atok", change)
    with pytest.raises(TokenFileError, match=r"a\.atok is damaged"):
        read_all(tmp_path / "a.atok")


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - {"another hash"}))
def test_all_but_the_bytes_of_chunks_is_checked_before_any_is_read(tmp_path: Path, name: str) -> None:
    write_two(tmp_path / "a.atok")
    rewrite(tmp_path / "a.atok", HOSTILE[name])
    with pytest.raises(TokenFileError, match=r"a\.atok is damaged"):
        read_items(tmp_path / "a.atok")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@pytest.mark.parametrize(
    "odd",
    [None, True, -1, 0, 1, 7, 1 << 40, (1 << 64) - 1, 0.5, "", "raw", "x" * 2000, bytes(32), [], [1] * 5, {}, {1: 2}],
)
def test_any_odd_entry_anywhere_is_read_or_refused_but_never_crashes(tmp_path: Path, odd: object) -> None:
    path = tmp_path / "a.atok"
    write_two(path)
    data = path.read_bytes()
    table = msgpack.decode(data[struct.unpack("<Q", data[-52:-44])[0] : -52])
    for count in range(len(list(places(table)))):
        path.write_bytes(data)

        def change(toc: dict[str, Any], count: int = count) -> None:
            owner, key = list(places(toc))[count]
            owner[key] = odd

        rewrite(path, change)
        try:
            read_all(path)
        except TokenFileError:
            continue


@pytest.mark.parametrize(
    "toc",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000 + b"\xc0",
        b"\x81\xa5items" + b"\xdf\xff\xff\xff\xff",
        b"\x80\x80",
        b"\x81\xa1\xff\xc0",
        b"\x81\x90\xc0",
        b"\xc6\xff\xff\xff\xff",
    ],
)
def test_a_table_of_contents_that_is_no_msgpack_is_refused(tmp_path: Path, toc: bytes) -> None:
    start = b"ATOK\x03\x00\x00\x00"
    footer = struct.pack("<QQ", 8, len(toc)) + hashlib.sha256(start + toc).digest() + b"KOTA"
    (tmp_path / "a.atok").write_bytes(start + toc + footer)
    tracemalloc.start()
    with pytest.raises(TokenFileError, match="table of contents"):
        TokenFile(tmp_path / "a.atok")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20  # nothing of the size that a list, a map or bytes announce
