"""``python -m generation train``: a generator on the tokens of a store, by the training room."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from atoken.errors import AtokenError
from atoken.store.batches import StoreBatches
from atoken.store.reader import TokenStore
from atoken.train import loop, overrides
from atoken.train.devices import without_denormals
from atoken.train.options import zero_stage
from atoken.train.recipe import Count, Recipe
from atoken.train.record import Started
from generation.asset_training import (
    ASSET_KINDS,
    AssetObjectives,
    asset_batches,
    asset_objective,
    begun,
    save_asset,
)  # fmt: skip
from generation.dit import DiT
from generation.masked_ar import MaskedAR
from generation.mmdit import MMDiT
from generation.objectives import FlowObjective, MaskedObjective, TextFlowObjective
from generation.pipelines.class_to_image import ClassToImagePipeline
from generation.pipelines.text_to_video import TextToVideoPipeline
from generation.presets import sizes
from generation.slat import SlatFlow
from generation.structure import StructureFlow, StructureVAE
from generation.text import load_encoder
from generation.views import AssetBatches

TokenModel = DiT | MaskedAR | MMDiT
Model = TokenModel | StructureVAE | StructureFlow | SlatFlow
Objectives = FlowObjective | MaskedObjective | TextFlowObjective
Save = Callable[[Any, Path], None]  # a model with its final weights, into a folder
M = TypeVar("M", bound=Model)

SHOWN = 16  # images of a grid in the log
GUIDANCE = 4.0  # of pipelines of texts, until validation says more; the paper's is 9, for its own model of 48 channels


@dataclass(frozen=True)
class Training:
    """How a generator is trained.

    samples: of a micro-batch of one grid. tokens: of a packed one of any grids, at most, in its place. micro_batches:
    of a step, over all ranks. texts: encoders of captions, as ``text.load_encoder`` takes them. image: encoder of views
    of assets, as ``vision.load_image_encoder`` takes it, or that of the tokens; image_side: pixels a side of these.
    """

    recipe: Recipe
    samples: Count | None = None
    tokens: Count | None = None
    micro_batches: Count = 1
    texts: tuple[str, ...] = ()
    image: str = ""
    image_side: Count | None = None


# LightningDiT, and TokenBridge with the learning rate that it scales by the batch (generation.md gives both). MMDiT is
# ours: its paper's training is not disclosed.
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
    "mmdit": Training(
        Recipe(
            steps=100_000, warmup=1000, lr=1e-4, final_lr=1e-4, weight_decay=0.0, clip=1.0, ema=0.9999
        ), tokens=16_384, micro_batches=32, texts=("nano",),
    ),
    "mmdit/nano": Training(
        Recipe(steps=6_000, warmup=200, lr=1e-3, final_lr=1e-5, weight_decay=0.01, ema=0.999),
        tokens=2048, texts=("nano",),
    ),
    **dict.fromkeys(("structure-vae", "structure", "slat"), Training(
        Recipe(
            steps=1_000_000, warmup=0, lr=1e-4, final_lr=1e-4, weight_decay=0.0, clip=1.0, ema=0.9999
        ), tokens=65_536, micro_batches=32,
    )),
    "structure-vae/nano": Training(
        Recipe(steps=2_000, warmup=100, lr=2e-3, final_lr=1e-5, weight_decay=0.0, ema=0.99), tokens=12_288
    ),
    "structure/nano": Training(
        Recipe(steps=6_000, warmup=200, lr=1e-3, final_lr=1e-5, weight_decay=0.01, ema=0.999),
        tokens=12_288, image_side=96,
    ),
    "slat/nano": Training(
        Recipe(steps=4_000, warmup=200, lr=1e-3, final_lr=1e-5, weight_decay=0.01, ema=0.999),
        tokens=8_192, image_side=96,
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


def objective_of(kind: str, preset: str, store: TokenStore, how: Training) -> Objectives:
    """A new model for the channels or codes of a store, and its grid and labels or captions, and its loss.

    Raises: AtokenError.
    """
    found, _ = store.alike()
    if kind == "mmdit":
        if not all(one.full for one in found) or not how.texts:
            raise AtokenError(
                f"A generator of texts needs images and videos, and texts=ENCODER; {store.name} has others."
            )
        with torch.device("cpu"):  # also of a plan, whose model is on the meta device
            encoders = [load_encoder(source) for source in how.texts]
        text_to_video = MMDiT(
            **sizes(kind, preset), channels=len(store.statistics.mean), text_widths=tuple(e.width for e in encoders),
            pooled_widths=tuple(e.pooled_width for e in encoders),
        )  # fmt: skip
        text_to_video.gradient_checkpointing = how.recipe.checkpointing
        return TextFlowObjective(text_to_video, encoders)
    grids = {one.grid for one in found}
    if len(grids) != 1 or not found[0].full:
        raise AtokenError(f"{store.name} has several grids; make it with --resize and --crop, or use store[...].")
    *_, rows, columns, _ = found[0].cells
    if rows != columns or not store.labels:
        raise AtokenError(f"A generator of classes needs square images with labels; {store.name} has others.")
    size, classes = sizes(kind, preset), len(store.labels)
    if kind == "dit":
        model = DiT(side=rows, channels=len(store.statistics.mean), classes=classes, **size)
        model.gradient_checkpointing = how.recipe.checkpointing
        return FlowObjective(model)
    if store.levels is None or tuple(size["fsq_levels"] or ()) != tuple(store.levels):
        raise AtokenError(
            f"The preset {preset} is of codes of levels {size['fsq_levels']}; {store.name} has {store.levels}."
        )
    if how.recipe.checkpointing:
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
    return StoreBatches(
        store, how.recipe.seed, samples=how.samples, tokens=how.tokens, micro_batches=how.micro_batches,
        captions=bool(how.texts),
    )  # fmt: skip


def prepared(
    kind: str, preset: str, store: TokenStore, how: Training, ranks: int, *, start: Path | None = None,
    views: Path | None = None,
) -> tuple[Objectives | AssetObjectives, StoreBatches | AssetBatches, Save]:  # fmt: skip
    """What is trained, on which batches, and how its pipeline is written. Raises: AtokenError.

    start: of assets, the pipeline that is added to. views: of assets, as ``generation/views.py`` has them.
    """
    source = batches_of(store, how, ranks)
    if kind in ASSET_KINDS:
        with torch.device("cpu"):  # also of a plan, whose model is on the meta device
            pipeline = begun(store, how.image, how.image_side, start)
        objective = asset_objective(
            kind, sizes(kind, preset), store, pipeline, checkpointing=how.recipe.checkpointing
        )  # fmt: skip
        return objective, asset_batches(kind, source, views, pipeline), partial(save_asset, kind, pipeline, store)

    def save(model: TokenModel, folder: Path) -> None:
        pipeline_of(model.to(torch.bfloat16), store, how.texts).save_pretrained(folder)

    return objective_of(kind, preset, store, how), source, save


def train(
    kind: str, preset: str, store: TokenStore, folder: Path, how: Training, *, device: str = "cpu", workers: int = 1,
    zero: int | None = None, evaluate_every: int = 0, start: Path | None = None, views: Path | None = None,
) -> Path:  # fmt: skip
    """Train, or go on, in ``folder``; the folder of the pipeline that is written.

    start: a pipeline whose weights a new run begins with, such as one of videos with those of one of images; of assets
    as in ``prepared``, with ``views``. evaluate_every: steps between two squares of samples, which assets have not.
    zero: None is ZeRO-1 where a launcher started several processes, and the plain engine in one alone.
    Raises: as ``loop.run``.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(how.recipe.seed)
    objective, source, save = prepared(kind, preset, store, how, ranks, start=start, views=views)
    model: Any = objective.model
    if start is not None and kind not in ASSET_KINDS:
        _begin_with(model, start)
    values = {
        "generator": {"kind": kind, "preset": preset, **{k: v for k, v in asdict(how).items() if k != "recipe"}},
        "store": {"model": store.model, "fingerprint": store.fingerprint, "items": len(store)},
    }
    with without_denormals():
        return loop.run(
            objective, how.recipe, source, folder, export=partial(export, model, save),
            evaluate=partial(shown, model, store, how.texts) if evaluate_every and kind not in ASSET_KINDS else None,
            started=Started(values, fixed=("generator.", "store."), start=start), device=device, workers=workers,
            zero=zero_stage(zero), evaluate_every=evaluate_every,
        )  # fmt: skip


