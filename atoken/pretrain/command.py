"""What ``atoken train`` does: stages of a curriculum, one after another, each from what the one before it left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from tqdm import tqdm

from atoken.errors import AtokenError, CheckpointError
from atoken.presets import BUNDLED, preset
from atoken.pretrain.batches import check_shares
from atoken.pretrain.config import overridden, touches
from atoken.pretrain.curriculum import CURRICULA, FINISHED, TUNE, TUNING
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.evaluation import HELD_OUT
from atoken.pretrain.run import run
from atoken.pretrain.stages import Stage
from atoken.pretrain.teachers import NO_TEACHERS, load_teachers
from atoken.report.rows import read_rows
from atoken.train.checkpoints import Checkpoints
from atoken.train.devices import without_denormals
from atoken.train.options import zero_stage
from atoken.train.run_folder import rank_of_launch
from atoken.train.zero import check_whole

WITHOUT_TEACHERS = "none"  # in place of a folder


def chosen(preset: str, name: str, changes: Sequence[str], teachers: str | None) -> list[Stage]:
    """The stages that are asked for, ``all`` or one by its name, with what the user changes of each.

    Raises: AtokenError (unknown names, with those there are, and as ``overridden``).
    """
    if preset not in CURRICULA:
        raise AtokenError(f"There is no curriculum for {preset}; there are those for {', '.join(CURRICULA)}.")
    curriculum, tune = CURRICULA[preset], TUNING[preset]
    known = {**curriculum, tune.name: tune}
    if name != "all" and name not in known:
        raise AtokenError(
            f"{preset} has no stage {name}; there are {', '.join(known)}, or all but {tune.name} with all."
        )
    wanted = list(curriculum.values()) if name == "all" else [known[name]]
    # Of several stages, a change of a task is for those that have it; where none does, the first one says so.
    idle = {change for change in changes if not any(touches(stage, change) for stage in wanted)}
    stages = [overridden(stage, [c for c in changes if c in idle or touches(stage, c)]) for stage in wanted]
    if teachers == WITHOUT_TEACHERS:
        return [overridden(stage.without_teachers(), []) for stage in stages]
    return stages


def train(
    stages: Sequence[Stage],
    runs: Path,
    *,
    data: str | None,
    start: Path | None,
    teachers: str | None,
    device: str,
    workers: int,
    zero: int | None,
    evaluate_every: int,
) -> Iterator[Path]:
    """Train the stages in folders of their names, and give the folder of each one's model when it is done.

    start: folder of the model that the first one starts from; None: what was left in ``runs``, or comes with the
    package. data: as ``load_datasets`` takes it; None is procedural, but for tuning. teachers: their folder, ``none``,
    or None where the cache has them. device: cpu, cuda, or auto. zero: None is ZeRO-1 where a launcher started several
    processes, and the plain engine in one alone. Raises: AtokenError.
    """
    with without_denormals():
        world = int(os.environ.get("WORLD_SIZE", 1))
        device, zero = _device(device), zero_stage(zero)
        for stage in stages:
            check_shares(stage, world)
            if zero is not None:
                check_whole(stage.recipe)
        begin = start_of(stages[0], runs, start)  # what may be missing is found before anything is trained
        datasets = [load_datasets(data or _generated(stage), stage) for stage in stages]
        for source in (source for of_stage in datasets if rank_of_launch() == 0 for source in of_stage.held_out):
            tqdm.write(f"Held out of {source.folder}, to measure: {len(source)} images.", file=sys.stderr)
        needed: set[Any] = set().union(*(stage.teachers for stage in stages))
        loaded = load_teachers(needed, teachers) if needed else NO_TEACHERS
        for stage, of_stage in zip(stages, datasets, strict=True):
            if stage is not stages[0]:
                begin = start_of(stage, runs, None)
            model = run(
                stage, runs / stage.name, start=begin, datasets=of_stage, device=device, workers=workers, zero=zero,
                teachers=loaded, evaluate_every=evaluate_every,
            )  # fmt: skip
            if distributed.is_initialized():
                distributed.barrier()  # one rank writes the model, and all read it in the next stage
            yield model


def measured(run: Path) -> str:
    """What a run that has ended says of the images that it held out; "" where it held out none."""
    rows = [row for row in read_rows(path) if HELD_OUT in row] if (path := run / "evaluation.jsonl").exists() else []
    if not rows:
        return ""
    before, after = rows[0][HELD_OUT], rows[-1][HELD_OUT]
    return f"PSNR of held-out images: {before:.2f} dB before, {after:.2f} dB after"


def _generated(stage: Stage) -> str:
    """Where samples come from that nobody named. Raises: AtokenError (the stage is for a user's own)."""
    if stage.name == TUNE:
        raise AtokenError(f"Stage {TUNE} trains on images of your own: pass their folder with --data.")
    return "procedural"


def start_of(stage: Stage, runs: Path, given: Path | None) -> Path | None:
    """Folder of the model that a stage starts from; None for one that starts anew or resumes.

    Raises: CheckpointError (there is none; what to run first).
    """
    if given is not None and not given.is_dir():
        raise CheckpointError(f"There is no folder {given} to start from, nor a bundled model of that name.")
    resumes = Checkpoints(runs / stage.name).folders()
    if given is not None or resumes:
        return given
    if stage.start_from is None:
        if any(task.texts for task in stage.used.values()) and not preset(stage.preset).text:
            raise CheckpointError(
                f"Stage {stage.name} is trained on captions and needs a model with a text side: run atoken convert "
                f"SIGLIP2 --preset {stage.preset} --text SIGLIP2 -o START, and train with --start START."
            )
        return None
    left = runs / stage.start_from / "model"
    if left.is_dir():
        return left
    if stage.start_from in FINISHED:
        return BUNDLED / FINISHED[stage.start_from]
    raise CheckpointError(
        f"Stage {stage.name} starts from stage {stage.start_from}, and there is no {left}: train that stage first, "
        "or name a model with --start."
    )


def _device(name: str) -> str:
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise AtokenError("This machine has no GPU that torch can use; train with --device cpu.")
    return name if name != "auto" else "cuda" if found else "cpu"
