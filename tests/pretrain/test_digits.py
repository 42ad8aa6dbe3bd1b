"""Latents as digits: every level has its own, neighbours differ in one, and both ways are exact."""

import numpy as np
import pytest
import torch

from atoken.bottleneck import FSQ
from atoken.presets import FSQ_LEVELS
from atoken.pretrain.start.digits import MOST, Digits, fit_digits, least_squares, shares
from tests.tolerances import FP32

COUNTS = (3, 2, 1)  # digits of three coefficients: 64, 16 and 4 levels


def digits_of(counts=COUNTS):
    """Digits of coefficients that are the latents themselves, counted in levels."""
    size = sum(counts)
    axes = torch.eye(size, dtype=torch.double)[:, : len(counts)]
    channels = torch.randperm(size, generator=torch.Generator().manual_seed(1))
    return Digits(axes, torch.zeros(len(counts), dtype=torch.double), counts, channels)


def levels_at(digits, places):
    """(N, C) levels -1 to 0.5 of places (N, K)."""
    latents = torch.zeros(len(places), len(digits.channels), dtype=torch.double)
    latents[:, : places.shape[1]] = places
    return FSQ(FSQ_LEVELS).quantise(digits.values(latents))


@pytest.mark.parametrize("k", range(len(COUNTS)))
def test_neighbouring_levels_differ_in_one_digit_by_one(k):
    places = torch.full((4 ** COUNTS[k], len(COUNTS)), 0.5, dtype=torch.double)
    places[:, k] += torch.arange(len(places))
    levels = (2 * levels_at(digits_of(), places)).round()
    assert len(levels.unique(dim=0)) == len(places)
    steps = levels.diff(dim=0).abs()
    assert (steps.sum(1) == 1).all()
    edges = torch.stack([places[:-1] + 0.499, places[1:] - 0.499])  # just below and above the edge between two levels
    edges[..., [i for i in range(len(COUNTS)) if i != k]] = 0.5
    for side, expected in zip(edges, (levels[:-1], levels[1:]), strict=True):
        torch.testing.assert_close((2 * levels_at(digits_of(), side)).round(), expected, atol=0, rtol=0)


def test_beyond_the_last_levels_is_the_last_level():
    ends = torch.tensor([[-9.0] * 3, [0.5] * 3, [63.5, 15.5, 3.5], [80.0, 22.0, 9.0]], dtype=torch.double)
    levels = levels_at(digits_of(), ends)
    torch.testing.assert_close(levels[0], levels[1])
    torch.testing.assert_close(levels[2], levels[3])


def test_places_are_linear_in_what_the_readers_give():
    generator = torch.Generator().manual_seed(0)
    most = torch.tensor([4**count for count in COUNTS])
    digits, places = digits_of(), torch.rand(6000, 3, generator=generator, dtype=torch.double) * most
    hidden = digits.readers()(levels_at(digits, places).double())
    found = hidden @ least_squares(hidden, places.floor() - most / 2)
    torch.testing.assert_close(found, places.floor() - most / 2, atol=1000 * FP32, rtol=0)  # of up to 64 levels


def test_digits_go_where_they_lower_the_error_most():
    a_sixteenth_each = 16.0 ** -torch.arange(MOST + 1)
    assert shares(torch.ones(3, 1) * a_sixteenth_each) == [1, 1, 1]
    assert shares(torch.tensor([[16.0], [0.5], [0.01]]) * a_sixteenth_each) == [2, 1, 0]
    assert shares(torch.tensor([[1e9]] + [[1e-9]] * 5) * a_sixteenth_each)[0] == MOST
    for seed in range(5):
        spread = np.sort(np.random.default_rng(seed).lognormal(0, 1.5, 48))[::-1]
        counts = shares(torch.tensor(np.outer(spread**2, 16.0 ** -np.arange(MOST + 1))))
        assert sum(counts) == 48
        assert counts == sorted(counts, reverse=True)


def test_fitted_digits_lose_little_and_keep_zero():
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(2, -1, 12, dtype=torch.double).exp()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.double)).Q
    latents = torch.randn(20_000, 12, generator=generator, dtype=torch.double) * spread @ turn.T + 3.0
    digits = fit_digits(latents, turn, group=6)
    assert sorted(digits.channels.tolist()) == list(range(12))
    hidden = digits.readers()(FSQ(FSQ_LEVELS).quantise(digits.values(latents)).double())
    hidden = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=torch.double)], dim=1)
    back = hidden @ least_squares(hidden, latents)
    # Two bits for each coefficient alike would lower the error of each by 9.3 dB, the bits where they belong by more.
    assert 10 * torch.log10(latents.var(0).sum() / (back - latents).square().mean(0).sum()) > 12
    mean = latents.mean(0) + 0.2 * (torch.rand(50, 12, generator=generator, dtype=torch.double) - 0.5) @ turn.T
    assert len(FSQ(FSQ_LEVELS).quantise(digits.values(mean)).unique(dim=0)) == 1
