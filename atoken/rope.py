"""Rotary position embedding over the four axes t, x, y, z (paper section 3.2).

Every axis gets ``head width // 8`` frequencies ``base ** (-k / head width)``; adjacent channels form a pair; positions
are raw integers. Angles and rotation are fp32. There is no table in a buffer: a model that is constructed on the meta
device would leave it uninitialised.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(coords: Tensor, head_width: int, base: float = 10_000.0) -> Tensor:
    """The rotation of each token: (N, 4) integer coordinates -> (2, N, 1, K/2) fp32, cosines and sines."""
    exponents = torch.arange(head_width // 8, device=coords.device, dtype=torch.float32) / head_width
    angles = coords.float()[:, :, None] * base**-exponents
    angles = angles.flatten(1)[:, None]
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x_NHK: Tensor, rotation: Tensor) -> Tensor:
    """Rotate queries or keys (N, H, K) by ``rotation`` (2, N, 1, K/2), computed in fp32, returned in their dtype.

    A pair of channels is a complex number; one complex product rotates it.
    """
    pairs_NHK = torch.view_as_complex(x_NHK.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs_NHK * torch.complex(*rotation)).flatten(-2).to(x_NHK.dtype)
