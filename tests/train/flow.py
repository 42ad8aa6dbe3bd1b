"""Flow matching (Lipman et al. 2023) on points of a plane: ``atoken.train`` trains more than tokenizers."""

from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from torch import nn

from atoken.train.objective import Group, Objective
from atoken.train.recipe import Recipe

RECIPE = Recipe(steps=12, warmup=2, lr=1e-2, final_lr=1e-3, weight_decay=0.1, ema=0.9, mixed_precision=False)


@dataclass(frozen=True)
class Points:
    task: str  # the shape that they lie on
    rows: torch.Tensor  # (32, 5): a point, the noise that it came from, and how much of that there is
    broken: tuple = ()
    samples: int = 32

    def __len__(self):
        return len(self.rows)

    def to(self, device):
        return Points(self.task, self.rows.to(device), self.broken)


@dataclass(frozen=True)
class Shapes:
    tasks: tuple = (("ring",), ("cross",))  # of the steps, in turn
    not_finite: tuple = ()  # steps in which a micro-batch has a NaN

    def keys(self, step):
        return [(task, step, number) for task in self.tasks[step % len(self.tasks)] for number in (0, 1)]

    def batch(self, key):
        task, step, number = key
        draws = torch.Generator().manual_seed(1000 * step + number)
        (turns, sigmas), noise = torch.rand(2, 32, 1, generator=draws), torch.randn(32, 2, generator=draws)
        points = torch.cat([torch.cos(6.2832 * turns), torch.sin(6.2832 * turns)], 1)
        rows = torch.cat([points * (points.abs() > (0.8 if task == "cross" else 0)), noise, sigmas], 1)
        return Points(task, rows * (torch.nan if step in self.not_finite and number else 1.0))


class Flow(Objective[Points]):
    """With a branch for each task, a weight used twice, one read outside its module, a scalar, and a frozen one."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.frequencies, self.scale = nn.Parameter(torch.randn(3, 16)), nn.Parameter(torch.tensor(1.0))
        self.first, self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.second.weight = self.first.weight
        self.branches = nn.ModuleDict({task: nn.Linear(16, 16) for task in ("ring", "cross")})

    def velocity(self, points, sigmas, task):
        x = self.first(torch.sin(torch.cat([points, sigmas], 1) @ self.frequencies))
        x = self.second(nn.functional.silu(self.branches[task](nn.functional.silu(x))))
        return nn.functional.silu(x) @ (self.last.weight * self.scale).T + self.last.bias

    def forward(self, batch):
        points, noise, sigmas = batch.rows.split([2, 2, 1], 1)
        error = (self.velocity(points + sigmas * (noise - points), sigmas, batch.task) - noise + points).square().mean()
        return error, {"error": error.detach()}

    def parameter_groups(self):
        matrices = ("first.weight", *(f"branches.{task}.weight" for task in self.branches))
        rest = tuple(n for n, _ in self.named_parameters() if n not in matrices and n != "frequencies")
        return [Group(matrices, lr_scale=0.5, muon=True), Group(rest, decay=False)]

    def layout(self, batch):
        return len(batch)

    def flops(self, batch):
        return 3 * 2 * len(batch) * 16 * (3 + 3 * 16 + 2)


def export(weights, folder):
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "flow.safetensors")
