"""Statistics of latents: closed forms, the file, and whose they are."""

import numpy as np
import pytest
import torch

from atoken.errors import CheckpointError, TensorError
from atoken.statistics import ALL, LEAST, NAME, LatentStatistics, Measured, Sums, measured_in
from tests.tolerances import FP32

SIX_DIGITS = 1e-5  # relative, of numbers kept with six significant digits


@pytest.fixture
def latents():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal([5, -1, 300], [0.1, 2, 40], (1000, 3)))


def added(*pieces):
    sums = Sums(3)
    for piece in pieces:
        sums.add(piece)
    return sums


def test_they_are_mean_and_deviation_over_all_tokens(latents):
    found = added(latents).statistics()
    np.testing.assert_allclose(found.mean, latents.mean(0), rtol=SIX_DIGITS)
    np.testing.assert_allclose(found.std, latents.std(0, unbiased=False), rtol=SIX_DIGITS)
    assert (found.samples, found.tokens) == (1, 1000)


def test_pieces_and_parts_give_what_the_whole_gives(latents):
    whole, cut = added(latents), added(*latents.split(77))
    joined = added(latents[:400]) + added(latents[400:])
    for other in (cut, joined):
        torch.testing.assert_close(other.sums, whole.sums, rtol=1e-14, atol=0)
    assert (joined.samples, joined.tokens) == (2, 1000)
    assert cut.statistics().mean == whole.statistics().mean


def test_a_large_mean_costs_no_digits_and_a_constant_channel_divides_by_no_zero():
    values = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 0.01
    values[:, 0] += 1000
    values[:, 1] = 7
    found = added(values).statistics()
    assert found.std[0] == pytest.approx(float(values[:, 0].double().std(unbiased=False)), rel=1e-4)
    assert found.std[1] == LEAST
    assert torch.isfinite(found.normalise(values)).all()


@pytest.mark.parametrize("shape", [(7, 3), (2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_normalising_gives_mean_0_and_deviation_1_and_can_be_undone(shape, latents):
    statistics = added(latents).statistics()
    normal = statistics.normalise(latents)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std(0, unbiased=False), torch.ones(3).double(), atol=1e-4, rtol=0)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(statistics.denormalise(statistics.normalise(values)), values, atol=1e-4, rtol=FP32)
    channel = statistics.denormalise(torch.zeros(shape)).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(channel, torch.tensor(statistics.mean).expand_as(channel))


def test_normalising_keeps_dtype_and_gradient():
    statistics = LatentStatistics((1.0, 2.0), (2.0, 4.0))
    values = torch.ones(1, 2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    normal = statistics.normalise(values)
    assert normal.dtype == torch.bfloat16
    normal.sum().backward()
    assert values.grad.flatten().tolist() == [0.5, 0.25]


@pytest.mark.parametrize("shape", [(3,), (4, 2), (2, 4, 3)])
def test_another_number_of_channels_is_one_sentence(shape, latents):
    with pytest.raises(TensorError, match=r"must be \(N, 3\)"):
        added(latents).statistics().normalise(torch.zeros(shape))


def test_of_all_channels_together(latents):
    mean, std = added(latents).statistics().overall
    assert mean == pytest.approx(float(latents.mean()), rel=1e-4)
    assert std == pytest.approx(float(latents.std(unbiased=False)), rel=1e-4)


def test_the_file_holds_them_and_states_whose_they_are(latents, tmp_path):
    statistics = added(latents).statistics()
    assert measured_in(tmp_path, lambda: "abc") is None
    measured = Measured("a folder", "abc", {ALL: statistics, "image": statistics})
    measured.save(tmp_path / NAME)
    assert Measured.load(tmp_path / NAME) == measured
    assert measured_in(tmp_path, lambda: "abc").statistics == statistics
    with pytest.raises(CheckpointError, match=r"other weights.*atoken stats"):
        measured_in(tmp_path, lambda: "abd")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"data":"","fingerprint":"","latents":{}}',
             '{"data":"","fingerprint":"","latents":{"all":{"mean":[1.0],"std":[1.0,2.0]}}}',
             '{"data":"","fingerprint":"","latents":{"all":{"mean":["a"],"std":[1.0]}}}'],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(CheckpointError, match="holds no latent statistics"):
        measured_in(tmp_path, lambda: "")
