"""What a stage will take, before anything is loaded.

Sizes of samples are those of its own first micro-batches (``packing.py``); real images nearly fill their budgets.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from atoken.presets import preset
from atoken.pretrain.batches import Batch, check_shares
from atoken.pretrain.cost import Network, flops, grids, reads
from atoken.pretrain.packing import budgets
from atoken.pretrain.stages import Stage, Term
from atoken.tokens import SparseTokens
from atoken.train.cost import Load, Plan, activations, parameters

MICRO_BATCHES = 8  # of each task that are looked at


def plan(stage: Stage, **options: Any) -> Plan:
    """The plan of a stage. options: ``gpus``, ``gpu`` and ``mfu`` of ``Plan``. Raises: AtokenError."""
    check_shares(stage, max(1, options.get("gpus", 1)))
    config, frozen, recipe = preset(stage.preset), stage.frozen, stage.recipe
    loads, kept, seen = {}, [], defaultdict[frozenset[str], list[Batch]](list)
    for name, task in stage.used.items():
        batches = [_batch(stage, name, number) for number in range(MICRO_BATCHES)]
        costs = [flops(config, frozen, reads(task), batch.tokens) for batch in batches]
        share = 1.0 if name in stage.auxiliary else stage.mixture[name] / sum(stage.mixture.values())
        load = Load.of(batches, costs, share, task.micro_batches)
        loads[name] = load if recipe.checkpointing else load._replace(recomputed=0)
        seen[reads(task)] += batches
    for read, batches in seen.items():
        largest = max(batches, key=len).tokens
        network = Network(config, frozen, read).to(largest.feats.dtype)
        kept.append(activations(network, largest, network.blocks() if recipe.checkpointing else ()))
    facts = {
        "stage": f"{stage.name}, of preset {stage.preset}",
        "starts from": "what --start names, or anew" if stage.start_from is None else f"stage {stage.start_from}",
        "teachers": ", ".join(sorted(stage.teachers)) or "none",
        "encoder": f"learns at {stage.encoder_lr:g} of the rates",
    }
    losses = [f"loss of {name}: {' + '.join(map(_term, task.terms))}" for name, task in stage.used.items()]
    return Plan(
        recipe, loads, *parameters(network), max(kept), **options, facts=facts,
        labels={"modality": {name: task.modality for name, task in stage.used.items()}},
        remarks=[*losses, "not counted: teachers, the text side, losses and drawing"],
    )  # fmt: skip


def _batch(stage: Stage, name: str, number: int) -> Batch:
    task, config = stage.tasks[name], preset(stage.preset)
    shapes = [(budget.length, budget.patches, 1) for budget in budgets(task, stage.recipe.seed, name, number)]
    values = config.patch_values if task.modality == "video" else config.frame_values
    tokens = grids(shapes, values, torch.bfloat16 if stage.recipe.mixed_precision else torch.float32)
    if task.modality == "surface":  # a sheet of voxels
        t_N, voxel_N, _, _ = tokens.coords.unbind(1)
        coords_N4 = torch.stack([t_N, voxel_N // 64 % 64, voxel_N % 64, voxel_N // 64**2], 1)
        tokens = SparseTokens(tokens.feats, coords_N4, tokens.lengths)
    return Batch(name, tokens, samples=len(shapes))


def _term(term: Term) -> str:
    return f"{term.weight:g} {term.fn.__name__}" + (f" (teacher {term.teacher})" if term.teacher else "")
