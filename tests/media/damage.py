"""Damage to files: at random in seven ways, to numbers in text, and to the files that meshes name."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.media import mesh_cases, seed_files
from tests.media.seed_files import Case, not_files

ODD_VALUES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ODD = (b"-1", b"0", b"1", b"3", b"255", b"65536", b"4294967295", b"1e999", b"1e-320", b"-0.5", b"NaN", b'"x"', b"[]")
_NUMBER = re.compile(rb"(?<![\w.])-?\d+(\.\d+)?(?![\w.])")
_REFERRING = ("model.gltf", "textured.obj", "textured.ply")  # seeds that name other files

Damage = Callable[[bytes, np.random.Generator], bytes]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage ``data`` in one of seven ways; the result always differs from it."""
    result = data
    while result == data:
        way = rng.choice([_flip, _overwrite, _block, _cut, _insert, _repeat, _header])
        result = bytes(way(bytearray(data), rng))
    return result


def _flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    for bit in rng.integers(8 * len(data), size=rng.integers(1, 9)):
        data[bit // 8] ^= 1 << bit % 8
    return data


def _overwrite(data: bytearray, rng: np.random.Generator) -> bytearray:
    for at in rng.integers(len(data), size=rng.integers(1, 17)):
        data[at] = rng.integers(256)
    return data


def _block(data: bytearray, rng: np.random.Generator) -> bytearray:
    at, length = int(rng.integers(len(data))), len(data)
    data[at : at + 512] = rng.bytes(512) if rng.random() < 0.5 else bytes(512)
    return data[:length]


def _cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(len(data))]


def _insert(data: bytearray, rng: np.random.Generator) -> bytearray:
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(rng.integers(1, 65)) + data[at:]


def _repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, stop = sorted(rng.integers(len(data) + 1, size=2))
    return data[:stop] + data[start:stop] + data[stop:]


def _header(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Set a number near the start or the end, where headers and indexes lie, to an odd value."""
    at = -int(rng.integers(1, min(len(data), 1024) + 1))
    if rng.random() < 0.7:
        at = int(rng.integers(min(len(data), 256)))
    value = int(rng.choice(ODD_VALUES)).to_bytes(4, "little" if rng.random() < 0.5 else "big")
    return data[:at] + value + data[len(data[:at]) + 4 :]


def damage_mesh(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file, or set a few numbers in its text (of a GLB, in its header) to odd values."""
    if rng.random() < 0.5:
        return mutate(data, rng)
    if data[:4] != b"glTF":
        return _odd_numbers(data, rng)
    length = struct.unpack_from("<I", data, 12)[0]
    text = _odd_numbers(data[20 : 20 + length], rng)
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def _odd_numbers(data: bytes, rng: np.random.Generator) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return mutate(data, rng)
    for index in sorted(rng.choice(len(found), min(len(found), int(rng.integers(1, 4))), replace=False), reverse=True):
        data = data[: found[index].start()] + ODD[rng.integers(len(ODD))] + data[found[index].end() :]
    return data


def damaged(
    folder: Path, seeds: Sequence[Path], count: int, seed: int, damage: Damage, contents: dict[Path, str] | None = None
) -> Iterator[Case]:
    """``count`` damaged copies of ``seeds`` in turn; ``contents`` is what those must hold that are still read."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        source = seeds[index % len(seeds)]
        path = folder / f"{index}-{source.name}"
        path.write_bytes(damage(source.read_bytes(), rng))
        yield Case(path, contents=(contents or {}).get(source, ""))


def damaged_resources(folder: Path, seeds: Sequence[Path], count: int, seed: int) -> Iterator[Case]:
    """``count`` times a sound mesh, one of the files that it names damaged."""
    rng = np.random.default_rng(seed)
    mains = [path for path in seeds if path.name in _REFERRING]
    others = sorted(set(mains[0].parent.iterdir()) - set(seeds))
    for index in range(count):
        source, other = mains[index % len(mains)], others[rng.integers(len(others))]
        sound = other.read_bytes()
        (folder / other.name).write_bytes(damage_mesh(sound, rng))
        path = folder / f"{index}-{source.name}"
        path.write_bytes(source.read_bytes())
        yield Case(path)
        (folder / other.name).write_bytes(sound)


def hostile_meshes(folder: Path, port: int) -> Iterator[Case]:
    """The hostile files of the tests, two that are small and hold much, and what is no file at all."""
    for name, (data, _) in mesh_cases.hostile(folder, port).items():
        (folder / name).write_bytes(data)
        yield Case(folder / name, "refused")
    for name, data in seed_files.heavy().items():
        (folder / name).write_bytes(data)
        yield Case(folder / name)
    yield from not_files(folder, ".glb")
