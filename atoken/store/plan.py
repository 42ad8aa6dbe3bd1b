"""The plan of a store: what it is made of and how its items are cut into units and shards. Who goes on must agree.

The items of a source, in their order, are cut into units of consecutive items, which are read and encoded at once; a
shard is consecutive units. All of it is a function of source, model and options, so that neither the engine nor the
number of workers nor an interruption changes a byte of a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, structs

from atoken.atomic import atomic_path
from atoken.data.mixing import permuted
from atoken.errors import StoreError
from atoken.store.layout import FAILURES, INDEX, MANIFEST, PLAN, SHARDS, STATS, VERSION, WORK, Options

if TYPE_CHECKING:
    from atoken.store.source import Items
    from atoken.tokenizer import Tokenizer

MOST_ITEMS = 256  # of a unit: what is done again after a kill is small, and so is what is in memory
MOST_CONTENTS = 6 << 20  # bytes of the table of contents of a shard by the probe, of 16 MiB that a token file may have
LOCK = "lock"
OTHERS = "vectors"  # begins the names of files that searching adds


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model makes the tokens, in which precision; ``levels`` of a discrete one, else None."""

    name: str
    fingerprint: str
    dtype: str
    channels: int
    levels: tuple[int, ...] | None
    width: int  # of pooled vectors

    @staticmethod
    def of(tokenizer: Tokenizer) -> Model:
        """That of a tokenizer."""
        config = tokenizer.model.config
        return Model(
            name=tokenizer.name, fingerprint=tokenizer.fingerprint,
            dtype=str(tokenizer.model.dtype).removeprefix("torch."), channels=config.latent_channels,
            levels=config.fsq_levels, width=config.encoder_width,
        )  # fmt: skip


class Plan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``plan.json``. source: described in words. digest: of names and sizes of its files. items: how many there are.

    tokens, size_bytes: of an item of the source on average, with its flips and draws, by a probe.
    """

    version: int = VERSION
    source: str
    digest: str
    model: Model
    options: Options
    items: int
    unit_items: int
    shard_units: int
    tokens: float
    size_bytes: float

    @property
    def units(self) -> int:
        """Number of units."""
        return -(-self.items // self.unit_items)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.units // self.shard_units)

    def items_of(self, unit: int) -> range:
        """Numbers of the items of a unit, in the order of the store."""
        return range(unit * self.unit_items, min((unit + 1) * self.unit_items, self.items))

    def units_of(self, shard: int) -> range:
        """Numbers of the units of a shard."""
        return range(shard * self.shard_units, min((shard + 1) * self.shard_units, self.units))

    def in_source(self, item: int, length: int) -> int:
        """The number in a source of so many items of an item of the store."""
        return item if self.options.shuffle is None else permuted(item, length, self.options.shuffle)

    def check(self, store: Path, source: Items, model: Model, options: Options) -> None:
        """Raises: StoreError where a store of this plan is asked for with another source, model or other options."""
        wanted = structs.replace(self, source=source.described, digest=source.digest, model=model, options=options)
        wanted = structs.replace(wanted, items=count(source, options))
        pairs = zip(self._facts().items(), wanted._facts().values(), strict=True)
        if different := [f"{name} was {old}, now it is {new}" for (name, old), new in pairs if old != new]:
            raise StoreError(f"{store} was begun differently: {'; '.join(different)}. Choose another folder.")

    def _facts(self) -> dict[str, object]:
        model = f"{self.model.name} in {self.model.dtype} ({self.model.fingerprint[:12]})"
        digest = f"{self.items:,} items with the digest {self.digest[:12]}"
        return {"the source": digest, "the model": model, **structs.asdict(self.options)}


@dataclass(frozen=True)
class Measured:
    """What a probe found: tokens, tiles and seconds of reading of one item of the source on average, over ``items``."""

    items: int
    tokens: float
    tiles: float
    seconds: float


def new_plan(source: Items, tokenizer: Tokenizer, options: Options, probe: Measured) -> Plan:
    """The plan of a new store. ``probe``: without flips and draws. Raises: StoreError."""
    model, copies = Model.of(tokenizer), (1 + options.flip) * max(options.draws, 1)
    if model.levels and options.draws:
        raise StoreError(f"{model.name} is a discrete model, which has no posterior to draw from; leave --sample out.")
    unit = min(max(round(options.batch_tokens / max(probe.tokens * (1 + options.flip), 1)), 1), MOST_ITEMS)
    size = copies * (probe.tokens * token_bytes(model, options) + 4 * model.width)
    contents = copies * (300 + 90 * probe.tiles)  # measured: 350 for an image, 55 for each further tile
    shard = min(options.shard_mb * 1e6 / (unit * size), MOST_CONTENTS / (unit * contents))
    return Plan(
        source=source.described, digest=source.digest, model=model, options=options,
        items=count(source, options), unit_items=unit,
        shard_units=max(int(shard), 1), tokens=copies * probe.tokens, size_bytes=size,
    )  # fmt: skip


def count(source: Items, options: Options) -> int:
    """How many items of a source go into a store."""
    return min(len(source), options.items or len(source))


def token_bytes(model: Model, options: Options) -> float:
    """Bytes of a token in a store: its latents or codes."""
    if model.levels:
        return model.channels / len(model.levels) * (prod(model.levels) - 1).bit_length() / 8
    return model.channels * (4 if options.latents == "float32" else 2)


def load_plan(store: Path) -> Plan | None:
    """The plan of a store; None where there is none. Raises: StoreError (a damaged one, another version)."""
    path = store / PLAN
    try:
        version = msgspec.json.decode(path.read_bytes())["version"]
        if version != VERSION:
            raise StoreError(f"{store} is a store of version {version!r}; this AToken reads version {VERSION}.")
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} is damaged ({error}); make the store again in another folder.") from error
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}.") from error


def save_plan(store: Path, plan: Plan) -> None:
    """Raises: StoreError."""
    with atomic_path(store / PLAN, StoreError) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")


def is_whole(store: Path) -> bool:
    """Whether a store is finished."""
    return (store / MANIFEST).is_file()


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold a store, new or begun, which one process at a time may write; what a killed one left is swept away.

    Raises: StoreError (foreign files, another process, a folder that cannot be written).
    """
    check_foreign(store)
    folders = (store, store / SHARDS, store / INDEX, store / WORK)
    with writing(store):
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        file = (store / WORK / LOCK).open("w")
    with file:
        with writing(store):  # some file systems have no locks
            free = _lock(file.fileno())
        if not free:
            raise StoreError(f"Another process is writing {store}; wait until it is done, or choose another folder.")
        with writing(store):
            for left in (path for folder in folders for path in folder.glob(".*.part")):
                left.unlink()
        yield


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Raises: StoreError for what keeps a folder from being written, such as a full disk."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"Cannot write {store}: {error.strerror or error}.") from error


def _lock(descriptor: int) -> bool:
    """Take a lock that the system frees when the process ends, however it does. Windows has none of this type."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_foreign(store: Path) -> None:
    """Raises: StoreError (not a folder, or one with files that no store has)."""
    if not store.exists():
        return
    try:
        found = sorted(path.name for path in store.iterdir())
    except OSError as error:
        raise StoreError(f"Cannot list {store}: {error.strerror or error}.") from error
    known = {PLAN, MANIFEST, STATS, FAILURES, SHARDS, INDEX, WORK}
    foreign = [name for name in found if name not in known and not name.startswith((OTHERS, "."))]
    if foreign:
        raise StoreError(f"{store} holds other files, such as {foreign[0]}; name an empty or a new folder.")
