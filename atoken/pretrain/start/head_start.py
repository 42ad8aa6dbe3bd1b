"""The head between pooled vectors and EfficientNet's features, where a stage begins: the best linear one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.pretrain.batches import batch
from atoken.pretrain.datasets import TaskDataset
from atoken.pretrain.losses import Step
from atoken.pretrain.objective import Objective
from atoken.pretrain.start.begin import MICRO_BATCHES

RIDGE = 1e-4  # of each sample, beside unit vectors


@torch.no_grad()
def head_start(objective: Objective, datasets: Mapping[str, TaskDataset]) -> None:
    """Fit the head by ridge regression on the first images of the tasks that distil; nothing where there is none.

    A random one would push the encoder away from what it knows until the head has learned.
    """
    if objective.head is None:
        return
    stage = objective.stage
    names = [name for name, task in stage.used.items() if "efficientnet" in task.teachers]
    found = []
    for number in range(MICRO_BATCHES):
        made = batch(stage, datasets, names[number % len(names)], number)
        step = Step(objective.model, made.tokens, teachers=objective.teachers)
        found.append((F.pad(step.visual_BE, (0, 1), value=1.0), step.efficientnet_BE))
    inputs_BE, target_BE = (torch.cat(part).double() for part in zip(*found, strict=True))
    penalty = RIDGE * len(inputs_BE) * torch.eye(inputs_BE.shape[1], dtype=torch.float64)
    solved_EE = torch.linalg.solve(inputs_BE.mT @ inputs_BE + penalty, inputs_BE.mT @ target_BE)
    objective.head.weight.copy_(solved_EE[:-1].mT)
    objective.head.bias.copy_(solved_EE[-1])
