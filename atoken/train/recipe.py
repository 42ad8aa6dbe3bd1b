"""How something is trained, as data: optimiser, schedule, EMA, precision, steps and seed; nothing of what it is."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Share = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(frozen=True)
class Recipe:
    """The limits of each number hold for what a user sets (``atoken/train/overrides.py``)."""

    steps: Count = 4500
    warmup: Annotated[int, Meta(ge=0)] = 100  # steps
    lr: NotNegative = 5e-4
    final_lr: NotNegative = 5e-6
    betas: tuple[Share, Share] = (0.9, 0.95)  # of AdamW
    muon: NotNegative = 0.0  # learning rate of the matrices that Muon may update, times lr; 0 is AdamW for all
    weight_decay: NotNegative = 0.01
    clip: NotNegative = 1.0  # of the gradient's norm; 0 is none
    mixed_precision: bool = True  # bf16 in products
    checkpointing: bool = False  # activations are computed again for the gradient; the objective sees to it
    ema: Share = 0.999  # decay; ramps up as (1 + n) / (10 + n)
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine from ``lr`` to ``final_lr``."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_lr + 0.5 * (self.lr - self.final_lr) * (1 + math.cos(math.pi * done))
