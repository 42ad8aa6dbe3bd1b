"""Small sources of images, videos and broken files, and an engine without processes."""

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atoken.store import pool, reading, shards
from atoken.store.driver import tokenize
from atoken.store.layout import Options
from atoken.store.reading import read_unit
from atoken.store.source import open_source
from atoken.store.units import encode_unit
from tests.tokenizer.small import small_tokenizer


def folder(path: Path, count: int = 7, broken: tuple[int, ...] = (), side: int = 24) -> Path:
    """Images in two classes, some of which are no images."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = path / f"class-{number % 2}" / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number in broken:
            file.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
        else:
            Image.fromarray(rng.integers(0, 256, (side, side + 16 * (number % 3), 3), dtype=np.uint8)).save(file)
    return path


class Here:
    """An engine that does all in this process, ``units`` of them until it is interrupted."""

    def __init__(self, tokenizer, units=None, backwards=False):
        self.tokenizer, self.units, self.backwards = tokenizer, units, backwards

    def encode(self, job, units):
        for number, unit in enumerate(units[::-1] if self.backwards else units):
            if number == self.units:
                raise KeyboardInterrupt
            yield encode_unit(job, self.tokenizer, read_unit(job, unit))

    def join(self, job, shard):
        done = Future()
        done.set_result(shards.join(job, shard))
        return done


def make(
    source, store, kind="continuous", engine=None, units=None, backwards=False, most_broken=0.1, tokenizer=None,
    model=(), **options,
):  # fmt: skip
    """A store of a folder with a small model; its statistics."""
    tokenizer, wanted = tokenizer or small_tokenizer(kind), Options(**({"batch_tokens": 16} | options))
    items = source if hasattr(source, "digest") else open_source(str(source), wanted)
    arguments = items, Path(store), tokenizer, dict(model), wanted
    if engine:
        return tokenize(*arguments, engine, most_broken=most_broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "one_by_one", here)
        return tokenize(*arguments, Here(tokenizer, units, backwards), most_broken=most_broken)


def here(given, call, arguments):
    """The calls in this process: starting another for each store takes longer than these tests have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_GIVEN", [given])
        yield from (call(*argument) for argument in arguments)


def contents(store):
    """The bytes of every file of a store by its name."""
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}
