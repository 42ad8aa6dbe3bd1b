"""A thing that is nothing of ours and trains in the room: flow matching (Lipman et al. 2023) on points of a plane."""

from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from atoken.train.objective import Group, Objective
from atoken.train.recipe import Recipe

WIDTH = 16
RECIPE = Recipe(steps=12, warmup=2, lr=1e-2, final_lr=1e-3, weight_decay=0.1, ema=0.9, mixed_precision=False)


@dataclass(frozen=True)
class Points:
    task: str  # the shape that they lie on
    rows: torch.Tensor  # (N, 5): a point, the noise that it came from, and how much of that there is
    broken: tuple = ()
    samples: int = 32

    def __len__(self):
        return len(self.rows)

    def to(self, device):
        return Points(self.task, self.rows.to(device), self.broken)


@dataclass(frozen=True)
class Shapes:
    tasks: tuple = (("ring",), ("cross",))  # of the steps, in turn
    not_finite: tuple = ()  # steps in which one micro-batch has a NaN

    def keys(self, step):
        return [(task, step, number) for task in self.tasks[step % len(self.tasks)] for number in (0, 1)]

    def batch(self, key):
        task, step, number = key
        draws = torch.Generator().manual_seed(1000 * step + number)
        turns, sigmas, noise = (
            torch.rand(32, 1, generator=draws),
            torch.rand(32, 1, generator=draws),
            torch.randn(32, 2),
        )
        points = torch.cat([torch.cos(6.2832 * turns), torch.sin(6.2832 * turns)], 1)
        rows = torch.cat([points * (task == "ring" or points.abs() > 0.8), noise.normal_(generator=draws), sigmas], 1)
        return Points(task, rows * (torch.nan if step in self.not_finite and number else 1.0))


class Flow(Objective[Points]):
    """With a branch for each task, a weight used twice, one read outside its module, a scalar, and a frozen one."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.frequencies = nn.Parameter(torch.randn(3, WIDTH))
        self.first, self.second, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.second.weight = self.first.weight
        self.branches = nn.ModuleDict({task: nn.Linear(WIDTH, WIDTH) for task in ("ring", "cross")})
        self.scale = nn.Parameter(torch.tensor(1.0))

    def velocity(self, points, sigmas, task):
        x = self.first(torch.sin(torch.cat([points, sigmas], 1) @ self.frequencies))
        x = self.second(nn.functional.silu(self.branches[task](nn.functional.silu(x))))
        return nn.functional.silu(x) @ (self.last.weight * self.scale).T + self.last.bias

    def forward(self, batch):
        points, noise, sigmas = batch.rows.split([2, 2, 1], 1)
        found = self.velocity(points + sigmas * (noise - points), sigmas, batch.task)
        error = (found - (noise - points)).square().mean()
        return error, {"error": error.detach()}

    def parameter_groups(self):
        names = [name for name, _ in self.named_parameters() if name != "frequencies"]
        first = tuple(name for name in names if name.startswith("first."))
        return [Group(first, lr_scale=0.5), Group(tuple(n for n in names if n not in first), decay=False)]

    def layout(self, batch):
        return len(batch)

    def flops(self, batch):
        return 3 * 2 * len(batch) * WIDTH * (3 + 3 * WIDTH + 2)


@torch.no_grad()
def evaluate(weights):
    """How far from the ring its points lie that Euler's method finds, in the mean, and an image of them."""
    flow, points = Flow(), torch.randn(256, 2, generator=torch.Generator().manual_seed(1))
    flow.load_state_dict(weights, strict=False)  # a weight that is used twice comes once
    for sigma in torch.linspace(1, 0.05, 20):
        points = points - flow.velocity(points, sigma.expand(256, 1), "ring") / 20
    image = np.zeros((64, 64, 3), np.uint8)
    image[tuple((points.clamp(-1.9, 1.9) * 16 + 32).long().T)] = 255
    return {"ring/distance": (points.norm(dim=1) - 1).abs().mean().item()}, image


def export(weights, folder):
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "flow.safetensors")
