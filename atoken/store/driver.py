"""A data set to a store: the plan, the engine's units, shards as they fill up, the end; from wherever a run stopped."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from atoken.errors import StoreError
from atoken.store import shards
from atoken.store.layout import STATS, Options
from atoken.store.plan import Model, is_whole, load_plan, locked, new_plan, save_plan
from atoken.store.probe import probe
from atoken.store.reading import Failure, Job
from atoken.store.units import Report, sound
from atoken.tokenizer import Tokenizer

if TYPE_CHECKING:
    from atoken.store.source import Items


class Engine(Protocol):
    """What makes units and joins shards, on one machine or many; both are on disk when they are reported."""

    def encode(self, job: Job, units: Sequence[int]) -> Generator[Report]:
        """Make units in any order. Raises: AtokenError."""

    def join(self, job: Job, shard: int) -> Future[None]:
        """Begin to join a shard, as ``shards.join``; its units are all there."""


@dataclass
class Progress:
    """Items that are done and failed, of ``total``; ``before`` of them by earlier runs."""

    total: int
    done: int = 0
    before: int = 0
    tokens: int = 0
    decoding: float = 0.0
    encoding: float = 0.0
    failures: list[Failure] = field(default_factory=list)


def tokenize(
    items: Items,
    store: Path,
    tokenizer: Tokenizer,
    model: Mapping[str, Any],
    options: Options,
    engine: Engine,
    *,
    most_broken: float = 0.1,
    shown: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Make a store of a source, or go on with one that was interrupted; what its ``stats.json`` says.

    model: the arguments of ``atoken.load`` that gave the tokenizer, for other processes. most_broken: the share of
    items that may fail. shown: is called after each unit. Raises: AtokenError; the store can be gone on with.
    """
    shards.arrow()  # a missing package is said before anything is made
    with locked(store):
        plan = load_plan(store)
        if plan is None:
            plan = new_plan(items, tokenizer, options, probe(items, options)[0])
            save_plan(store, plan)
        plan.check(store, items, Model.of(tokenizer), options)
        job = Job(store, plan, items, model)
        if not is_whole(store):
            _fill(job, engine, most_broken, shown)
            shards.finish(job)
        shards.sweep(job)
    return msgspec.json.decode((store / STATS).read_bytes())


def forecast(items: Items, tokenizer: Tokenizer, options: Options, workers: int) -> list[list[str]]:
    """A table of what a store takes, from a probe of the source and a batch that is encoded. Raises: AtokenError."""
    measured, media = probe(items, options, options.batch_tokens)
    plan = new_plan(items, tokenizer, options, measured)
    rate = 0.0
    for _ in range(2):  # the first is slower
        start = perf_counter()
        encoded = tokenizer.encode_batch(media)
        rate = sum(len(one.latents) for one in encoded) / (perf_counter() - start)
    reading = plan.items * measured.seconds / workers
    encoding = plan.items * measured.tokens * (1 + options.flip) / rate if media else 0.0
    return [
        ["", "in all"],
        ["items", f"{plan.items:,}"],
        ["tokens", f"{round(plan.items * plan.tokens):,}"],
        ["MB", f"{plan.items * plan.size_bytes / 1e6:,.0f}"],
        ["shards", f"{plan.shards:,}"],
        [f"hours of reading, {workers} workers", f"{reading / 3600:.3g}"],
        [f"hours of encoding on {tokenizer.device}", f"{encoding / 3600:.3g}"],
    ]


def _fill(job: Job, engine: Engine, most_broken: float, shown: Callable[[Progress], None]) -> None:
    """Make all shards that are not there."""
    plan, progress = job.plan, Progress(job.plan.items)
    complete = {shard: done.failures for shard, done in shards.find_complete(job)}
    waiting: dict[int, set[int]] = {}
    for shard in range(plan.shards):
        if shard in complete:
            progress.done += sum(len(plan.items_of(unit)) for unit in plan.units_of(shard))
            progress.failures += complete[shard]
            continue
        there = {unit: done for unit in plan.units_of(shard) if (done := sound(job, unit))}
        progress.done += sum(len(plan.items_of(unit)) for unit in there)
        progress.failures += [failure for done in there.values() for failure in done.failures]
        waiting[shard] = {*plan.units_of(shard)} - there.keys()
    progress.before = progress.done
    shown(progress)
    _check_broken(job, progress, most_broken)
    joins = [engine.join(job, shard) for shard, units in waiting.items() if not units]
    units = [unit for left in waiting.values() for unit in sorted(left)]
    with closing(engine.encode(job, units)) as reports:
        for report in reports:
            progress.done += report.items
            progress.tokens += report.tokens
            progress.decoding += report.decoding
            progress.encoding += report.encoding
            progress.failures += report.failures
            shown(progress)
            _check_broken(job, progress, most_broken)
            shard = report.unit // plan.shard_units
            waiting[shard].discard(report.unit)
            if not waiting[shard]:
                joins.append(engine.join(job, shard))
            for join in [join for join in joins if join.done()]:
                join.result()
                joins.remove(join)
    for join in joins:
        join.result()


def _check_broken(job: Job, progress: Progress, most: float) -> None:
    failed = progress.failures
    if len(failed) > most * progress.total:
        shown = "; ".join(f"{failure.key}: {failure.reason}" for failure in failed[:3])
        raise StoreError(
            f"{len(failed)} of {progress.total:,} items could not be used, over the limit of {most:.0%}: {shown} "
            "Mend them, or raise --most-broken; the same command goes on."
        )
