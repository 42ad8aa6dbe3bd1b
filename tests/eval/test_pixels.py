"""PSNR and SSIM against scikit-image, MS-SSIM against torchmetrics and its paper, seams against closed forms.

And all of them in shards.
"""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from atoken.errors import AtokenError
from atoken.io import Image
from atoken.metrics.pixels import MS_SSIM_SIDE, SCALES, ms_ssim, similarity
from eval.contract import Item, Output
from eval.metrics.pixels import BlockingArtefacts, MsSsim, Psnr, Ssim
from tests.tolerances import EXACT, FP32

MEDIA = Image(np.zeros((1, 1, 3), np.uint8))
PAIRS = 200
ARTEFACTS, IN_TIME = "blocking artefacts", "blocking artefacts in time"


def sample(prediction, target, key="a", mask=None):
    prediction, target = (
        None if pixels is None else pixels[None] if pixels.ndim == 3 else pixels for pixels in (prediction, target)
    )
    return Output(Item(key, MEDIA), target=target, prediction=prediction, mask=mask)


def blocks(rng, height, width):
    """A few flat fields: where float32 is worst."""
    side = int(rng.integers(5, 40))
    small = rng.integers(0, 256, (height // side + 1, width // side + 1, 3))
    return small.repeat(side, 0).repeat(side, 1)[:height, :width]


def pair(seed, height, width):
    """Reconstructions and other pairs: noise, ramps, flat fields; near, far, inverse and unrelated."""
    rng = np.random.default_rng(seed)
    kind, change = seed % 3, seed // 3 % 4
    ramp = np.linspace(0, 255, width)[:, None] + rng.normal(0, 1 + rng.integers(9), (height, width, 3))
    makers = (lambda: rng.integers(0, 256, (height, width, 3)), lambda: ramp, lambda: blocks(rng, height, width))
    first = makers[kind]()
    near = first + rng.normal(0, rng.integers(1, 20), first.shape)
    second = (lambda: near, lambda: first + rng.integers(-40, 41), lambda: 255 - near, makers[kind])[change]()
    return tuple(np.clip(np.rint(pixels), 0, 255).astype(np.uint8) for pixels in (second, first))


def size_of(seed):
    """From the smallest with a whole window; every fifth is large enough for five scales."""
    low, high = (MS_SSIM_SIDE, MS_SSIM_SIDE + 40) if seed % 5 == 0 else (11, 80)
    return tuple(np.random.default_rng(1000 + seed).integers(low, high, 2).tolist())


def finished(metric, samples):
    state = metric.start()
    alone = metric.add(state, samples)
    return metric.finish(state), alone


def skimage_ssim(prediction, target, peak):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": peak}
    return structural_similarity(prediction, target, channel_axis=-1, **options)


@pytest.mark.parametrize("part", range(4))
def test_psnr_and_ssim_of_200_pairs_are_scikit_images(part):
    pairs = [pair(seed, *size_of(seed)) for seed in range(part, PAIRS, 4)]
    for metric, reference in (
        (Psnr(), lambda a, b: peak_signal_noise_ratio(b, a, data_range=255)),
        (Ssim(), lambda a, b: skimage_ssim(a, b, 255)),
    ):
        means, alone = finished(metric, [sample(*two) for two in pairs])
        with np.errstate(divide="ignore"):  # of pairs that are equal
            expected = [reference(*two) for two in pairs]
        assert np.ptp(expected) > 0.9
        assert [numbers[metric.name] for numbers in alone] == pytest.approx(expected, abs=FP32)
        assert means[metric.name] == pytest.approx(np.mean(expected), abs=FP32)


def written_out(prediction, target):
    """MS-SSIM as Wang et al. 2003 have it, in float64, colour by colour."""
    x, y = prediction.astype(float), target.astype(float)
    factors = []
    for _ in SCALES:
        mean_x, mean_y, xx, yy, xy = (blurred(values) for values in (x, y, x * x, y * y, x * y))
        likeness = (2 * (xy - mean_x * mean_y) + 58.5225) / (xx - mean_x**2 + yy - mean_y**2 + 58.5225)
        whole = likeness * (2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025)
        factors.append(likeness.mean())
        height, width = (side // 2 * 2 for side in x.shape[:2])
        x, y = (values[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3)) for values in (x, y))
    return np.prod(np.maximum([*factors[:-1], whole.mean()], 0) ** np.array(SCALES))


def blurred(values):
    """Windows of 11 x 11 that fit whole."""
    return gaussian_filter(values, 1.5, truncate=3.4, axes=(0, 1))[5:-5, 5:-5]


def by_torchmetrics(prediction, target):
    """Of the same parts in torchmetrics, whose own MS-SSIM has mirrored borders in the SSIM of its coarsest scale."""
    x, y = (torch.from_numpy(pixels).double().movedim(2, 0)[None] for pixels in (prediction, target))
    for scale in range(len(SCALES)):
        if scale:
            x, y = (torch.nn.functional.avg_pool2d(values, 2) for values in (x, y))
        yield structural_similarity_index_measure(x, y, data_range=255.0, return_contrast_sensitivity=True)[1].item()
    whole = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)[1]
    yield whole[..., 5:-5, 5:-5].mean().item()


def test_ms_ssim_of_pairs_that_are_large_enough_is_what_its_paper_says():
    pairs = [pair(seed, *size_of(seed)) for seed in range(0, PAIRS, 5)]
    means, alone = finished(MsSsim(), [sample(*two) for two in pairs])
    expected = [written_out(*two) for two in pairs]
    assert min(expected) < 0.1 < 0.95 < max(expected)
    assert [numbers["ms-ssim"] for numbers in alone] == pytest.approx(expected, abs=FP32)
    assert means["ms-ssim"] == pytest.approx(np.mean(expected), abs=FP32)


@pytest.mark.parametrize("seed", [15, 40, 50])
def test_ms_ssim_is_that_of_torchmetrics_parts(seed):
    two = pair(seed, *size_of(seed))
    *factors, _, coarsest = by_torchmetrics(*two)
    expected = np.prod(np.maximum([*factors, coarsest], 0) ** np.array(SCALES))
    assert expected > 0.01
    assert ms_ssim(*two) == pytest.approx(expected, abs=FP32)


@pytest.mark.parametrize(("dtype", "peak"), [(torch.float32, 1), (torch.float32, 255), (torch.float64, 65535)])
def test_similarity_of_other_dtypes_and_peaks_is_scikit_images(dtype, peak):
    for seed in range(12):
        two = [torch.from_numpy(pixels).to(dtype) * (peak / 255) for pixels in pair(seed, *size_of(seed))]
        expected = skimage_ssim(*(pixels.double().numpy() for pixels in two), peak)
        assert similarity(*two, peak).mean().item() == pytest.approx(expected, abs=FP32)


def test_similarity_has_its_own_gradient():
    two = [torch.rand(1, 12, 11, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *values: similarity(*values, 1.0), two, fast_mode=True)


def grey(error, *shape):
    """An image off by one step of 8 bits in each pixel, or by more: of squared error ``error`` ** 2."""
    target = np.full((*shape, 3), 100, np.uint8)
    return target + np.uint8(error), target


def test_both_conventions_of_psnr_in_closed_form():
    means, alone = finished(Psnr(), [sample(*grey(1, 5, 7)), sample(*grey(3, 20, 20))])
    first, second = 20 * math.log10(255), 20 * math.log10(255 / 3)
    assert first == pytest.approx(48.1308, abs=1e-4)
    assert [numbers["psnr"] for numbers in alone] == pytest.approx([first, second], rel=1e-12)
    assert means["psnr"] == pytest.approx((first + second) / 2, rel=1e-12)
    assert means["psnr of mean error"] == pytest.approx(10 * math.log10(255**2 / 5), rel=1e-12)


def test_the_psnr_of_a_video_is_of_its_error_over_all_frames_and_its_ssim_the_mean_of_frames():
    prediction, target = (np.stack(frames) for frames in zip(*(pair(seed, 30, 41) for seed in (0, 1, 2)), strict=True))
    frames = [sample(*two) for two in zip(prediction, target, strict=True)]
    (whole,), split = finished(Psnr(), [sample(prediction, target)])[1], finished(Psnr(), frames)[1]
    assert whole["error"] == pytest.approx(np.mean([numbers["error"] for numbers in split]), rel=1e-12)
    assert whole["psnr"] == pytest.approx(10 * math.log10(255**2 / whole["error"]), rel=1e-12)
    assert finished(Ssim(), [sample(prediction, target)])[0] == pytest.approx(finished(Ssim(), frames)[0], rel=1e-12)


def test_a_perfect_sample_is_inf_and_not_hidden():
    perfect, other = sample(grey(0, 4, 4)[0], grey(0, 4, 4)[1]), sample(*grey(1, 4, 4))
    means, alone = finished(Psnr(), [perfect, other])
    assert alone[0]["psnr"] == means["psnr"] == math.inf
    assert means["psnr of mean error"] == pytest.approx(10 * math.log10(2 * 255**2), rel=1e-12)
    assert finished(Psnr(), [perfect])[0] == {"psnr": math.inf, "psnr of mean error": math.inf}
    assert finished(Ssim(), [perfect])[0] == {"ssim": 1}
    large = pair(2, MS_SSIM_SIDE, MS_SSIM_SIDE + 1)[1]
    assert finished(MsSsim(), [sample(large, large)])[0] == {"ms-ssim": 1}


def test_full_frame_and_foreground_are_numbers_of_their_own():
    target = np.zeros((2, 4, 4, 3), np.uint8)
    mask = np.zeros((2, 4, 4), bool)
    mask[0, :2] = True
    prediction = target + np.uint8(4) * mask[..., None]
    means, (alone, without) = finished(
        Psnr(foreground=True), [sample(prediction, target, mask=mask), sample(*grey(1, 3, 3))]
    )
    assert (alone["error"], alone["error foreground"]) == (4, 16)
    assert "psnr foreground" not in without
    assert (
        means["psnr foreground"]
        == means["psnr of mean error foreground"]
        == pytest.approx(10 * math.log10(255**2 / 16), rel=1e-12)
    )
    assert means["psnr of mean error"] == pytest.approx(10 * math.log10(255**2 / 2.5), rel=1e-12)
    nothing = sample(prediction, target, mask=np.zeros_like(mask))
    assert math.isnan(finished(Psnr(foreground=True), [nothing])[0]["psnr foreground"])
    assert finished(Psnr(), [sample(prediction, target, mask=mask)])[0]["psnr"] == alone["psnr"]
    with pytest.raises(AtokenError, match=r"The mask of a must be bool of shape \(2, 4, 4\), not bool \(2, 4\)"):
        finished(Psnr(foreground=True), [sample(prediction, target, mask=mask[..., 0])])


METRICS = (Psnr(foreground=True), Ssim(), MsSsim(), BlockingArtefacts(16), BlockingArtefacts(2, in_time=True))


def several(large):
    """Samples of different sizes and lengths, some with a mask."""
    made = []
    for seed in range(9):
        height, width = (side + MS_SSIM_SIDE if large else side for side in (seed % 4, 20 + 3 * seed))
        height = max(height, 11)
        prediction, target = (
            np.stack(side) for side in zip(*(pair(seed + k, height, width) for k in range(1 + seed % 3)), strict=True)
        )
        mask = np.random.default_rng(seed).random(prediction.shape[:3]) > 0.5 if seed % 2 else None
        made.append(sample(prediction, target, str(seed), mask))
    return made


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_shards_and_order_do_not_matter_to_the_last_bit(metric):
    samples = several(metric.name == "ms-ssim")
    whole, alone = finished(metric, samples)
    assert all(math.isfinite(value) for value in whole.values())
    for cuts in ([2], [1, 4, 5], list(range(1, 9))):
        state = metric.start()
        order = np.random.default_rng(len(cuts)).permutation(len(samples))
        for part in np.split(order, cuts):
            shard = metric.start()
            assert metric.add(shard, [samples[place] for place in part]) == [alone[place] for place in part]
            state = metric.merge(state, shard)
        assert metric.finish(state) == whole


def test_blocking_artefacts_in_closed_form():
    target = np.broadcast_to(np.arange(0, 96, 2, dtype=np.uint8)[:, None], (48, 48, 3))  # steps of 2 between columns
    prediction = (
        target + (np.arange(48) // 16).astype(np.uint8)[:, None]
    )  # tiles of 16, each one brighter than the last
    assert finished(BlockingArtefacts(16), [sample(target, target)]) == (
        {ARTEFACTS: 1},
        [{ARTEFACTS: 1}],
    )
    assert finished(BlockingArtefacts(16), [sample(prediction, target)])[0][ARTEFACTS] == pytest.approx(
        (3 / 2) ** 2, rel=1e-12
    )
    turned = sample(*(np.ascontiguousarray(pixels.swapaxes(0, 1)) for pixels in (prediction, target)))
    assert finished(BlockingArtefacts(16), [turned])[0][ARTEFACTS] == pytest.approx((3 / 2) ** 2, rel=1e-12)
    assert (
        finished(BlockingArtefacts(12), [sample(prediction, target)])[0][ARTEFACTS] < 1
    )  # steps elsewhere do not count as steps at the borders

    steps = np.arange(0, 24, 2, dtype=np.uint8)[:, None, None, None] + np.zeros((12, 3, 3, 3), np.uint8)
    blocky = steps + (np.arange(12) // 4).astype(np.uint8)[:, None, None, None]
    assert finished(BlockingArtefacts(4, in_time=True), [sample(blocky, steps)])[0][IN_TIME] == pytest.approx(
        (3 / 2) ** 2
    )


def test_blocking_artefacts_are_of_all_samples_with_borders_together():
    near, far = sample(*pair(0, 40, 50)), sample(*pair(4, 33, 20))
    flat, small = sample(*grey(1, 40, 40)), sample(*pair(3, 16, 16))
    means, alone = finished(BlockingArtefacts(16), [near, small, far, flat])
    assert [bool(numbers) for numbers in alone] == [True, False, True, False]
    assert means[ARTEFACTS] == pytest.approx(finished(BlockingArtefacts(16), [far, near])[0][ARTEFACTS], rel=1e-12)
    assert math.isnan(finished(BlockingArtefacts(16), [small, flat])[0][ARTEFACTS])
    step = np.zeros((4, 32, 3), np.uint8)
    step[:, 16:] = 9
    assert finished(BlockingArtefacts(16), [sample(step, pair(1, 4, 32)[1])])[0][ARTEFACTS] == math.inf
    with pytest.raises(AtokenError, match="Tiles of 1 have borders only"):
        BlockingArtefacts(1)


def test_five_scales_need_176_pixels():
    with pytest.raises(AtokenError, match="MS-SSIM needs sides of 176 pixels or more, and a is 175x300; prepare"):
        finished(MsSsim(), [sample(*grey(1, 300, 175))])
    assert 0 < ms_ssim(*pair(1, 176, 190)) < 1
    opposite = np.random.default_rng(0).integers(0, 256, (176, 176, 3), dtype=np.uint8)
    assert ms_ssim(255 - opposite, opposite) == EXACT  # contrast that is turned round is no likeness


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_what_is_no_pair_of_uint8_pixels_is_refused(metric):
    prediction, target = grey(1, 4, 5)
    for dtype in (bool, np.int8, np.uint16, np.float32, np.float64):
        with pytest.raises(AtokenError, match=r"The pixels of a must be uint8 of shape .*; convert them\."):
            finished(metric, [sample(prediction.astype(dtype), target.astype(dtype))])
    with pytest.raises(AtokenError, match=r"of a has shape \(1, 4, 4, 3\) instead of \(1, 4, 5, 3\)"):
        finished(metric, [sample(prediction[:, :4], target)])
    with pytest.raises(AtokenError, match="no reconstruction of a to measure"):
        finished(metric, [sample(None, target)])
    with pytest.raises(AtokenError, match="uint8 of shape"):
        finished(metric, [sample(prediction[:0], target[:0])])
