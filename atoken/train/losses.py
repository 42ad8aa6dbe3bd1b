"""Loss terms as pure functions; weights and sums belong to the stage (paper section 3.3).

Every term takes a ``Step``: what went in and what came out. Shape letters: ``atoken/tokens.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from atoken.model import Encoded
from atoken.tokens import SparseTokens


@dataclass(frozen=True)
class Step:
    """One forward pass. ``values``: how many of the P patch values are real (768 of a picture's 3072)."""

    inputs: SparseTokens
    values: int
    encoded: Encoded
    decoded: SparseTokens


def l1(step: Step) -> Tensor:
    """Mean absolute difference of the real patch values, in [-1, 1] units."""
    ours, theirs = step.decoded.feats[:, : step.values], step.inputs.feats[:, : step.values]
    return (ours.float() - theirs).abs().mean()


def kl(step: Step) -> Tensor:
    """KL divergence of the posterior to the unit Gaussian: sum over channels, mean over tokens."""
    return step.encoded.posterior.kl().mean()
