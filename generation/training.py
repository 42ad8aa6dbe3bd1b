"""``python -m generation train``: a generator on the tokens of a store, by the training room."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atoken.errors import AtokenError
from atoken.store.batches import StoreBatches
from atoken.store.reader import TokenStore
from atoken.train import loop, overrides
from atoken.train.devices import without_denormals
from atoken.train.recipe import Count, Recipe
from atoken.train.record import Started
from generation.dit import DiT
from generation.masked_ar import MaskedAR
from generation.objectives import FlowObjective, MaskedObjective
from generation.pipelines.class_to_image import ClassToImagePipeline
from generation.presets import sizes

SHOWN = 16  # images of a grid in the log


@dataclass(frozen=True)
class Training:
    """How a generator is trained. ``samples``: of a micro-batch; ``micro_batches``: of a step, over all ranks."""

    recipe: Recipe
    samples: Count
    micro_batches: Count = 1


# LightningDiT, and TokenBridge with the learning rate that it scales by the batch (generation.md gives both).
TRAININGS = {
    "dit": Training(
        Recipe(
            steps=80_000, warmup=0, lr=2e-4, final_lr=2e-4, weight_decay=0.0, clip=1.0, ema=0.9999
        ), samples=32, micro_batches=32,
    ),
    "tokenbridge": Training(
        Recipe(
            steps=250_000, warmup=62_500, lr=4e-4, final_lr=0.0, weight_decay=0.02, clip=3.0, ema=0.9999
        ), samples=64, micro_batches=32,
    ),
    "dit/nano": Training(
        Recipe(steps=8_500, warmup=200, lr=1e-3, final_lr=1e-5, weight_decay=0.01, ema=0.999), samples=64
    ),
    "tokenbridge/nano": Training(
        Recipe(steps=8_000, warmup=200, lr=1e-3, final_lr=1e-5, weight_decay=0.02, ema=0.999), samples=16
    ),
}  # fmt: skip


def training(kind: str, preset: str, changes: Sequence[str]) -> Training:
    """That of a kind and preset, with what the user changes, ``key=value``. Raises: AtokenError."""
    found = TRAININGS.get(f"{kind}/{preset}", TRAININGS[kind])
    for change in changes:
        key, value = overrides.split(change)
        found = overrides.changed(found, key.split("."), value, key)
    return found


def objective_of(kind: str, preset: str, store: TokenStore, recipe: Recipe) -> FlowObjective | MaskedObjective:
    """A new model for the grid, channels or codes, and labels of a store, and its loss. Raises: AtokenError."""
    found, _ = store.alike()
    grids = {one.grid for one in found}
    if len(grids) != 1 or not found[0].full:
        raise AtokenError(f"{store.name} has several grids; make it with --resize and --crop, or use store[...].")
    *_, rows, columns, _ = found[0].cells
    if rows != columns or not store.labels:
        raise AtokenError(f"A generator of classes needs square images with labels; {store.name} has others.")
    size, classes = sizes(kind, preset), len(store.labels)
    if kind == "dit":
        model = DiT(side=rows, channels=len(store.statistics.mean), classes=classes, **size)
        model.gradient_checkpointing = recipe.checkpointing
        return FlowObjective(model)
    if store.levels is None or tuple(size["fsq_levels"] or ()) != tuple(store.levels):
        raise AtokenError(
            f"The preset {preset} is of codes of levels {size['fsq_levels']}; {store.name} has {store.levels}."
        )
    if recipe.checkpointing:
        raise AtokenError("A masked model keeps its activations for the gradient; leave checkpointing=true out.")
    return MaskedObjective(MaskedAR(side=rows, classes=classes, **size))


def batches_of(store: TokenStore, how: Training, ranks: int) -> StoreBatches:
    """The source of a run on so many ranks. Raises: AtokenError (they cannot share out its micro-batches)."""
    if how.micro_batches % ranks:
        enough = -(-how.micro_batches // ranks) * ranks
        raise AtokenError(
            f"The {how.micro_batches} micro-batches of a step cannot be shared out evenly to {ranks} ranks; set a "
            f"multiple of {ranks}, such as --set micro_batches={enough}."
        )
    return StoreBatches(store, how.recipe.seed, samples=how.samples, micro_batches=how.micro_batches)


def train(
    kind: str, preset: str, store: TokenStore, folder: Path, how: Training, *, device: str = "cpu", workers: int = 1,
    zero: int | None = None, evaluate_every: int = 0,
) -> Path:  # fmt: skip
    """Train, or go on, in ``folder``; the folder of the pipeline that is written.

    zero: None is ZeRO-1 where a launcher started several processes, and the plain engine in one alone.
    Raises: as ``loop.run``.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    source = batches_of(store, how, ranks)
    torch.manual_seed(how.recipe.seed)
    objective = objective_of(kind, preset, store, how.recipe)
    model = objective.model
    values = {
        "generator": {"kind": kind, "preset": preset, **{k: v for k, v in asdict(how).items() if k != "recipe"}},
        "store": {"model": store.model, "fingerprint": store.fingerprint, "items": len(store)},
    }
    with without_denormals():
        return loop.run(
            objective, how.recipe, source, folder, export=partial(export, model, store),
            evaluate=partial(shown, model, store) if evaluate_every else None,
            started=Started(values, fixed=("generator.", "store.")), device=device, workers=workers,
            zero=1 if zero is None and ranks > 1 else zero, evaluate_every=evaluate_every,
        )  # fmt: skip


def pipeline_of(model: DiT | MaskedAR, store: TokenStore) -> ClassToImagePipeline:
    """A pipeline of a model that was trained on a store."""
    flow = isinstance(model, DiT)
    return ClassToImagePipeline(
        model, store.labels, store.model, store.fingerprint,
        store.statistics.mean if flow else (), store.statistics.std if flow else (),
    )  # fmt: skip


def with_weights(model: DiT | MaskedAR, weights: Mapping[str, Tensor]) -> DiT | MaskedAR:
    """A model of its own with the weights that an objective has under the name ``model``, in eval mode."""
    own = type(model).from_config(model.config)
    own.load_state_dict(own.state_dict() | {name.removeprefix("model."): value for name, value in weights.items()})
    return own.eval()


def export(model: DiT | MaskedAR, store: TokenStore, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a pipeline in bf16."""
    pipeline_of(with_weights(model, weights).to(torch.bfloat16), store).save_pretrained(folder)


def shown(
    model: DiT | MaskedAR, store: TokenStore, weights: Mapping[str, Tensor]
) -> tuple[dict[str, float], np.ndarray]:
    """A square of images of the first labels, as (H, W, 3) uint8; there are no numbers."""
    pipeline = pipeline_of(with_weights(model, weights).to(next(model.parameters()).device), store)
    pipeline.set_progress_bar_config(disable=True)
    labels = [number * len(store.labels) // SHOWN for number in range(SHOWN)]
    generators = [torch.Generator().manual_seed(number) for number in range(SHOWN)]
    images = pipeline(labels, num_inference_steps=25, guidance_scale=2.0, generator=generators, output_type="np").images
    side = round(SHOWN**0.5)
    rows = np.concatenate(np.concatenate(images.reshape(side, side, *images.shape[1:]), 1), 1)
    return {}, np.rint(rows * 255).astype(np.uint8)
