"""Latents as digits: principal coefficients in base 4, one digit for each channel of the quantiser.

A coefficient with n digits has 4 ** n levels, in reflected order (Gray code): from one level to the next, one digit
changes by one, so every digit is a triangle wave of the coefficient. A layer of rectified units computes such waves,
and another one inverts them: ``write_digits`` and ``read_digits`` set the MLP of a block, which adds nothing yet, to
do this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import atanh

import torch
from torch import Tensor, nn

from atoken.bottleneck import FSQ
from atoken.layers import Block

BASE = 4  # levels of a channel
MOST = 3  # digits of one coefficient
_HALF = (BASE - 1) * (1 + FSQ.eps) / 2  # of the quantiser's range
FSQ_STEP, FSQ_CENTRE = atanh(1 / _HALF), -atanh(0.5 / _HALF)  # between its three thresholds, and the middle one
SHARPNESS = 4.0  # factor on the inputs of GELUs, with which they act as rectifiers
TRIALS = 200  # assignments of digits to channels, of which the best is taken
STEPS = torch.logspace(-1.5, 0.5, 40, dtype=torch.double)  # candidates for the step of a quantiser, in deviations


@dataclass(frozen=True)
class Rectifiers:
    """Units relu(inputs @ weights + shifts): ``weights`` (I, U), ``shifts`` (U,), double."""

    weights: Tensor
    shifts: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """(N, I) -> (N, U)."""
        return (inputs @ self.weights + self.shifts).relu()

    @staticmethod
    def of(inputs: int, units: Sequence[tuple[dict[int, float], float]]) -> Rectifiers:
        """From units, each given as its weights by the number of an input, and a shift."""
        weights = torch.zeros(inputs, len(units), dtype=torch.double)
        for unit, (of_unit, _) in enumerate(units):
            weights[list(of_unit), unit] = torch.tensor(list(of_unit.values()), dtype=torch.double)
        return Rectifiers(weights, torch.tensor([shift for _, shift in units], dtype=torch.double))


@dataclass(frozen=True)
class Digits:
    """How many digits each principal coefficient of C latents has, C in all; K coefficients have at least one.

    ``axes`` (C, K) and ``offset`` (K,), double: latents @ axes + offset is the position of a latent on the scale of
    levels of each coefficient, from 0 to 4 ** n. ``counts``: the digits of each. ``channels`` (C,): the channel of each
    digit, coefficient by coefficient, coarse before fine.
    """

    axes: Tensor
    offset: Tensor
    counts: tuple[int, ...]
    channels: Tensor

    def waves(self) -> tuple[Rectifiers, Tensor]:
        """Units of the K positions, and their weights (C, U) in the digits, which are from 0 to 4."""
        units, columns = [], []
        for k, count in enumerate(self.counts):
            # Two units of opposite sign give the position itself; the others fold it.
            units += [({k: 1.0}, 0.0), ({k: -1.0}, 0.0)]
            units += [({k: 1.0}, -float(BASE * m)) for m in range(1, BASE ** (count - 1))]
            for width in [BASE ** (count - 1 - digit) for digit in range(count)]:
                slopes = [(-1) ** (m // width) * 2.0 if m % width == 0 else 0.0 for m in range(1, BASE ** (count - 1))]
                columns.append((len(units) - len(slopes) - 2, torch.tensor([1.0, -1.0, *slopes]).double() / width))
        weights = torch.zeros(len(columns), len(units), dtype=torch.double)
        for row, (first, column) in zip(self.channels, columns, strict=True):
            weights[row, first : first + len(column)] = column
        return Rectifiers.of(len(self.counts), units), weights

    def values(self, latents: Tensor) -> Tensor:
        """Inputs of the quantiser, (N, C) double, that give the digits of latents (N, C)."""
        units, weights = self.waves()
        digits = units(latents.double() @ self.axes + self.offset) @ weights.T
        return (digits - BASE / 2) * FSQ_STEP + FSQ_CENTRE

    def readers(self) -> Rectifiers:
        """Units of the C quantised channels, of which the coefficients are linear functions.

        If the sum of the coarser digits of a coefficient is odd, the next digit counts backwards. So for every odd sum
        there are units that add or subtract the digit once more from there on. Two more units detect the first and the
        last level, which also stand for all values beyond; and the levels of a digit need not be equidistant.
        """
        units: list[tuple[dict[int, float], float]] = []  # of levels 0 to 3
        channels = iter(self.channels.tolist())
        for count in self.counts:
            first, *finer = digits = list(islice(channels, count))
            units += [(dict.fromkeys(digits, -1.0), 0.5), ({first: 1.0} | dict.fromkeys(finer, -4.0), -2.5)]
            units += [({digit: sign}, -sign * kink) for digit in digits for sign in (1.0, -1.0) for kink in (1.0, 2.0)]
            for coarser, digit in enumerate(finer, 1):
                for odd in range(1, (BASE - 1) * coarser + 1):
                    gate, shift = dict.fromkeys(digits[:coarser], 4.0), 4 * (0.5 - odd)
                    units += [(gate | {digit: sign}, shift - 1.5 * sign) for sign in (1.0, -1.0)]
        found = Rectifiers.of(len(self.channels), units)
        return Rectifiers(found.weights * BASE / 2, found.shifts + found.weights.sum(0) * BASE / 2)


def fit_digits(latents: Tensor, components: Tensor, group: int) -> Digits:
    """Digits for latents (N, C) with principal components (C, C): each digit goes where it reduces the error most.

    Zero is the middle of a level, so that smooth areas stay smooth. group: number of channels that make one code.
    """
    mean, components = latents.mean(0).double(), components.double()
    coefficients = (latents.double() - mean) @ components
    errors, steps = _errors(coefficients)
    counts = torch.tensor(shares(errors))
    kept = counts.nonzero().flatten()
    axes = components[:, kept] / steps[kept, counts[kept]]
    offset = BASE ** counts[kept].double() / 2 + 0.5 - mean @ axes
    found = Digits(axes, offset, tuple(counts[kept].tolist()), torch.arange(len(counts)))
    return replace(found, channels=_assigned(found.values(latents), group))


def shares(errors: Tensor) -> list[int]:
    """Digits of each of C coefficients, C in all, given the error (C, MOST + 1) of each with 0, 1, ... digits."""
    counts = [0] * len(errors)
    for _ in range(len(errors)):
        gains = [float(row[n] - row[n + 1]) if n < MOST else -1.0 for row, n in zip(errors, counts, strict=True)]
        counts[gains.index(max(gains))] += 1
    return counts


@torch.no_grad()
def write_digits(block: Block, norm: nn.Module, projection: Tensor, digits: Digits, outputs: Tensor) -> None:
    """Let the last block of an encoder, which adds nothing yet, add outputs (D, C) @ digits to its stream.

    norm: the one after the block. projection: (C, D), from its output to latents. The digits are in the units of
    ``digits.values``. Raises: ValueError if the MLP is too narrow.
    """
    block.norm2.load_state_dict(norm.state_dict())
    units, weights = digits.waves()
    count, up, down = _checked_count(block, units), block.mlp.up, block.mlp.down
    up.weight[:count] = stored(SHARPNESS * units.weights.T @ digits.axes.T @ projection.double())
    up.bias[:count] = stored(SHARPNESS * (digits.offset @ units.weights + units.shifts))
    down.weight.zero_()
    down.weight[:, :count] = stored(outputs.double() @ weights * (FSQ_STEP / SHARPNESS))


@torch.no_grad()
def read_digits(block: Block, stream: Tensor, levels: Tensor, digits: Digits, target: Tensor) -> None:
    """Let the first block of a decoder, which adds nothing yet, map its stream to the target, both (N, D), at best.

    levels: (N, C), the quantised channels, which the stream carries in addition to a constant.
    Raises: ValueError if the MLP is too narrow.
    """
    inputs = block.norm2(stream).double()
    reading = least_squares(inputs, torch.cat([levels.double(), torch.ones(len(levels), 1)], dim=1))
    units = digits.readers()
    count, up, down = _checked_count(block, units), block.mlp.up, block.mlp.down
    up.weight[:count] = stored(SHARPNESS * torch.cat([units.weights, units.shifts[None]]).T @ reading.T)
    hidden = nn.functional.gelu(inputs @ up.weight[:count].double().T, approximate="tanh")
    down.weight.zero_()
    down.weight[:, :count] = stored(least_squares(hidden, target.double() - stream).T)


def _checked_count(block: Block, units: Rectifiers) -> int:
    needed, hidden = len(units.shifts), len(block.mlp.up.weight)
    if needed > hidden:
        raise ValueError(f"These digits need {needed} units, more than the MLP of {hidden} has; take a wider model.")
    return needed


def stored(weights: Tensor) -> Tensor:
    """Weights rounded as in a saved bundled model, so that what is fitted next compensates for the rounding."""
    return weights.bfloat16().float()


def least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
    """(I, O): the matrix that maps inputs (N, I) to targets (N, O) with the least squared error, with a small ridge."""
    gram = inputs.T @ inputs / len(inputs)
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, inputs.T @ targets / len(inputs))


def _errors(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error and step of each coefficient (N, C) for 0 to MOST digits, both (C, MOST + 1).

    The step is the best for the absolute error, which is the loss of training.
    """
    spread = coefficients.std(0)
    errors, steps = [coefficients.square().mean(0)], [spread]
    for count in range(1, MOST + 1):
        half = BASE**count // 2
        trials = []
        for step in STEPS[:, None] * spread:
            wrong = (coefficients / step).round().clamp(-half, half - 1) * step - coefficients
            trials.append(torch.stack([wrong.abs().mean(0), wrong.square().mean(0)]))
        absolute, squared = torch.stack(trials, dim=1)
        best = absolute.argmin(0)
        errors, steps = [*errors, squared.gather(0, best[None])[0]], [*steps, STEPS[best] * spread]
    return torch.stack(errors, dim=1), torch.stack(steps, dim=1)


def _assigned(values: Tensor, group: int) -> Tensor:
    """(C,): a channel for each digit; of random assignments the one whose least used group uses the most codes."""
    levels = ((values - FSQ_CENTRE) / FSQ_STEP + BASE / 2).floor().clamp(0, BASE - 1).long()
    generator = torch.Generator().manual_seed(0)
    trials = [torch.randperm(levels.shape[1], generator=generator) for _ in range(TRIALS)]
    powers = BASE ** torch.arange(group)

    def fewest_codes(digits: Tensor) -> int:
        codes_NG = (levels[:, digits].unflatten(1, (-1, group)) * powers).sum(-1)
        return min(len(codes_N.unique()) for codes_N in codes_NG.unbind(1))

    return max(trials, key=fewest_codes).argsort()
