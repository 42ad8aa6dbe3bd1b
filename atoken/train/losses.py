"""Loss terms as pure functions; weights and sums belong to the stage (paper section 3.3).

Every term takes a step: what went in, what came out. ``Step`` is of the tokenizer, ``Placed`` and ``Drawn`` are of its
Gaussian decoder. Shape letters: ``atoken/tokens.py``; ``S`` are the pixels of a side.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from atoken.gaussian_decoder import RESOLUTION
from atoken.gaussians import Gaussians
from atoken.metrics import similarity
from atoken.model import Encoded
from atoken.tokens import SparseTokens
from atoken.train.parts import Pictures, Surface

GRAIN = 0.12  # voxels: the scale at which the Gaussians of a voxel about cover its piece of the surface


@dataclass(frozen=True)
class Step:
    """One forward pass. ``values``: how many of the P patch values are real (768 of a picture's 3072)."""

    inputs: SparseTokens
    values: int
    encoded: Encoded
    decoded: SparseTokens


@dataclass(frozen=True)
class Placed:
    """M Gaussians, and where the surface has them."""

    gaussians: Gaussians
    surface: Surface


@dataclass(frozen=True)
class Drawn:
    """What V cameras see of the Gaussians, ``rgb`` (V, S, S, 3) and ``alpha`` (V, S, S), and what they should see."""

    rgb: Tensor
    alpha: Tensor
    pictures: Pictures


def l1(step: Step) -> Tensor:
    """Mean absolute difference of the real patch values, in [-1, 1] units."""
    ours, theirs = step.decoded.feats[:, : step.values], step.inputs.feats[:, : step.values]
    return (ours.float() - theirs).abs().mean()


def kl(step: Step) -> Tensor:
    """KL divergence of the posterior to the unit Gaussian: sum over channels, mean over tokens."""
    return step.encoded.posterior.kl().mean()


def place(step: Placed) -> Tensor:
    """Mean distance (city block) of the Gaussians from the surface, in voxels, where they can get there."""
    far_M = (step.gaussians.means - step.surface.points).abs().sum(-1) * RESOLUTION
    return far_M[step.surface.within & step.surface.counts].mean()


def color(step: Placed) -> Tensor:
    """Mean absolute difference of the colours from the surface's, in 0..1, where they can get there."""
    return (step.gaussians.colors - step.surface.colors).abs()[step.surface.within & step.surface.counts].mean()


def size(step: Placed) -> Tensor:
    """Mean absolute difference of the scales from ``GRAIN``, in voxels."""
    return (step.gaussians.scales * RESOLUTION - GRAIN).abs()[step.surface.counts].mean()


def opacity(step: Placed) -> Tensor:
    """Cross-entropy of opacities with whether the Gaussian can get to the surface, mean over Gaussians."""
    right_M = step.gaussians.opacities.where(step.surface.within, 1 - step.gaussians.opacities)
    return -right_M.clamp_min(1e-6).log()[step.surface.counts].mean()


def picture_l1(step: Drawn) -> Tensor:
    """Mean absolute difference over all pixels, those that do not count as 0; colours in 0..1."""
    ours, theirs = _counted(step)
    return (ours - theirs).abs().mean()


def dissimilarity(step: Drawn) -> Tensor:
    """1 - SSIM, pixels that do not count black in both pictures."""
    return 1 - similarity(*_counted(step), 1.0).mean()


def silhouette(step: Drawn) -> Tensor:
    """Mean absolute difference of alpha from the mask, over all pixels, those that do not count as 0."""
    return ((step.alpha - step.pictures.mask.float()).abs() * step.pictures.counts).mean()


def _counted(step: Drawn) -> tuple[Tensor, Tensor]:
    counts = step.pictures.counts[..., None]
    return step.rgb * counts, step.pictures.rgb * counts