def _begin_with(model: TokenModel, start: Path) -> None:
    """Raises: AtokenError (weights of a model of other sizes)."""
    try:
        model.load_state_dict(type(model).from_pretrained(start, subfolder="transformer").state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AtokenError(f"{start} holds no pipeline to begin with for this kind and preset: {reason}") from error


def pipeline_of(
    model: TokenModel, store: TokenStore, texts: Sequence[str]
) -> ClassToImagePipeline | TextToVideoPipeline:
    """A pipeline of a model that was trained on a store, with these text encoders."""
    if isinstance(model, MMDiT):
        longest = max(store.alike()[0], key=lambda one: (one.frames, -one.tokens))
        return TextToVideoPipeline(
            model, texts, (longest.frames, *longest.size), GUIDANCE, store.model, store.fingerprint,
            store.statistics.mean, store.statistics.std,
        )  # fmt: skip
    flow = isinstance(model, DiT)
    return ClassToImagePipeline(
        model, store.labels, store.model, store.fingerprint,
        store.statistics.mean if flow else (), store.statistics.std if flow else (),
    )  # fmt: skip


def with_weights(model: M, weights: Mapping[str, Tensor]) -> M:
    """A model of its own with the weights that an objective has under the name ``model``, in eval mode."""
    own = type(model).from_config(model.config)
    own.load_state_dict(own.state_dict() | {name.removeprefix("model."): value for name, value in weights.items()})
    return own.eval()


def export(model: Model, save: Save, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a pipeline in bf16."""
    save(with_weights(model, weights), folder)


def shown(
    model: TokenModel, store: TokenStore, texts: Sequence[str], weights: Mapping[str, Tensor]
) -> tuple[dict[str, float], np.ndarray]:
    """A square of images of labels, or last frames of captions, as (H, W, 3) uint8; there are no numbers."""
    pipeline = pipeline_of(with_weights(model, weights).to(next(model.parameters()).device), store, texts)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(number) for number in range(SHOWN)]
    options: dict[str, Any] = {"num_inference_steps": 25, "generator": generators, "output_type": "np"}
    if isinstance(pipeline, TextToVideoPipeline):
        some = store[[number * len(store) // SHOWN for number in range(SHOWN)]].column("captions").to_pylist()
        images = pipeline([captions[0] if captions else "" for captions in some], **options).frames[:, -1]
    else:
        labels = [number * len(store.labels) // SHOWN for number in range(SHOWN)]
        images = pipeline(labels, guidance_scale=2.0, **options).images
    side = round(SHOWN**0.5)
    rows = np.concatenate(np.concatenate(images.reshape(side, side, *images.shape[1:]), 1), 1)
    return {}, np.rint(rows * 255).astype(np.uint8)
