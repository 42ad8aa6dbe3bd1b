"""What the training of assets is made of: a pipeline that grows, models for a store, and the views beside it.

``structure-vae`` begins a pipeline, ``structure`` and ``slat`` add to the one that they start from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atoken.errors import AtokenError
from atoken.store.batches import StoreBatches
from atoken.store.reader import TokenStore
from generation.assets import SlatObjective, StructureObjective, StructureVAEObjective, structure_statistics
from generation.pipelines.image_to_3d import ImageTo3DPipeline
from generation.slat import SlatFlow
from generation.structure import StructureFlow, StructureVAE, occupancy
from generation.views import AssetBatches

ASSET_KINDS = {"structure-vae": "vae", "structure": "structure", "slat": "slat"}  # and what each is in the pipeline
AssetObjectives = StructureVAEObjective | StructureObjective | SlatObjective
MEASURED = 256  # assets whose latents give the statistics of an autoencoder


def begun(store: TokenStore, image: str, side: int | None, start: Path | None) -> ImageTo3DPipeline:
    """The pipeline that a training adds to: that of ``start``, or an empty one for tokens of a store.

    image, side: the encoder of images of a new one, and the side of what it sees. Raises: AtokenError.
    """
    if start is None:
        return ImageTo3DPipeline(
            tokenizer=store.model, fingerprint=store.fingerprint, condition=image, condition_side=side
        )
    try:
        pipeline = ImageTo3DPipeline.from_pretrained(start)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AtokenError(f"{start} holds no pipeline of assets to start from: {reason}") from error
    if pipeline.config.fingerprint != store.fingerprint:
        raise AtokenError(f"{start} is of tokens of another model than {store.name}.")
    return pipeline


def asset_objective(
    kind: str, size: Mapping[str, Any], store: TokenStore, pipeline: ImageTo3DPipeline, *, checkpointing: bool
) -> AssetObjectives:
    """A new model for the assets of a store, and its loss. Raises: AtokenError."""
    found, _ = store.alike()
    if {one.modality for one in found} != {"asset"} or store.levels is not None:
        raise AtokenError(f"A generator of assets needs continuous tokens of assets alone; {store.name} has others.")
    sides = {one.size[0] for one in found}
    if len(sides) != 1:
        named = ", ".join(map(str, sorted(sides)))
        raise AtokenError(f"{store.name} has grids of {named} voxels a side; make it with one, such as --voxels 32.")
    if kind == "structure-vae":
        return StructureVAEObjective(StructureVAE(side=sides.pop(), **size))
    with torch.device("cpu"):  # also of a plan, whose model is on the meta device
        encoder = pipeline.encoder
    if kind == "slat":
        slat = SlatFlow(channels=len(store.statistics.mean), condition=encoder.width, **size)
        slat.trunk.gradient_checkpointing = checkpointing
        return SlatObjective(slat, encoder)
    if (vae := pipeline.vae) is None or vae.config.side not in sides:
        raise AtokenError("Training structure takes --start FOLDER of a structure-vae run on a grid of the same side.")
    flow = StructureFlow(
        side=vae.latents_side, channels=vae.config.latents, condition=encoder.width, **size
    )  # fmt: skip
    flow.trunk.gradient_checkpointing = checkpointing
    return StructureObjective(flow, encoder, vae)


def asset_batches(
    kind: str, source: StoreBatches, views: Path | None, pipeline: ImageTo3DPipeline
) -> StoreBatches | AssetBatches:
    """Batches of the store, with images where a training needs them. Raises: AtokenError (there are none)."""
    if kind == "structure-vae":
        return source
    if views is None or not views.is_dir():
        raise AtokenError(f"Training {kind} takes --views FOLDER, which python -m generation views makes.")
    return AssetBatches(source, views, pipeline.encoder.side)


def save_asset(kind: str, pipeline: ImageTo3DPipeline, store: TokenStore, model: nn.Module, folder: Path) -> None:
    """Write the pipeline with a trained model, all of it in bf16."""
    if isinstance(model, StructureVAE):
        rows = range(0, len(store), -(-len(store) // MEASURED))
        grids = (occupancy(store.packed([row]), model.config.side) for row in rows)
        mean, std = structure_statistics(model, grids)
        model.register_to_config(latents_mean=mean, latents_std=std)
    if isinstance(model, SlatFlow):
        pipeline.register_to_config(
            latents_mean=list(store.statistics.mean), latents_std=list(store.statistics.std)
        )  # fmt: skip
    pipeline.register_modules(**{ASSET_KINDS[kind]: model})
    pipeline.to(torch.bfloat16).save_pretrained(folder)
