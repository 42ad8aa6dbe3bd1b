"""The loop: one for all stages. It trains, logs, saves, resumes, and writes the averaged model at the end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, current_thread, main_thread

import torch
from tqdm import tqdm

from atoken.checkpoint import load_folder
from atoken.errors import CheckpointError
from atoken.model import ATokenModel
from atoken.presets import preset
from atoken.train.batches import batch, batches
from atoken.train.engine import PlainEngine
from atoken.train.objective import Objective
from atoken.train.record import record
from atoken.train.run_folder import RunFolder
from atoken.train.stages import Stage
from atoken.train.start import discrete_start, linear_start

START_BATCHES = 24  # that a start takes its statistics from


def run(stage: Stage, folder: Path, *, start: Path | None, device: str, workers: int, save_every: int = 250) -> Path:
    """Train a stage to its end, from the newest checkpoint in ``folder`` if there is one.

    start: folder of the model that the stage starts from, where it names one. Returns the folder of the averaged model
    (bf16 safetensors). Asked to end by SIGTERM, it saves after the step that is running and exits with code 143.
    Raises: CheckpointError, and as the engine.
    """
    run_folder = RunFolder(folder)
    saved = run_folder.newest()
    torch.manual_seed(stage.seed)
    model = ATokenModel(preset(stage.preset)) if saved else _started(stage, start)
    engine = PlainEngine(Objective(model, stage.terms), stage, device)
    if saved:
        engine.restore(*saved)
    run_folder.rewind_log(engine.step)
    run_folder.note(f"start-{engine.step:06d}", record(stage, engine.step))
    with _termination() as asked:
        _steps(engine, run_folder, workers, save_every, asked)
    return export(engine, folder / "model")


def _steps(engine: PlainEngine, run_folder: RunFolder, workers: int, save_every: int, asked: Event) -> None:
    stage, started = engine.stage, time.monotonic()
    progress = tqdm(total=stage.steps, initial=engine.step, desc=stage.name, disable=None)
    for made in batches(stage, engine.step, workers):
        row = engine.train([made])
        run_folder.log({"step": engine.step - 1, "modality": made.modality, "tokens": len(made.tokens.feats), **row,
                        "seconds": round(time.monotonic() - started, 2)})  # fmt: skip
        progress.set_postfix({made.modality: f"{row['loss']:.4f}"}, refresh=False)
        progress.update()
        ends = engine.on_any_rank(asked.is_set())
        if ends or engine.step % save_every == 0 or engine.step == stage.steps:
            engine.save(run_folder)
        if ends and engine.step < stage.steps:
            raise SystemExit(128 + signal.SIGTERM)
    progress.close()


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


def _started(stage: Stage, start: Path | None) -> ATokenModel:
    """The model before step 0; its statistics come from the stage's first batches."""
    config, first = preset(stage.preset), (batch(stage, step) for step in range(START_BATCHES))
    if stage.start_from is None:
        return linear_start(config, [made.tokens for made in first if made.modality == "image"])
    if start is None:
        raise CheckpointError(f"Stage {stage.name} starts from {stage.start_from}; pass the folder of that model.")
    model = load_folder(start, dtype=torch.float32)
    if config.fsq_levels and not model.config.fsq_levels:
        return discrete_start(model, config, [made.tokens for made in first])
    return model


def export(engine: PlainEngine, folder: Path) -> Path:
    """Write the averaged weights as a bf16 model folder."""
    model = ATokenModel(engine.objective.model.config)
    model.load_state_dict(model.state_dict() | engine.averaged())
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
