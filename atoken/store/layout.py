"""A token store on disk: the names of its files, the options that it is made with, and a row of its index.

``docs/token-store.md`` describes them for other programs::

    STORE/plan.json               source, model and options, written first; whoever goes on must name the same
    STORE/shards/000000.atok      token files; their items are in the order of the source
    STORE/index/000000.parquet    a row for each item of the shard of that number
    STORE/stats.json              statistics of latents, counts of codes, labels, totals
    STORE/failures.jsonl          what could not be read: key and reason, a line each
    STORE/manifest.json           sizes and SHA-256 of all other files, written last; a store without it is unfinished
    STORE/.work/                  lock, parts of shards that are not whole, what is known of whole ones; gone at the end
    STORE/vectors/                for search, by atoken index: follows from the rest, and is not in the manifest
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

VERSION = 1
PLAN, MANIFEST, STATS, FAILURES = "plan.json", "manifest.json", "stats.json", "failures.jsonl"
SHARDS, INDEX, WORK = "shards", "index", ".work"

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]


def shard_name(number: int) -> str:
    """Of shard ``number`` in ``SHARDS``."""
    return f"{number:06d}.atok"


def index_name(number: int) -> str:
    """Of the index of shard ``number`` in ``INDEX``."""
    return f"{number:06d}.parquet"


def numbers_first(label: str) -> tuple[bool, int, str]:
    """By which labels are sorted: whole numbers first, as numbers, then texts."""
    number = label.isascii() and label.isdecimal() and len(label) < 20
    return not number, int(label) if number else 0, label


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the contents of a store, beside its source and model; engines and numbers of workers do not.

    latents: float32, or float16, which rounds a continuous model's; codes of a discrete model are exact. draws:
    samples from the posterior of each item, 0 for its mean. flip: each image and video mirrored as well, not
    assets. resize: the shorter side in pixels. crop: the side of the square in the middle, after resizing. fps,
    frames: of videos, the rate and the number of frames at most. max_side: larger images and frames are scaled
    down. coarsen: assets of too many voxels get a coarser grid. voxels: a side of the grid of assets, None for 64.
    items: how many of the source, None for all; a series of the generator has no end. shuffle: seed of the order of
    items, None for that of the source. shard_mb: of a shard, about. batch_tokens: that are encoded at once, about.
    vectors: pooled unit vectors are in the index, too.
    """

    latents: Literal["float32", "float16"] = "float32"
    draws: Count = 0
    seed: Count = 0  # of the draws, and of generated items
    flip: bool = False
    resize: Positive | None = None
    crop: Positive | None = None
    fps: str | None = None  # a number or a fraction, as on the command line
    frames: Positive | None = None
    max_side: Positive | None = None
    coarsen: bool = False
    voxels: Positive | None = None
    items: Positive | None = None
    shuffle: Count | None = None
    shard_mb: Positive = 256
    batch_tokens: Positive = 16_384
    vectors: bool = False


class Listed(Struct, frozen=True):
    """What the manifest says of a file."""

    size_bytes: int
    sha256: str


class Manifest(Struct, frozen=True):
    """``manifest.json``: files by their names, relative to the store."""

    version: int
    files: dict[str, Listed]


class Row(Struct, frozen=True, kw_only=True):
    """One item of a shard, a row of its index. Of one thing there are several with flips and draws, of the same key.

    number: of the item in its shard. offset, size_bytes: where its chunks lie in the shard. height, width: in pixels,
    of an asset in voxels. captions: may be empty. checksum: SHA-256 of the bytes of its chunks. entry: what the table
    of contents of the shard says of it (msgpack, ``atoken.io.contents.Item``). vector: (D,) float32, a unit vector.
    """

    key: str
    shard: int
    number: int
    offset: int
    size_bytes: int
    modality: str
    height: int
    width: int
    frames: int
    fps: float | None
    tokens: int
    label: str | None
    captions: tuple[str, ...]
    flipped: bool
    draw: int
    checksum: bytes
    entry: bytes
    vector: bytes | None = None
