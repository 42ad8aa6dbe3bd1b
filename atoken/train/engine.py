"""The plain engine: one process, AdamW or Muon, autocast, clipping, EMA; what any other engine must equal.

Its whole state is tensors and integers, kept as safetensors and JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from atoken.errors import AtokenError
from atoken.train.objective import Batch, Objective
from atoken.train.optimisers import MOMENT_OF_MUON, MOMENTS, optimisers
from atoken.train.recipe import Recipe
from atoken.train.run_folder import RunFolder

PATIENCE = 10  # steps skipped one after another that end the run


class PlainEngine:
    """Holds the fp32 weights, the optimisers and the EMA of one run.

    A parameter that a step does not use has a gradient of zero there, not none: its momentum goes on and its matrix
    decays, as they must where weights are sharded. An objective freezes what it never uses.
    """

    rank, world = 0, 1

    def __init__(self, objective: Objective[Any], recipe: Recipe, device: str) -> None:
        groups = objective.parameter_groups()
        trained = {name for group in groups for name in group.names}
        self.objective = objective.to(device).train()
        self.recipe, self.device = recipe, device
        self.step = 0  # steps seen
        self.applied = 0  # steps taken; a step with a gradient that is not finite is skipped
        self.skipped_in_a_row = 0
        for name, parameter in objective.named_parameters():
            parameter.requires_grad_(name in trained)
        self.parameters = {name: p for name, p in objective.named_parameters() if name in trained}
        self.owners = optimisers(groups, self.parameters, recipe)
        self.optimisers = list(dict.fromkeys(self.owners.values()))
        self.masters = self._masters()  # the trained weights in fp32, by name
        self.ema = {name: master.detach().clone() for name, master in self.masters.items()}

    @property
    def skipped(self) -> int:
        """Steps whose gradient was not finite."""
        return self.step - self.applied

    def _masters(self) -> dict[str, Tensor]:
        return dict(self.parameters)

    def train(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One step on its micro-batches: the sum over tasks of the mean over the micro-batches of each.

        Returns the loss, by task the loss and its named terms (``task/term``), the gradient's norm and the learning
        rate. Raises: AtokenError when ``PATIENCE`` steps in a row had to be skipped.
        """
        rate = self.recipe.learning_rate(self.step)
        for group in chain.from_iterable(optimiser.param_groups for optimiser in self.optimisers):
            group["lr"] = rate * group["lr_scale"]
        rows, counts = [], Counter(batch.task for batch in batches)
        for number, batch in enumerate(batches, 1):
            share = 1 / counts[batch.task]
            loss, terms = self._backward(batch.to(self.device), share, last=number == len(batches))
            named = {**terms, "loss": loss.detach()}
            rows.append({f"{batch.task}/{name}": value for name, value in named.items()})
        norm = self._update()
        self._count(math.isfinite(norm))
        means = self._means(rows)
        return {**means, "loss": sum(means[f"{task}/loss"] for task in counts), "norm": norm, "lr": rate}

    def _backward(self, batch: Batch, share: float, *, last: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Add ``share`` of a micro-batch's gradient to that of the step."""
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.recipe.mixed_precision):
            loss, terms = self.objective(batch)
        (loss * share).backward()
        return loss, terms

    def _update(self) -> float:
        """Apply the step's gradient, clipped, if its norm is finite. Returns the norm."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip or math.inf)
        if torch.isfinite(norm):
            for optimiser in self.optimisers:
                optimiser.step()
        self.objective.zero_grad(set_to_none=True)
        return norm.item()

    @torch.no_grad()
    def _count(self, applied: bool) -> None:
        self.step += 1
        if applied:
            self.applied, self.skipped_in_a_row = self.applied + 1, 0
            decay = min(self.recipe.ema, (1 + self.applied) / (10 + self.applied))
            torch._foreach_lerp_(list(self.ema.values()), list(self.masters.values()), 1 - decay)
            return
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == PATIENCE:
            raise AtokenError(
                f"The gradient was not finite {PATIENCE} steps in a row, last at step {self.step - 1}; go back to a "
                "checkpoint and lower the learning rate, or look in the log for the term that is not finite."
            )

    def _means(self, rows: list[dict[str, Tensor]]) -> dict[str, float]:
        names = list(dict.fromkeys(chain.from_iterable(rows)))
        means = [torch.stack([row[name].float() for row in rows if name in row]).mean() for name in names]
        return dict(zip(names, self._over_ranks(torch.stack(means)).tolist(), strict=True))

    def _over_ranks(self, means: Tensor) -> Tensor:
        return means

    def total(self, numbers: Sequence[int]) -> list[int]:
        """Sums over ranks, the same answer on all."""
        return list(numbers)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs, as tensors and as plain numbers."""
        parts = {"weights": self._frozen() | self._gathered(self.masters), "ema": self._gathered(self.ema)}
        for key in MOMENTS:
            held = {name: self.owners[name].state.get(master, {}) for name, master in self.masters.items()}
            parts[key] = self._gathered({name: moments[key] for name, moments in held.items() if key in moments})
        tensors = {f"{key}/{name}": value for key, part in parts.items() for name, value in part.items()}
        return tensors, {"step": self.step, "applied": self.applied}

    def save(self, run_folder: RunFolder) -> None:
        """Write a checkpoint. Raises: CheckpointError."""
        run_folder.save(*self.state())

    def ema_weights(self) -> dict[str, Tensor]:
        """All parameters by name, those that are trained as their EMA: what is evaluated and exported."""
        return self._frozen() | self._gathered(self.ema)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take up a state that ``state`` gave, of this engine or another.

        What was frozen there and is trained here begins with its weights as EMA, and without momentum.
        """
        self.step, self.applied, self.skipped_in_a_row = numbers["step"], numbers["applied"], 0
        weights = {name: tensors[f"weights/{name}"] for name, _ in self.objective.named_parameters()}
        ema = {name: tensors.get(f"ema/{name}", weights[name]) for name in self.parameters}
        self.ema |= self._scattered(ema)
        for key in MOMENTS:
            names = [name for name in self.parameters if self._is_updated_by_muon(name) == (key == MOMENT_OF_MUON)]
            held = {name: tensors[f"{key}/{name}"] for name in names if f"{key}/{name}" in tensors}
            fresh = {name: torch.zeros_like(weights[name]) for name in names if held and name not in held}
            for name, value in self._scattered(held | fresh).items():
                # Every parameter moves in every step that is applied.
                count = torch.tensor(float(self.applied), device=value.device)
                self.owners[name].state[self.masters[name]].update({"step": count, key: value})
        self._load(weights)

    def _is_updated_by_muon(self, name: str) -> bool:
        return isinstance(self.owners.get(name), torch.optim.Muon)

    def _frozen(self) -> dict[str, Tensor]:
        named = self.objective.named_parameters()
        return {name: p.detach() for name, p in named if name not in self.parameters}

    def _gathered(self, shards: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors by the names of their parameters, of something that is shaped and sharded as the masters."""
        return {name: value.detach() for name, value in shards.items()}

    def _scattered(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """The way back from ``_gathered``; the weights must be loaded afterwards."""
        return {name: value.to(self.device, copy=True) for name, value in whole.items()}

    def _load(self, whole: dict[str, Tensor]) -> None:
        """Set parameters by name."""
        for name, parameter in self.objective.named_parameters():
            if name in whole:
                parameter.copy_(whole[name])
