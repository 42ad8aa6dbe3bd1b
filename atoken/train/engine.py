"""The plain engine: one process, AdamW or Muon, autocast, clipping, EMA; what any other engine must equal.

Its whole state is tensors and integers, kept as safetensors and JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Muon

from atoken.errors import AtokenError
from atoken.train.checkpoints import Checkpoint, Checkpoints
from atoken.train.objective import Batch, Objective
from atoken.train.optimisers import MOMENT_OF_MUON, MOMENTS, optimisers
from atoken.train.recipe import Recipe

PATIENCE = 10  # steps skipped one after another that end the run


class Piece(NamedTuple):
    """What this process holds of a parameter: ``size`` numbers from ``start`` on, in ``master`` from ``at`` on."""

    master: str
    at: int
    start: int
    size: int


class PlainEngine:
    """Holds the fp32 weights, the optimisers and the EMA of one run.

    A parameter that a step does not use has a gradient of zero there, not none: its momentum goes on and its matrix
    decays, as they must where weights are sharded. An objective freezes what it never uses.
    """

    rank, world = 0, 1

    def __init__(self, objective: Objective[Any], recipe: Recipe, device: str, saved: Checkpoint | None = None) -> None:
        """``saved``: what to resume from, whichever engine wrote it. Raises: CheckpointError where it does not fit."""
        if saved:
            saved.fill(objective)
        groups = objective.parameter_groups()
        frozen = objective.frozen().keys()
        self.objective = objective.to(device).train()
        self.recipe, self.device = recipe, device
        self.step = 0  # steps seen
        self.applied = 0  # steps taken; a step with a gradient that is not finite is skipped
        self.skipped_in_a_row = 0
        for name, parameter in objective.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.parameters = {name: p for name, p in objective.named_parameters() if name not in frozen}
        self.owners = optimisers(groups, self.parameters, recipe)
        self.optimisers = list(dict.fromkeys(self.owners.values()))
        self.masters = self._masters()  # the trained weights in fp32, by name
        self.pieces = self._pieces()  # of each trained parameter, by name, that this process holds some of
        self.ema = {name: master.detach().clone() for name, master in self.masters.items()}
        if saved:
            self._resume(saved)

    @property
    def skipped(self) -> int:
        """Steps whose gradient was not finite."""
        return self.step - self.applied

    def _masters(self) -> dict[str, Tensor]:
        return dict(self.parameters)

    def _pieces(self) -> dict[str, Piece]:
        return {name: Piece(name, 0, 0, parameter.numel()) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def _resume(self, saved: Checkpoint) -> None:
        """Take up EMA, moments and steps; the weights are there.

        What was frozen there and is trained here begins with its weights as EMA, and without momentum.
        """
        self.step, self.applied = saved.numbers["step"], saved.numbers["applied"]
        self._read(saved, "ema", self.ema)
        for kind in MOMENTS:
            if any(f"{kind}/{name}" in saved for name in self.parameters):
                held = {
                    name: torch.zeros_like(master)
                    for name, master in self.masters.items()
                    if isinstance(self.owners[name], Muon) == (kind == MOMENT_OF_MUON)
                }
                self._read(saved, kind, held)
                for name, value in held.items():
                    # Every parameter moves in every step that is applied.
                    count = torch.tensor(float(self.applied), device=value.device)
                    self.owners[name].state[self.masters[name]].update({"step": count, kind: value})

    def _read(self, saved: Checkpoint, kind: str, held: Mapping[str, Tensor]) -> None:
        """Fill tensors shaped and sharded as the masters, where the checkpoint has something of this kind."""
        for name, piece in self.pieces.items():
            if piece.master in held and (key := f"{kind}/{name}") in saved:
                found, target = saved.read(key, piece.start, piece.size), held[piece.master]
                if piece.size < target.numel():
                    target = target[piece.at : piece.at + piece.size]
                target.copy_(found.view(target.shape))

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
                f"The gradient was not finite {PATIENCE} steps in a row, last at step {self.step - 1}; resume from a "
                "checkpoint with a lower learning rate, or look in the log for the term that is not finite."
            )

    def _means(self, rows: list[dict[str, Tensor]]) -> dict[str, float]:
        names = list(dict.fromkeys(chain.from_iterable(rows)))
        means = [torch.stack([row[name].float() for row in rows if name in row]).mean() for name in names]
        return dict(zip(names, (self._summed(torch.stack(means)) / self.world).tolist(), strict=True))

    def total(self, numbers: Sequence[int]) -> list[int]:
        """Sums over ranks, the same answer on all."""
        found = self._summed(torch.tensor(numbers, dtype=torch.int64, device=self.device))
        return [int(number) for number in found.tolist()]

    def _summed(self, numbers: Tensor) -> Tensor:
        """Over ranks."""
        return numbers

    def exchange(self, text: str) -> list[str]:
        """Every rank's text, on all ranks."""
        return [text]

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint; all ranks call it. Raises: CheckpointError, on all ranks."""
        pieces, tensors = self._share(), {}
        for kind, held in self._held().items():
            for name, piece in pieces.items():
                if piece.master in held:
                    flat = held[piece.master].detach().flatten()
                    tensors[f"{kind}/{name}"] = flat[piece.at : piece.at + piece.size]
        starts = {name: piece.start for name, piece in pieces.items()}
        numbers = {"step": self.step, "applied": self.applied}
        checkpoints.save(numbers, tensors, starts, self.rank, self.exchange)

    def _share(self) -> dict[str, Piece]:
        """The pieces that this process writes of a checkpoint."""
        return self.pieces

    def _held(self) -> dict[str, dict[str, Tensor]]:
        """Weights, EMA and moments, by the name of the master that they are of."""
        held = {"weights": self.masters, "ema": self.ema}
        for kind in MOMENTS:
            states = {name: self.owners[name].state.get(master, {}) for name, master in self.masters.items()}
            held[kind] = {name: state[kind] for name, state in states.items() if kind in state}
        return held

    def ema_weights(self) -> dict[str, Tensor]:
        """All parameters by name, those that are trained as their EMA: what is evaluated and exported.

        All ranks call it; what it returns is for rank 0.
        """
        return {name: self.ema.get(name, parameter.detach()) for name, parameter in self.objective.named_parameters()}
