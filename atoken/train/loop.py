"""The loop, one for everything that is trained: it trains, logs, saves, resumes, and exports the EMA at the end."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

from atoken.atomic import sync
from atoken.train import manifest
from atoken.train.checkpoints import Checkpoints
from atoken.train.devices import keep_freed_memory
from atoken.train.engine import PlainEngine
from atoken.train.loader import batches, living_workers
from atoken.train.objective import Evaluate, Export, Objective, Source
from atoken.train.recipe import Recipe
from atoken.train.record import Started
from atoken.train.run_folder import RunFolder, rank_of_launch, writing
from atoken.train.tally import Tally
from atoken.train.watch import Watch
from atoken.train.zero import ZeroEngine

NOTHING = Started()


def run(
    objective: Objective[Any],
    recipe: Recipe,
    source: Source[Any],
    folder: Path,
    *,
    export: Export,
    evaluate: Evaluate | None = None,
    started: Started = NOTHING,
    device: str = "cpu",
    workers: int = 0,
    zero: int | None = None,
    save_every: int = 250,
    evaluate_every: int = 0,
    most_broken: float = 0.1,
) -> Path:
    """Train to the end of the recipe, from the newest checkpoint in ``folder`` if there is one.

    export: writes a model into the folder that it is given, on rank 0; its weights are the EMA, all of them by the
    names that the objective has for them. evaluate: gives numbers and an image, or None, of the same; it must not
    train. zero: stage of ZeRO, on all ranks that were launched; None is the plain engine in one process.
    evaluate_every: steps, beside the first and the last; 0 is never. most_broken: share of samples that may be broken.

    Returns the folder of the exported model. Asked to end by SIGTERM, it saves after the step that is running and exits
    with code 143. Raises: CheckpointError (also as ``Started.check_resumable``, where ``folder`` holds another run),
    MediaError (too many samples are broken), and as engine and source.
    """
    if device == "cpu":
        keep_freed_memory()
    run_folder, checkpoints = RunFolder(folder), Checkpoints(folder)
    saved = checkpoints.newest()
    now = started.record(saved.numbers["step"] if saved else 0, recipe)
    now["launch"] |= {"device": device, "ranks": int(os.environ.get("WORLD_SIZE", 1)), "workers": workers, "zero": zero}
    if saved and (before := run_folder.noted("start-")):
        started.check_resumable(before, now, folder)
        now["start"] = before.get("start", now["start"])
    if rank_of_launch() == 0:
        checkpoints.keep_frozen(objective.frozen(), saved)
    engine: PlainEngine = (
        PlainEngine(objective, recipe, device, saved)
        if zero is None
        else ZeroEngine(objective, recipe, device, zero, saved)
    )
    if engine.rank == 0:
        run_folder.rewind(engine.step)
        run_folder.note(f"start-{engine.step:06d}", now)
    with _termination() as asked:
        tally = Tally(folder / f"broken-{engine.rank}.jsonl", most_broken, **run_folder.counted(engine.step))
        watch = Watch(engine, run_folder, evaluate, evaluate_every)
        prefetched = batches(source, engine.step, recipe.steps, workers, engine.rank, engine.world)
        with living_workers(), closing(watch), closing(prefetched):
            if engine.step == 0:
                watch.evaluate_if_due()
                watch.restart_clock()
            while engine.step < recipe.steps:
                before_step = time.monotonic()
                micro_batches = next(prefetched)
                waited = time.monotonic() - before_step
                row = engine.train(micro_batches)
                last = engine.step == recipe.steps
                ends, *counts = engine.total([asked.is_set(), *tally.listed(engine.step - 1, micro_batches)])
                watch.step({**row, **tally.count(*counts, last=last)}, micro_batches, waited)
                if last or not ends:
                    watch.evaluate_if_due()  # before the checkpoint: who resumes from it will not evaluate this step
                if last or ends or engine.step % save_every == 0:
                    engine.save(checkpoints)
                if ends and not last:
                    raise SystemExit(128 + signal.SIGTERM)
                watch.restart_clock()
        _export(engine, folder / "model", export)
        (ends,) = engine.total([asked.is_set()])
    if ends:  # what would be trained next is not begun
        raise SystemExit(128 + signal.SIGTERM)
    return folder / "model"


@contextmanager
def _termination() -> Iterator[Event]:
    """An event that SIGTERM sets instead of ending the process; only the main thread may listen to signals."""
    asked = Event()
    if current_thread() is not main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _export(engine: PlainEngine, folder: Path, export: Export) -> None:
    """Write the exported model, atomically. Raises: CheckpointError (a full disk, say)."""
    weights = engine.ema_weights()  # all ranks take part
    if engine.rank == 0:
        part = folder.with_name(f".{folder.name}.part")
        with writing(folder):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            export(weights, part)
            manifest.seal(part)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
            sync(folder.parent)
