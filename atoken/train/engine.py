"""The plain engine: one process, AdamW, autocast, clipping, EMA; what any other engine must equal.

Its whole state is tensors and integers, kept as safetensors and JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from atoken.train.batches import Batch
from atoken.train.objective import Objective
from atoken.train.stages import Stage


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
        groups = [self._group(encoder, matrix) for encoder in (True, False) for matrix in (True, False)]
        self.optimiser = torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, fused=True)

    def _group(self, encoder: bool, matrix: bool) -> dict[str, Any]:
        """Parameters of the encoder or of the rest, matrices or not; only matrices decay."""
        chosen = [
            p
            for name, p in self.parameters.items()
            if name.startswith("encoder.") == encoder and (p.ndim > 1) == matrix
        ]
        return {
            "params": chosen,
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
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["lr_scale"]
        tokens = batch.tokens.to(self.device)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.stage.mixed_precision):
            loss, terms = self.objective(Batch(batch.modality, tokens, batch.values))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.stage.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
            self._advance_average()
        self.optimiser.zero_grad(set_to_none=True)
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
            tensors |= {f"{key}/{name}": value for key, value in self.optimiser.state.get(parameter, {}).items()}
        return tensors, {"step": self.step, "applied": self.applied}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take up a state that ``state`` gave."""
        self.step, self.applied = numbers["step"], numbers["applied"]
        for name, parameter in self.objective.model.named_parameters():
            parameter.copy_(tensors[f"weights/{name}"])
        for name, parameter in self.parameters.items():
            self.average[name].copy_(tensors[f"average/{name}"])
            moments = {key: tensors.get(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if moments["step"] is not None:
                self.optimiser.state[parameter] = {
                    key: value.clone() for key, value in moments.items() if value is not None
                }
