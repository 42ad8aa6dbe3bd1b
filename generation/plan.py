"""What training a generator will take, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from atoken.store.reader import TokenStore
from atoken.train.cost import Load, Plan, activations, parameters
from generation.training import Training, prepared

MICRO_BATCHES = 8  # that are looked at


def plan(
    kind: str, preset: str, store: TokenStore, how: Training, start: Path | None = None, views: Path | None = None,
    **options: Any,
) -> Plan:  # fmt: skip
    """The plan of a training. options: ``gpus``, ``gpu`` and ``mfu`` of ``Plan``. Raises: as ``training.train``."""
    ranks = max(1, options.get("gpus", 1))
    with torch.device("meta"):
        objective, source, _ = prepared(kind, preset, store, how, ranks, start=start, views=views)
    batches = [source.batch(key) for key in range(MICRO_BATCHES)]
    load = Load.of(batches, [objective.counted(batch) for batch in batches], micro_batches=how.micro_batches)
    twin, batch = objective.on_meta(batches[0])
    checkpointed = how.recipe.checkpointing
    return Plan(
        how.recipe, {batches[0].task: load if checkpointed else load._replace(recomputed=0)},
        *parameters(objective), activations(twin, batch, twin.blocks if checkpointed else ()), **options,
        facts={
            "generator": f"{kind} {preset}, {len(store.labels)} labels",
            "store": f"{len(store):,} items by {store.model}, {len(batches[0]) // batches[0].samples} tokens each",
            "epochs": f"{how.recipe.steps / source.steps_per_epoch:,.1f}",
        },
    )  # fmt: skip
