"""The plain engine: one process, AdamW or Muon, autocast, clipping, EMA; what any other engine must equal.

Its whole state is tensors and integers, kept as safetensors and JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from atoken.train.batches import Batch
from atoken.train.objective import Objective
from atoken.train.stages import Stage

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # that the optimisers keep of a parameter


class PlainEngine:
    """Holds the fp32 weights, the optimiser and the EMA of one stage."""

    def __init__(self, objective: Objective, stage: Stage, device: str) -> None:
        self.objective = objective.to(device).train()
        self.stage, self.device = stage, device
        self.step = 0  # batches seen
        self.applied = 0  # steps taken; a step with a gradient that is not finite is skipped
        for name, parameter in objective.model.named_parameters():
            parameter.requires_grad_(not name.startswith(stage.frozen))
        self.parameters = {name: p for name, p in objective.model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.owners = {name: opt for opt, names in self._optimisers().items() for name in names}
        self.optimisers = list(dict.fromkeys(self.owners.values()))

    def _optimisers(self) -> dict[torch.optim.Optimizer, list[str]]:
        """Muon for the matrices of blocks where the stage asks for it, AdamW for the rest; and what each works on."""
        stage, names = self.stage, list(self.parameters)
        inner = [n for n in names if stage.muon and ".blocks." in n and self.parameters[n].ndim == 2]
        rest = [n for n in names if n not in inner]
        groups = [self._group(rest, encoder, matrix) for encoder in (True, False) for matrix in (True, False)]
        found: dict[torch.optim.Optimizer, list[str]] = {}
        if rest:
            found[torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, fused=True)] = rest
        if inner:
            group = {"params": [self.parameters[n] for n in inner], "lr_scale": stage.muon}
            found[torch.optim.Muon([group], lr=stage.lr, weight_decay=stage.weight_decay)] = inner
        return found

    def _group(self, names: list[str], encoder: bool, matrix: bool) -> dict[str, Any]:
        """Parameters of the encoder or of the rest, matrices or not; only matrices decay."""
        chosen = [n for n in names if n.startswith("encoder.") == encoder and (self.parameters[n].ndim > 1) == matrix]
        return {
            "params": [self.parameters[name] for name in chosen],
            "lr_scale": self.stage.encoder_lr if encoder else 1.0,
            "weight_decay": self.stage.weight_decay if matrix else 0.0,
        }

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine from ``lr`` to ``final_lr``."""
        stage = self.stage
        if step < stage.warmup:
            return stage.lr * (step + 1) / stage.warmup
        done = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
        return stage.final_lr + 0.5 * (stage.lr - stage.final_lr) * (1 + math.cos(math.pi * done))

    def train(self, batch: Batch) -> dict[str, float]:
        """One step. Returns the named terms, the loss, the gradient's norm and the learning rate."""
        rate = self.learning_rate(self.step)
        for group in chain.from_iterable(optimiser.param_groups for optimiser in self.optimisers):
            group["lr"] = rate * group["lr_scale"]
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.stage.mixed_precision):
            loss, terms = self.objective(batch.to(self.device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.stage.clip)
        if torch.isfinite(norm):
            for optimiser in self.optimisers:
                optimiser.step()
            self._advance_average()
        self.objective.zero_grad(set_to_none=True)
        self.step += 1
        return {**{k: v.item() for k, v in terms.items()}, "loss": loss.item(), "norm": norm.item(), "lr": rate}

    @torch.no_grad()
    def _advance_average(self) -> None:
        self.applied += 1
        decay = min(self.stage.ema, (1 + self.applied) / (10 + self.applied))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs, as tensors and as plain numbers."""
        tensors = {f"weights/{n}": p.detach() for n, p in self.objective.model.named_parameters()}
        tensors |= {f"average/{n}": p for n, p in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.owners[name].state.get(parameter, {}).items()}
        return tensors, {"step": self.step, "applied": self.applied}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take up a state that ``state`` gave."""
        self.step, self.applied = numbers["step"], numbers["applied"]
        for name, parameter in self.objective.model.named_parameters():
            parameter.copy_(tensors[f"weights/{name}"])
        for name, parameter in self.parameters.items():
            self.average[name].copy_(tensors[f"average/{name}"])
            moments = {key: tensors[f"{key}/{name}"].clone() for key in MOMENTS if f"{key}/{name}" in tensors}
            if moments:
                self.owners[name].state[parameter] = moments
