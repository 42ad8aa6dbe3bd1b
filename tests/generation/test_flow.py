"""The path, guidance and samplers against closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from atoken.errors import AtokenError
from generation.flow import data_of, drawn_sigmas, flow_loss, mixed, noise_of, shifted
from generation.guidance import Guidance, guided
from generation.sampling import SOLVERS, sample, sigma_steps
from tests.tolerances import FP32

GENERATOR = torch.Generator().manual_seed(3)
DATA, NOISE = torch.randn(2, 3, 5, 4, 6, generator=GENERATOR)
SIGMAS = torch.tensor([0.0, 0.25, 1.0])


def test_the_path_leads_from_data_to_noise_and_back():
    point = mixed(DATA, NOISE, SIGMAS)
    assert torch.equal(point[0], DATA[0])
    assert torch.equal(point[2], NOISE[2])
    torch.testing.assert_close(data_of(point, NOISE - DATA, SIGMAS), DATA, rtol=0, atol=FP32)
    torch.testing.assert_close(noise_of(point, NOISE - DATA, SIGMAS), NOISE, rtol=0, atol=FP32)


def test_the_loss_is_zero_for_the_velocity_and_four_and_two_for_its_reverse():
    exact = flow_loss(NOISE - DATA, DATA, NOISE)
    assert exact.total.abs() <= FP32
    wrong = flow_loss(DATA - NOISE, DATA, NOISE)
    torch.testing.assert_close(wrong.cosine, torch.full((3,), 2.0))
    torch.testing.assert_close(wrong.square, 4 * (NOISE - DATA).square().flatten(1).mean(1))


def test_sigmas_are_logit_normal():
    logits = torch.logit(drawn_sigmas(20_000, torch.Generator().manual_seed(1)).double())
    assert logits.mean().abs() < 0.03
    assert (logits.std() - 1).abs() < 0.03


@pytest.mark.parametrize("shift", [1.0, 3.0, 1 / 0.3])
def test_the_shift_is_applied_once(shift):
    steps = sigma_steps(10, shift)
    assert steps[0] == 1
    assert steps[-1] == 0
    for number, sigma in enumerate(steps):
        even = 1 - number / 10
        assert sigma == pytest.approx(shift * even / (1 + (shift - 1) * even))
    data_time = 1 - torch.tensor(steps)  # as LightningDiT has it, with the inverse shift
    even = torch.linspace(0, 1, 11)
    torch.testing.assert_close(data_time, even / shift / (1 + (1 / shift - 1) * even))
    assert shifted(torch.tensor(0.5), shift) == pytest.approx(shift / (1 + shift))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_velocity_that_knows_the_data_reaches_it(solver, shift):
    """On a straight path every solver is exact, whatever its sigmas."""
    seen = []

    def velocity(x, sigma):
        seen.append(sigma)
        return (x - DATA) / sigma

    found = sample(velocity, NOISE, sigma_steps(7, shift), solver)
    torch.testing.assert_close(found, DATA, rtol=0, atol=10 * FP32)
    assert seen[0] == 1
    assert all(first > second for first, second in zip(seen[::2], seen[2::2], strict=False))


def gaussian_error(solver, steps):
    """Data is Gaussian of deviation 0.5: the flow of a point x at sigma 1 ends at 0.5 x."""

    def velocity(x, sigma):
        variance = (1 - sigma) ** 2 * 0.25 + sigma**2
        return x * (sigma - (1 - sigma) * 0.25) / variance

    return float((sample(velocity, NOISE, sigma_steps(steps), solver) - 0.5 * NOISE).abs().max())


def test_errors_fall_with_the_order_of_the_solver():
    euler, heun = ([gaussian_error(solver, steps) for steps in (20, 40, 80)] for solver in ("euler", "heun"))
    for first, second in pairwise(euler):
        assert first / second == pytest.approx(2, rel=0.2)
    for first, second in pairwise(heun):
        assert first / second == pytest.approx(4, rel=0.35)
    assert gaussian_error("unipc", 20) < euler[0] / 4
    assert gaussian_error("dpm++", 20) < euler[0] / 4


def test_a_callback_sees_every_step_and_may_change_the_sample():
    seen = []

    def changed(number, sigma, x):
        seen.append((number, sigma))
        return torch.zeros_like(x) if number == 2 else None

    sigmas = sigma_steps(3)
    assert not sample(lambda x, sigma: x, NOISE, sigmas, on_step=changed).any()
    assert seen == list(enumerate(sigmas[1:]))


class Fake:
    """A network whose output says which condition it saw, and how often it was called with how many rows."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, sigma_B, labels_B):
        self.rows.append(len(x))
        return labels_B.float()[:, None, None] * torch.arange(1, 5)[None, :, None].expand(len(x), 4, 2)


LABELS, NULL = torch.tensor([5, 7]), torch.tensor([1, 1])


@pytest.mark.parametrize(
    ("guidance", "sigma", "factors", "rows"),
    [
        (Guidance(0.0), 0.5, (1, 1, 1, 1), 4),
        (Guidance(1.0), 0.5, (5, 5, 5, 5), 2),
        (Guidance(3.0), 0.5, (13, 13, 13, 13), 4),
        (Guidance(3.0, channels=3), 0.5, (13, 13, 13, 5), 4),
        (Guidance(3.0, (0.0, 0.8)), 0.9, (5, 5, 5, 5), 2),
        (Guidance(3.0, (0.0, 0.8)), 0.8, (13, 13, 13, 13), 4),
        (Guidance(3.0, (0.2, 0.8)), 0.1, (5, 5, 5, 5), 2),
    ],
)
def test_guidance_is_exact_for_each_channel_and_skips_what_it_does_not_need(guidance, sigma, factors, rows):
    network = Fake()
    found = guided(network, LABELS, NULL, guidance)(torch.zeros(2, 4, 2), sigma)
    assert network.rows == [rows]
    assert found[0, :, 0].tolist() == [factor * (channel + 1) for channel, factor in enumerate(factors)]


def test_what_makes_no_sense_is_one_sentence():
    for wrong in ((0.5, 0.2), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(AtokenError, match="from 0 to 1"):
            Guidance(2.0, wrong)
    with pytest.raises(AtokenError, match="at least 1 step"):
        sigma_steps(0)
    with pytest.raises(AtokenError, match="There is no solver rk4"):
        sample(lambda x, sigma: x, NOISE, sigma_steps(2), "rk4")
    assert math.isclose(sigma_steps(1)[0], 1)
