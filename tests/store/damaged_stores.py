"""Token stores for ``benchmarks.fuzz``: one of their files damaged, lost, exchanged, or one too many."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.media.damage import mutate
from tests.media.reading_process import STORE
from tests.media.seed_files import Case
from tests.store.written import mixed, write_store


def sound_store(folder: Path) -> Path:
    """A store of three shards: images, videos and assets."""
    return write_store(folder / f"sound{STORE}", mixed())


def damaged_stores(folder: Path, sound: Path, suffix: str, count: int, seed: int, contents: str) -> Iterator[Case]:
    """``count`` copies of a store with one fault each, in one file after the other.

    contents: what the store holds, which it must still do where it is read.
    """
    rng = np.random.default_rng(seed)
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file())
    for index in range(count):
        store, name = folder / f"{index}{suffix}", files[index % len(files)]
        shutil.copytree(sound, store)
        path, way = store / name, rng.integers(8)
        if way == 0:
            path.unlink()
        elif way == 1:  # a sound file, but not this one
            shutil.copy(sound / files[(files.index(name) + int(rng.integers(1, len(files)))) % len(files)], path)
        elif way == 2:
            shutil.copy(path, path.with_stem("000009"))
        elif data := path.read_bytes():
            path.write_bytes(mutate(data, rng))
        else:
            path.write_bytes(b"x")
        yield Case(store, contents=contents)
