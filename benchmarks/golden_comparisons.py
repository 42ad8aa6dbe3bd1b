"""How the networks of ``benchmarks.golden_generation`` are compared with tensors of published code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from generation.weights import renamed

VALUES, GRADIENTS, TOKENS = 2e-5, 1e-4, 0.0


class Found(NamedTuple):
    """What of a fixture was compared, its error (of tokens: how many differ), and how large it may be."""

    what: str
    error: float
    limit: float


Fixture = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]  # configuration, weights, inputs and outputs


def gradients(model: torch.nn.Module, io: Mapping[str, Tensor], prefix: str, names: Mapping[str, str]) -> Found:
    """The worst of all parameters."""
    ours = {name: weight.grad for name, weight in model.named_parameters()}
    pairs = [
        (ours[renamed(key.removeprefix(prefix), names)], grad) for key, grad in io.items() if key.startswith(prefix)
    ]
    if not pairs:
        raise ValueError(f"There are no gradients {prefix}*.")
    worst = max(error(found.reshape(grad.shape), grad) if found is not None else math.inf for found, grad in pairs)
    return Found("gradients", worst, GRADIENTS)


def value(what: str, found: Tensor, reference: Tensor) -> Found:
    """Numbers."""
    return Found(what, error(found, reference), VALUES)


def equal(what: str, found: Tensor, reference: Tensor) -> Found:
    """Tokens and masks."""
    return Found(what, float((found != reference).sum()), TOKENS)


def error(found: Tensor, reference: Tensor) -> float:
    """The largest absolute difference over the largest absolute value of the reference."""
    if found.shape != reference.shape:
        return math.inf
    return float((found.detach().double() - reference.double()).abs().max() / reference.double().abs().max())
