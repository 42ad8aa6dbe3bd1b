"""PSNR and SSIM against closed forms and against scikit-image."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from atoken.metrics.pixels import MS_SSIM_SIDE, SCALES, psnr, psnr_of, squared_error, ssim
from tests.tokenizer.small import random_frames
from tests.tolerances import FP32

SIZES = [(16, 16), (17, 40), (64, 48), (11, 11)]
SHORT = [(1, 1), (1, 30), (30, 1), (2, 5), (10, 12)]


def pair(*shape, kind="noise"):
    """An array and another near it, as a reconstruction is."""
    rng, first = np.random.default_rng(1), random_frames(*shape)
    if kind == "smooth":
        ramp = np.linspace(20, 230, shape[-1])[:, None] + np.zeros((*shape, 3))
        first = ramp.astype(np.uint8)
    change = rng.normal(0, 12, first.shape)
    return first, np.clip(first + change, 0, 255).astype(np.uint8)


def test_one_step_of_uint8_everywhere_is_48_13_db():
    dark = np.zeros((5, 7, 3), np.uint8)
    assert psnr(dark, dark + 1) == psnr(dark + 1, dark) == 20 * math.log10(255) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(dark, dark + 255) == 0


def test_error_and_psnr_are_scikit_images():
    prediction, target = pair(20, 30)
    assert squared_error(prediction, target) == np.mean((prediction.astype(float) - target) ** 2)
    assert psnr(prediction, target) == pytest.approx(
        peak_signal_noise_ratio(prediction, target, data_range=255), rel=1e-12
    )
    assert psnr_of(squared_error(prediction, target)) == psnr(prediction, target)


@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ssim_is_scikit_images(size, kind):
    prediction, target = pair(*size, kind=kind)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = structural_similarity(prediction, target, channel_axis=-1, **options)
    assert 0 < expected < 0.999
    assert ssim(prediction, target) == pytest.approx(expected, abs=FP32)


@pytest.mark.parametrize("size", [*SIZES, *SHORT], ids=str)
def test_what_is_equal_is_perfect_and_what_is_not_is_not(size):
    prediction, target = pair(*size)
    assert psnr(prediction, prediction) == math.inf
    assert ssim(prediction, prediction) == pytest.approx(1.0, abs=FP32)
    assert psnr(prediction, target) < 40
    assert ssim(prediction, target) < 1 - FP32


@pytest.mark.parametrize("size", [(20, 30), (3, 20)], ids=str)
def test_a_video_is_the_mean_of_its_frames(size):
    prediction, target = pair(5, *size)
    target[2] = 255 - target[2]
    frames = list(zip(prediction, target, strict=True))
    assert ssim(prediction, target) == pytest.approx(np.mean([ssim(*frame) for frame in frames]), abs=FP32)
    assert squared_error(prediction, target) == pytest.approx(
        np.mean([squared_error(*frame) for frame in frames]), rel=1e-12
    )


def test_both_are_symmetric_and_do_not_care_for_turning_or_memory_order():
    prediction, target = pair(18, 33)
    turned = [np.asfortranarray(np.rot90(array)) for array in (prediction, target)]
    for figure in (psnr, ssim):
        assert figure(prediction, target) == pytest.approx(figure(target, prediction), abs=FP32)
        assert figure(*turned) == pytest.approx(figure(prediction, target), abs=FP32)


@pytest.mark.parametrize("figure", [psnr, squared_error, ssim])
def test_other_shapes_are_refused(figure):
    with pytest.raises(ValueError, match=r"\(4, 5, 3\) and \(5, 4, 3\)"):
        figure(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4, 3), np.uint8))


def test_the_weights_of_ms_ssim_are_those_of_its_paper():
    """Wang, Simoncelli and Bovik 2003, section 3.2: they sum to one."""
    assert SCALES == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    assert sum(SCALES) == pytest.approx(1, abs=2e-4)
    assert MS_SSIM_SIDE == 176
