"""From noise to data: lists of sigmas, Euler and Heun, and diffusers' solvers of higher order.

Samplers see a velocity, and know neither networks nor conditions (``generation/guidance.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atoken.errors import AtokenError
from generation.flow import shifted
from generation.guidance import Velocity

ALMOST = 1 - 1e-6  # the largest sigma of those schedulers, which take the logarithm of 1 - sigma
SOLVERS = ("euler", "heun", "unipc", "dpm++")
OnStep = Callable[[int, float, Tensor], Tensor | None]  # number, the sigma reached, the sample; may give another sample


def sigma_steps(steps: int, shift: float = 1.0) -> list[float]:
    """From 1 to 0 in ``steps`` steps, steps + 1 numbers, shifted once (``flow.shifted``).

    LightningDiT's "N steps" are N points: N - 1 steps. Raises: AtokenError.
    """
    if steps < 1 or shift <= 0:
        raise AtokenError(f"Sampling takes at least 1 step and a shift above 0, got {steps} and {shift}.")
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()


@torch.no_grad()
def sample(
    velocity: Velocity, noise: Tensor, sigmas: list[float], solver: str = "euler", on_step: OnStep | None = None
) -> Tensor:
    """The data that noise (B, C, ...) flows to along a list of sigmas, in fp32.

    Raises: AtokenError (a solver that is none of ``SOLVERS``).
    """
    x, step = noise.float(), _step(velocity, sigmas, solver)
    for number, sigma in enumerate(sigmas[1:]):
        x = step(x, number)
        if on_step is not None:
            changed = on_step(number, sigma, x)
            x = x if changed is None else changed.float()
    return x


def _step(velocity: Velocity, sigmas: list[float], solver: str) -> Callable[[Tensor, int], Tensor]:
    """From the sample at a number of the list to that at the next; of multistep solvers, in order and once."""
    if solver not in SOLVERS:
        raise AtokenError(f"There is no solver {solver}; there are {', '.join(SOLVERS)}.")
    if solver in ("unipc", "dpm++"):
        return _scheduled(velocity, sigmas, solver)

    def step(x: Tensor, number: int) -> Tensor:
        here, there = sigmas[number], sigmas[number + 1]
        slope = velocity(x, here).float()
        ahead = x + (there - here) * slope
        if solver == "euler" or not there:  # at sigma 0 a network has not been trained
            return ahead
        return x + (there - here) * (slope + velocity(ahead, there).float()) / 2

    return step


def _scheduled(velocity: Velocity, sigmas: list[float], solver: str) -> Callable[[Tensor, int], Tensor]:
    """A scheduler of diffusers, of order 2, on exactly these sigmas: what it would make of them itself is replaced."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    of_flow: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    scheduler = UniPCMultistepScheduler(**of_flow) if solver == "unipc" else DPMSolverMultistepScheduler(**of_flow)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float32).clamp_max(ALMOST)
    scheduler.set_begin_index(0)

    def step(x: Tensor, number: int) -> Tensor:
        slope = velocity(x, sigmas[number]).float()
        return scheduler.step(slope, scheduler.timesteps[number], x, return_dict=False)[0]

    return step
