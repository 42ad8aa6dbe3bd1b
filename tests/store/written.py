"""Stores written from given tokens, without a model, for tests of what reads them."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from atoken.io.token_file import TokenFileWriter, Tokens
from atoken.modalities import ASSET
from atoken.store.layout import (
    FAILURES,
    INDEX,
    MANIFEST,
    PLAN,
    SHARDS,
    STATS,
    VERSION,
    Options,
    Row,
    index_name,
    shard_name,
)
from atoken.store.plan import Model, Plan
from atoken.store.shards import index_table, write_index
from atoken.store.totals import Totals
from atoken.train.manifest import sha256
from tests.io.token_cases import make


class Given(NamedTuple):
    """An item of a store that a test wants."""

    key: str
    tokens: Tokens
    label: str | None = None
    captions: tuple[str, ...] = ()
    flipped: bool = False
    draw: int = 0


def asset(voxels: int = 20, seed: int = 0, **fields) -> Tokens:
    """Tokens at ``voxels`` different positions of a grid of 8^3."""
    places = np.sort(np.random.default_rng(seed).choice(8**3, voxels, replace=False))
    coords = torch.from_numpy(np.stack([0 * places, places // 64, places // 8 % 8, places % 8], 1).astype(np.int32))
    whole = make((16, 16 * voxels), seed=seed, **fields)
    described = {name: getattr(whole, name) for name in Tokens.__dataclass_fields__}
    return Tokens(**described | {"modality": ASSET.name, "size": (8, 8), "coords": coords})


def write_store(path: Path, items: list[Given], shard_items: int = 3, **options) -> Path:
    """A finished store of these items, ``shard_items`` to a shard."""
    first, chosen = items[0].tokens, Options(**options)
    channels, width = first.latents.shape[1], len(first.pooled)
    model = Model(
        name=first.model, fingerprint=first.fingerprint, dtype="float32", channels=channels, levels=first.levels,
        width=width,
    )  # fmt: skip
    plan = Plan(
        source="given", digest="0" * 64, model=model, options=chosen, items=len(items), unit_items=1,
        shard_units=shard_items, tokens=1.0, size_bytes=1.0,
    )  # fmt: skip
    for folder in (SHARDS, INDEX):
        (path / folder).mkdir(parents=True)
    totals = Totals(model)
    for shard, start in enumerate(range(0, len(items), shard_items)):
        some, name = items[start : start + shard_items], path / SHARDS / shard_name(shard)
        with TokenFileWriter(name, compress=False) as writer:
            for one in some:
                writer.add(one.tokens, dtype=chosen.latents)
                totals.add(one.tokens.modality, one.tokens.latents, one.tokens.codes, 1)
        rows = [_row(one, shard, number, writer.items[number], name) for number, one in enumerate(some)]
        write_index(path / INDEX / index_name(shard), [index_table(rows, width)])
    (path / PLAN).write_bytes(msgspec.json.encode(plan))
    (path / STATS).write_bytes(msgspec.json.encode(totals.statistics()))
    (path / FAILURES).touch()
    files = {
        file.relative_to(path).as_posix(): {"size_bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(path.rglob("*")) if file.is_file()
    }  # fmt: skip
    (path / MANIFEST).write_bytes(msgspec.json.encode({"version": VERSION, "files": files}))
    return path


def _row(one: Given, shard: int, number: int, item, name: Path) -> Row:
    chunks, tokens = list(item.chunks()), one.tokens
    start, size = chunks[0].offset, sum(chunk.stored for chunk in chunks)
    return Row(
        key=one.key, shard=shard, number=number, offset=start, size_bytes=size, modality=tokens.modality,
        height=tokens.size[0], width=tokens.size[1], frames=tokens.frames, fps=tokens.fps and float(tokens.fps),
        tokens=len(tokens.latents), label=one.label, captions=one.captions, flipped=one.flipped, draw=one.draw,
        checksum=hashlib.sha256(name.read_bytes()[start : start + size]).digest(), entry=msgspec.msgpack.encode(item),
    )  # fmt: skip


def images(count: int, size: tuple[int, int] = (32, 48), *, discrete: bool = False, seed: int = 0) -> list[Given]:
    """Images of one size with three labels and two captions each."""
    return [
        Given(f"images/{n:04}.png", make(size, discrete=discrete, seed=seed + n, name=f"{n}.png"), "cab"[n % 3],
              (f"image {n}", f"number {n}"))
        for n in range(count)
    ]  # fmt: skip


def mixed() -> list[Given]:
    """Images of three sizes, one with alpha and one without a label; short and long videos; assets."""
    alpha = np.arange(30 * 17, dtype=np.int64).astype(np.uint8).reshape(30, 17)
    stamps = np.arange(20) / 24 + np.arange(20) ** 2 / 1e4
    return [
        Given("a", make((30, 17), seed=1, alpha=alpha), "cat", ("a cat",)),
        Given("b", make((32, 32), seed=2), "dog"),
        Given("c", make((48, 16), seed=3)),
        Given("d", make((32, 32), frames=7, seed=4), "cat", ("it runs", "it sleeps")),
        Given("e", make((32, 32), frames=20, seed=5, timestamps=stamps), "dog"),
        Given("f", asset(20, seed=6), "chair"),
        Given("g", asset(7, seed=7), "chair"),
        Given("h", make((25, 30), frames=5, seed=8), "dog"),
    ]
