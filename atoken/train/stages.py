"""Stages of training as data: what is seen, what is summed, how long, from where.

The paper's weights (section 3.5) are reconstruction 0.2, L1 1.0, KL 1e-8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from atoken.train import losses


@dataclass(frozen=True)
class Term:
    """One summand of the loss: the function itself, not its name."""

    fn: Callable[[Any], Tensor]
    weight: float


PATCHES = (Term(losses.l1, 0.2), Term(losses.kl, 1e-8))
SURFACE = (Term(losses.place, 1.0), Term(losses.color, 3.0), Term(losses.size, 1.0), Term(losses.opacity, 0.5))
VIEWS = (Term(losses.picture_l1, 1.0), Term(losses.dissimilarity, 0.2), Term(losses.silhouette, 0.3))
TERMS = {"image": PATCHES, "clip": PATCHES, "asset": PATCHES, "surface": SURFACE, "views": VIEWS}


@dataclass(frozen=True)
class Stage:
    """One stage. Sizes are in patches of 16 x 16 pixels, clip lengths in time steps of 4 frames."""

    name: str
    preset: str
    start_from: str | None = None  # a stage whose weights this one starts with; None is the linear start
    mixture: Mapping[str, int] = field(default_factory=lambda: {"image": 3, "clip": 1})  # steps of each in a cycle
    terms: Mapping[str, tuple[Term, ...]] = field(default_factory=lambda: TERMS)
    tokens: int = 1024  # budget of one batch
    image_patches: tuple[int, int] = (16, 256)  # fewest and most patches of a picture
    clip_patches: tuple[int, int] = (16, 100)  # of one time step of a clip
    clip_steps: tuple[int, int] = (1, 8)
    aspect: float = 4.0  # longest side over shortest, at most
    views: int = 2  # pictures of a part of an asset, where Gaussians are drawn
    steps: int = 4500
    warmup: int = 100
    lr: float = 5e-4
    final_lr: float = 5e-6
    frozen: tuple[str, ...] = ()  # beginnings of the names of parameters that stay as they start
    encoder_lr: float = 1.0  # times lr; 0.1 where the encoder is already trained (paper section 3.5)
    betas: tuple[float, float] = (0.9, 0.95)
    muon: float = 0.0  # rate of Muon for the matrices of blocks, times lr; 0 is AdamW for all
    weight_decay: float = 0.01
    clip: float = 1.0  # of the gradient's norm
    mixed_precision: bool = True  # bf16 in products
    ema: float = 0.999  # decay; ramps up as (1 + n) / (10 + n)
    seed: int = 0


GAUSSIANS = ("gaussian_decoder.",)
UNUSED = ("pool.", "logit_", *GAUSSIANS)  # by patches alone
TOKENIZER = ("encoder.", "pool.", "to_latent.", "decoder.", "to_patch.", "logit_")
NANO_PIXELS = Stage("nano-pixels", "nano", frozen=UNUSED)
NANO_VOXELS = Stage(
    "nano-voxels", "nano", start_from="nano-pixels", mixture={"image": 3, "clip": 1, "asset": 1}, frozen=UNUSED,
    steps=1000, lr=2e-4, seed=2,
)  # fmt: skip
NANO = Stage(
    "nano", "nano", start_from="nano-voxels", mixture={"surface": 1}, frozen=TOKENIZER, tokens=2048,
    steps=1500, warmup=50, lr=2e-3, muon=2.5, seed=3,
)  # fmt: skip
# Its start is a code already. What writes and reads it has weights so large that a step of Adam would break it, and
# bf16 would teach the rest of the decoder to expect noise in the finest digits.
CODE = ("encoder.", "to_latent.", "decoder.inputs.", "decoder.position.", "decoder.blocks.0.", *UNUSED)
NANO_D = Stage("nano-d", "nano-d", start_from="nano", frozen=CODE, mixed_precision=False, steps=1200, lr=3e-4, seed=1)
STAGES = {stage.name: stage for stage in (NANO_PIXELS, NANO_VOXELS, NANO, NANO_D)}
