"""The optimisers of a recipe: AdamW, and Muon for the matrices that it may update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from atoken.train.objective import Group
from atoken.train.recipe import Recipe

MOMENT_OF_MUON = "momentum_buffer"
MOMENTS = ("exp_avg", "exp_avg_sq", MOMENT_OF_MUON)  # that the optimisers keep of a parameter


def optimisers(groups: Sequence[Group], parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> dict[str, Optimizer]:
    """The optimiser of each trained parameter by its name; one or two are shared by all."""
    found: dict[str, Optimizer] = {}
    for muon in (False, True):
        chosen = [group for group in groups if (group.muon and recipe.muon > 0) == muon]
        options: list[Any] = [
            {
                "params": [parameters[name] for name in group.names],
                "lr_scale": group.lr_scale * (recipe.muon if muon else 1.0),
                "weight_decay": recipe.weight_decay if group.decay else 0.0,
            }
            for group in chosen
        ]
        if not options:
            continue
        optimiser: Optimizer = (
            Muon(options, lr=recipe.lr) if muon else AdamW(options, lr=recipe.lr, betas=recipe.betas, fused=True)
        )
        found |= dict.fromkeys((name for group in chosen for name in group.names), optimiser)
    return found
