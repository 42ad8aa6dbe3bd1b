"""One run of one stage: its model, objective, batches and callbacks, handed to ``atoken/train``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atoken.data.loading import load_image
from atoken.errors import AtokenError
from atoken.model import ATokenConfig, ATokenModel
from atoken.pretrain.batches import MicroBatches
from atoken.pretrain.data_file import Data
from atoken.pretrain.datasets import Datasets
from atoken.pretrain.evaluation import MOST_OWN, RISING, HeldOut, evaluate
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Stage
from atoken.pretrain.start.begin import begin, blank, save_blank
from atoken.pretrain.teachers import NO_TEACHERS, Teachers
from atoken.text import TextTokenizer
from atoken.train import loop, manifest
from atoken.train.checkpoints import Checkpoints
from atoken.train.record import Started
from atoken.train.run_folder import rank_of_launch


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

    start: folder of the model that the stage starts from. Everything else, and what is returned and raised, is as in
    ``atoken.train.loop.run``; the exported model is in bf16.
    """
    torch.manual_seed(stage.recipe.seed)
    resumes = bool(Checkpoints(folder).folders())
    if start is not None and not resumes and (start / manifest.NAME).exists():
        manifest.read(start)  # a stage must not begin with a damaged model
    model, texts = blank(folder) if resumes else begin(stage, start, datasets)
    objective = Objective(model, stage, teachers, texts)
    held_out = HeldOut()
    if rank_of_launch() == 0:
        if not resumes:
            save_blank(folder, model, texts)
        if evaluate_every:
            held_out = HeldOut.of({task.modality for task in stage.used.values()})
        held_out = replace(held_out, own=_own(stage, datasets))
    return loop.run(
        objective, stage.recipe, MicroBatches(stage, datasets), folder,
        export=partial(export, model.config, texts), evaluate=partial(evaluate_ema, model, stage, held_out, texts),
        started=_started(stage, start, datasets.data, teachers), device=device, workers=workers, zero=zero,
        save_every=save_every, most_broken=datasets.data.most_broken,
        evaluate_every=evaluate_every or (stage.recipe.steps if datasets.held_out else 0),
    )  # fmt: skip


def _own(stage: Stage, datasets: Datasets) -> list[np.ndarray]:
    """Held-out images at the largest size that is trained on; those that cannot be read are left out."""
    found = []
    for source, number in [(held, number) for held in datasets.held_out for number in range(len(held))][:MOST_OWN]:
        fewest, most = stage.used["image"].patches
        with suppress(AtokenError):
            found.append(load_image(source[number], most, fewest))
    return found


def _started(stage: Stage, start: Path | None, data: Data, teachers: Teachers) -> Started:
    """The stage with the tasks that it uses, and the tables of the data that these may read."""
    parts = {part.name: getattr(stage, part.name) for part in fields(stage) if part.name != "recipe"}
    named = {*stage.used, *(task.modality for task in stage.used.values())}
    tables = {name: table for name, table in data.tables.items() if name in named}
    return Started(
        {"stage": parts | {"tasks": stage.used},
         "data": {"procedural": data.file == "procedural", "seed": data.seed, "tables": tables}},
        fixed=("stage.preset", "stage.name", "stage.held_out", "data."), complete=("stage.mixture", "data.tables."),
        start=start, rising=RISING,
        launch={"data": data.file, "teachers": teachers.record},
    )  # fmt: skip


def ema_model(config: ATokenConfig, weights: Mapping[str, Tensor], device: torch.device | str) -> ATokenModel:
    """A model of its own with the weights that an objective has under the name ``model``, in eval mode."""
    with torch.device(device):
        model = ATokenModel(config)
    model.load_state_dict(model.state_dict() | {name.removeprefix("model."): value for name, value in weights.items()})
    return model.eval()


def evaluate_ema(
    model: ATokenModel, stage: Stage, held_out: HeldOut, texts: TextTokenizer | None, weights: Mapping[str, Tensor]
) -> tuple[dict[str, float], np.ndarray | None]:
    """As ``evaluate``, of EMA weights, on the device of the model in training and in the precision of its recipe."""
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=stage.recipe.mixed_precision):
        return evaluate(ema_model(model.config, weights, device), held_out, texts)


def export(config: ATokenConfig, texts: TextTokenizer | None, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a bf16 model folder, with the files of the text tokenizer."""
    ema_model(config, weights, "cpu").to(torch.bfloat16).save_pretrained(folder)
    if texts is not None:
        texts.save(folder)
