"""The loop: one for all stages. It trains, logs, saves, resumes, and writes the averaged model at the end."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, current_thread, main_thread

import torch

from atoken.data.mixing import Tally
from atoken.model import ATokenModel
from atoken.pretrain.batches import batches, living_workers
from atoken.pretrain.datasets import Datasets
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Stage
from atoken.pretrain.start.begin import begin, blank, save_blank
from atoken.pretrain.teachers import NO_TEACHERS, Teachers
from atoken.text import TextTokenizer
from atoken.train.engine import PlainEngine
from atoken.train.record import check_goes_on, record
from atoken.train.run_folder import RunFolder, writing
from atoken.train.watch import Watch
from atoken.train.zero import ZeroEngine


def run(
    stage: Stage,
    folder: Path,
    *,
    start: Path | None,
    datasets: Datasets,
    device: str,
    workers: int,
    zero: int | None = None,
    teachers: Teachers = NO_TEACHERS,
    save_every: int = 250,
    evaluate_every: int = 0,
) -> Path:
    """Train a stage to its end, from the newest checkpoint in ``folder`` if there is one.

    start: folder of the model that the stage starts from. zero: stage of ZeRO, on all ranks that were launched; None is
    the plain engine in one process. evaluate_every: steps; 0 is never. Returns the folder of the averaged model (bf16
    safetensors). Asked to end by SIGTERM, it saves after the step that is running and exits with code 143.
    Raises: CheckpointError (also as ``check_goes_on``, where ``folder`` holds another run), MediaError (too many
    samples are broken), and as the engine.
    """
    run_folder = RunFolder(folder)
    saved = run_folder.newest()
    launch = {"device": device, "ranks": int(os.environ.get("WORLD_SIZE", 1)), "workers": workers, "zero": zero}
    now = record(stage, saved[1]["step"] if saved else 0, datasets.data, start, launch, teachers.record)
    if saved and (before := run_folder.noted("start-")):
        check_goes_on(before, now, folder)
        now["start"] = before.get("start", now["start"])
    torch.manual_seed(stage.seed)
    model, texts = blank(folder) if saved else begin(stage, start, datasets)
    objective = Objective(model, stage.used, teachers, texts)
    engine = PlainEngine(objective, stage, device) if zero is None else ZeroEngine(objective, stage, device, zero)
    if saved:
        engine.restore(*saved)
    if engine.rank == 0:
        if not saved:
            save_blank(folder, model, texts)
        run_folder.rewind(engine.step)
        run_folder.note(f"start-{engine.step:06d}", now)
    with _termination() as asked:
        _steps(engine, run_folder, texts, datasets, workers, save_every, evaluate_every, asked)
        exported = export(engine, folder / "model", texts)
        (ends,) = engine.total([asked.is_set()])
    if ends:  # the stages after this one are not begun
        raise SystemExit(128 + signal.SIGTERM)
    return exported


def _steps(
    engine: PlainEngine,
    run_folder: RunFolder,
    texts: TextTokenizer | None,
    datasets: Datasets,
    workers: int,
    save_every: int,
    evaluate_every: int,
    asked: Event,
) -> None:
    stage = engine.stage
    listed, counted = run_folder.path / f"broken-{engine.rank}.jsonl", run_folder.counted(engine.step)
    tally = Tally(listed, datasets.data.most_broken, **counted)
    made = batches(stage, datasets, engine.step, workers, engine.rank, engine.world)
    with living_workers(), closing(made), Watch(engine, run_folder, texts, evaluate_every) as watch:
        for _ in range(engine.step, stage.steps):
            before = time.monotonic()
            micro_batches = next(made)
            waited = time.monotonic() - before
            row = engine.train(micro_batches)
            ends, *counts = engine.total([asked.is_set(), *tally.listed(engine.step - 1, micro_batches)])
            watch.step({**row, **tally.count(*counts)}, micro_batches, waited)
            if ends or engine.step % save_every == 0 or engine.step == stage.steps:
                engine.save(run_folder)
            if ends and engine.step < stage.steps:
                raise SystemExit(128 + signal.SIGTERM)
            watch.evaluate_if_due()


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


def export(engine: PlainEngine, folder: Path, texts: TextTokenizer | None) -> Path:
    """Write the averaged weights as a bf16 model folder, whole or not at all, with the files of the text tokenizer.

    Raises: CheckpointError (a full disk, say).
    """
    averaged = engine.averaged()
    if engine.rank == 0:
        model = ATokenModel(engine.objective.model.config)
        model.load_state_dict(model.state_dict() | averaged)
        part = folder.with_name(f".{folder.name}.part")
        with writing(folder):
            shutil.rmtree(part, ignore_errors=True)
            model.to(torch.bfloat16).save_pretrained(part)
            if texts is not None:
                texts.save(part)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
    return folder
