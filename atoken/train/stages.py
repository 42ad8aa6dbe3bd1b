"""Stages of training as data: what is seen, what is summed, how long, from where.

The paper's weights (section 3.5) are reconstruction 0.2, L1 1.0, KL 1e-8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from atoken.train import losses


@dataclass(frozen=True)
class Term:
    """One summand of the loss: the function itself, not its name."""

    fn: Callable[[losses.Step], Tensor]
    weight: float


PIXELS = (Term(losses.l1, 0.2), Term(losses.kl, 1e-8))


@dataclass(frozen=True)
class Stage:
    """One stage. Sizes are in patches of 16 x 16 pixels, clip lengths in time steps of 4 frames."""

    name: str
    preset: str
    start_from: str | None = None  # a stage whose weights this one starts with; None is the linear start
    mixture: Mapping[str, int] = field(default_factory=lambda: {"image": 3, "clip": 1})  # steps of each in a cycle
    terms: Mapping[str, tuple[Term, ...]] = field(default_factory=lambda: {"image": PIXELS, "clip": PIXELS})
    tokens: int = 1024  # budget of one batch
    image_patches: tuple[int, int] = (16, 256)  # fewest and most patches of a picture
    clip_patches: tuple[int, int] = (16, 100)  # of one time step of a clip
    clip_steps: tuple[int, int] = (1, 8)
    aspect: float = 4.0  # longest side over shortest, at most
    steps: int = 4500
    warmup: int = 100
    lr: float = 5e-4
    final_lr: float = 5e-6
    frozen: tuple[str, ...] = ()  # beginnings of the names of parameters that stay as they start
    encoder_lr: float = 1.0  # times lr; 0.1 where the encoder is already trained (paper section 3.5)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0  # of the gradient's norm
    mixed_precision: bool = True  # bf16 in products
    ema: float = 0.999  # decay; ramps up as (1 + n) / (10 + n)
    seed: int = 0


NANO = Stage("nano", "nano")
# Its start is a code already. What writes and reads it has weights so large that a step of Adam would break it, and
# bf16 would teach the rest of the decoder to expect noise in the finest digits.
CODE = ("encoder.", "to_latent.", "decoder.inputs.", "decoder.position.", "decoder.blocks.0.")
NANO_D = Stage("nano-d", "nano-d", start_from="nano", frozen=CODE, mixed_precision=False, steps=1200, lr=3e-4, seed=1)
STAGES = {stage.name: stage for stage in (NANO, NANO_D)}
