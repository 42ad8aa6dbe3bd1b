"""Moments against numpy, Frechet distances against scipy, closed forms, and the data's own singular values."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from atoken.errors import AtokenError
from atoken.metrics.frechet import Gaussian, frechet_distance, one_thread
from eval.metrics.features import FeatureMetric, Frechet, FrechetMetric
from eval.metrics.moments import add_rows, gaussian, merge_rows
from tests.eval.plain_network import PlainNetwork, images, samples
from tests.tolerances import MOMENTS, SHARDS


def rows(seed, count, width):
    """Correlated features."""
    rng = np.random.default_rng(seed)
    return rng.normal(1, 2, (count, width)) @ rng.normal(0, 1, (width, width)) / math.sqrt(width)


def summed(parts):
    state = {}
    for part in parts:
        add_rows(state, "x", part)
    return state


def of(data):
    return gaussian(summed([data]), "x")


def diagonal(mean, deviations):
    return Gaussian(np.asarray(mean, float), np.diag(np.square(deviations)), 1000)


@pytest.mark.parametrize("width", [1, 5, 128, 129, 300])
def test_moments_are_numpys(width):
    data, found = rows(1, 150, width), of(rows(1, 150, width))  # two blocks, and rows that wait
    np.testing.assert_allclose(found.mean_D, data.mean(0), rtol=SHARDS, atol=SHARDS)
    np.testing.assert_allclose(
        found.covariance_DD, np.cov(data, rowvar=False).reshape(width, width), rtol=SHARDS, atol=SHARDS
    )
    assert found.items == 150
    assert (found.covariance_DD == found.covariance_DD.T).all()


def test_batches_do_not_matter_to_the_last_bit():
    data = rows(2, 150, 140).astype(np.float32)
    whole = summed([data])
    for size in (1, 7, 60, 64, 100):
        parts = summed([data[first : first + size] for first in range(0, 150, size)])
        assert all((parts[key] == whole[key]).all() for key in whole)


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_merged_shards_are_the_single_pass(shards):
    data = rows(3, 397, 34)
    merged = {}
    for part in np.array_split(data, shards):
        merged = merge_rows(merged, summed([part]), "x")
    found, whole = gaussian(merged, "x"), of(data)
    np.testing.assert_allclose(found.covariance_DD, whole.covariance_DD, rtol=SHARDS, atol=SHARDS)
    np.testing.assert_allclose(found.mean_D, whole.mean_D, rtol=SHARDS, atol=SHARDS)
    distance = frechet_distance(found, of(rows(4, 80, 34))).value
    assert distance == pytest.approx(frechet_distance(whole, of(rows(4, 80, 34))).value, rel=SHARDS)
    assert merge_rows({}, {}, "x") == {}


def test_a_merge_leaves_its_shards_as_they_were_and_goes_on():
    data = rows(3, 90, 5)
    first, second = summed([data[:40]]), summed([data[40:70]])
    before = {key: array.copy() for key, array in first.items()}
    for merged in (merge_rows(first, second, "x"), merge_rows(merge_rows({}, first, "x"), second, "x")):
        add_rows(merged, "x", data[70:])
        np.testing.assert_allclose(gaussian(merged, "x").covariance_DD, of(data).covariance_DD, rtol=SHARDS)
    assert all((first[key] == before[key]).all() for key in before)


@pytest.mark.parametrize("width", [2, 11, 64])
def test_the_distance_is_scipys(width):
    for seed in range(5):
        prediction, target = of(rows(seed, 200, width)), of(rows(seed + 50, 170, width) * 1.5 + 0.3)
        root = scipy.linalg.sqrtm(prediction.covariance_DD @ target.covariance_DD)
        mean = np.square(prediction.mean_D - target.mean_D).sum()
        rest = np.trace(prediction.covariance_DD + target.covariance_DD) - 2 * np.trace(root).real
        found = frechet_distance(prediction, target)
        assert found.mean == pytest.approx(mean, rel=MOMENTS)
        assert found.covariance == pytest.approx(rest, rel=MOMENTS)
        assert found.value == pytest.approx(mean + rest, rel=MOMENTS)


def test_fifty_diagonal_gaussians_in_closed_form():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        width = int(rng.integers(1, 30))
        means, deviations = rng.normal(0, 1, (2, width)), rng.uniform(0.01, 3, (2, width))
        deviations[:, rng.random(width) < 0.2] = 0  # singular, too
        found = frechet_distance(diagonal(means[0], deviations[0]), diagonal(means[1], deviations[1]))
        assert found.mean == pytest.approx(np.square(means[0] - means[1]).sum(), rel=MOMENTS)
        assert found.covariance == pytest.approx(np.square(deviations[0] - deviations[1]).sum(), rel=MOMENTS)


def test_two_dimensions_in_closed_form():
    """Tr (C C')^(1/2) of 2 x 2 is sqrt(tr(C C') + 2 sqrt(det(C C')))."""
    for seed in range(20):
        prediction, target = of(rows(seed, 30, 2)), of(rows(seed + 99, 30, 2))
        product = prediction.covariance_DD @ target.covariance_DD
        root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
        wanted = np.trace(prediction.covariance_DD + target.covariance_DD) - 2 * root
        assert frechet_distance(prediction, target).covariance == pytest.approx(wanted, rel=MOMENTS)


def test_singular_covariances_by_the_singular_values_of_the_data():
    """With C = X^T X / (n - 1), the trace is the nuclear norm of X X'^T over the root of both n - 1."""
    for prediction, target in ((rows(1, 20, 90), rows(2, 35, 90)), (rows(3, 8, 60) * 100, rows(4, 300, 60))):
        centred = [one - one.mean(0) for one in (prediction, target)]
        root = np.linalg.norm(centred[0] @ centred[1].T, "nuc") / math.sqrt((len(prediction) - 1) * (len(target) - 1))
        wanted = np.square(centred[0]).sum() / (len(prediction) - 1) + np.square(centred[1]).sum() / (len(target) - 1)
        assert frechet_distance(of(prediction), of(target)).covariance == pytest.approx(wanted - 2 * root, rel=MOMENTS)


@pytest.mark.parametrize(("count", "scale"), [(500, 1), (30, 1), (30, 1000), (2, 1)])
def test_a_set_against_itself_is_zero(count, scale):
    one = of(rows(7, count, 120) * scale)
    for seed in range(20):  # half of them would be below zero by rounding
        again = of(rows(seed, count, 120) * scale)
        assert 0 <= frechet_distance(again, again).covariance <= MOMENTS * scale**2
    assert frechet_distance(one, one).value <= MOMENTS
    shuffled = of(np.random.default_rng(0).permutation(rows(7, count, 120) * scale))
    assert frechet_distance(one, shuffled).value <= MOMENTS * scale**2


def test_the_distance_is_symmetric_and_does_not_see_a_rotation_or_a_shift():
    prediction, target = rows(1, 60, 20), rows(2, 70, 20)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(20, 20)))[0]
    found = frechet_distance(of(prediction), of(target)).value
    assert frechet_distance(of(target), of(prediction)).value == pytest.approx(found, rel=SHARDS)
    assert frechet_distance(of(prediction @ turn + 5), of(target @ turn + 5)).value == pytest.approx(found, rel=MOMENTS)
    shifted = frechet_distance(of(prediction), of(prediction + 3))
    assert shifted.mean == pytest.approx(9 * 20, rel=MOMENTS)
    assert shifted.covariance <= MOMENTS


def test_what_is_not_finite_stays_so():
    data = rows(1, 30, 6)
    data[4, 2] = np.nan
    assert math.isnan(frechet_distance(of(data), of(rows(2, 30, 6))).value)
    assert math.isnan(frechet_distance(of(rows(1, 1, 6)), of(rows(2, 30, 6))).value)


def test_other_widths_are_refused():
    with pytest.raises(AtokenError, match="6 and of 7 numbers"):
        frechet_distance(of(rows(1, 9, 6)), of(rows(1, 9, 7)))
    with pytest.raises(AtokenError, match="7 numbers wide after 6"):
        summed([rows(1, 9, 6), rows(1, 9, 7)])
    with pytest.raises(AtokenError, match="cannot be compared"):
        Frechet("gfid", reference=of(rows(1, 9, 6))).fold({}, "prediction", rows(1, 2, 5), [])


def test_the_number_of_threads_is_left_as_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread():
            assert torch.get_num_threads() == 1
        frechet_distance(of(rows(1, 9, 6)), of(rows(1, 9, 6)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_rfid_and_sfid_of_reconstructions():
    target = images(1, 40)
    prediction = np.clip(target + np.random.default_rng(2).normal(4, 30, target.shape), 0, 255).astype(np.uint8)
    network = PlainNetwork()
    metric = FeatureMetric("rfid", network, [Frechet("rfid"), Frechet("sfid", "spatial")])
    state = metric.start()
    assert metric.add(state, samples(prediction, target)) == [{}] * 40
    numbers, features = metric.finish(state), [network.features(side[:, None]) for side in (prediction, target)]
    for name, kind, width in (("rfid", "pooled", 12), ("sfid", "spatial", 27)):
        wanted = frechet_distance(*(of(side[kind]) for side in features))
        assert numbers[name] == wanted.value == numbers[f"{name} mean"] + numbers[f"{name} covariance"] > 0
        assert numbers[f"{name} items"] == 40 > width
        assert f"{name} items lacking" not in numbers
    assert metric.record["weights"] == network.checksum
    assert metric.record["resize"] == "none"


def test_few_items_are_warned_of_and_equal_ones_have_no_distance():
    metric = FrechetMetric("rfid", PlainNetwork())
    state = metric.start()
    metric.add(state, samples(images(1, 10), images(1, 10)))
    numbers = metric.finish(state)
    assert numbers["rfid"] <= MOMENTS
    assert numbers["rfid items lacking"] == 3  # 13 items span 12 dimensions


def test_shards_of_a_metric_merge_in_order():
    metric = FrechetMetric("rfid", PlainNetwork())
    every = samples(images(1, 30), images(2, 30))
    whole, states = metric.start(), []
    metric.add(whole, every)
    for first in (0, 12, 24):
        states.append(metric.start())
        metric.add(states[-1], every[first : first + 12])
    merged = metric.merge(metric.merge(metric.merge(metric.start(), states[0]), states[1]), states[2])
    for name, number in metric.finish(merged).items():
        assert number == pytest.approx(metric.finish(whole)[name], rel=SHARDS)


def test_no_items_are_not_a_number():
    metric = FrechetMetric("rfid", PlainNetwork())
    assert math.isnan(metric.finish(metric.start())["rfid"])


def test_a_single_item_leaves_the_distance_out():
    metric, state = FrechetMetric("rfid", PlainNetwork()), {}
    metric.add(state, samples(images(1, 1), images(2, 1)))
    with pytest.raises(AtokenError, match="rfid needs 2 items or more, and there is 1"):
        metric.finish(state)


def test_pixels_that_do_not_count_are_black_on_both_sides():
    target, prediction = images(1, 20), images(1, 20)
    prediction[:, :6] = 255 - prediction[:, :6]
    metric = FrechetMetric("rfid", PlainNetwork())
    state, seen = metric.start(), samples(prediction, target)
    mask = np.ones((1, 12, 12), bool)
    mask[:, :6] = False
    metric.add(state, [type(one)(one.item, one.target, one.prediction, mask) for one in seen])
    assert metric.finish(state)["rfid"] <= MOMENTS


def test_a_network_that_cannot_serve_is_refused_at_once():
    with pytest.raises(AtokenError, match="sfid reads spatial features"):
        FeatureMetric("generation", PlainNetwork(kinds=["pooled"]), [Frechet("sfid", "spatial")])


def test_videos_have_one_row_each():
    class OfVideos(PlainNetwork):
        videos = True

        def features(self, frames):
            return {"pooled": np.array([super(OfVideos, self).features([video])["pooled"].mean(0) for video in frames])}

    metric = FrechetMetric("rfvd", OfVideos(kinds=["pooled"]))
    state = metric.start()
    videos = [one.reshape(4, 12, 12, 3) for one in np.split(images(5, 80), 20)]
    made = [type(one)(one.item, video, video) for one, video in zip(samples(images(1, 20)), videos, strict=True)]
    metric.add(state, made)
    assert metric.finish(state)["rfvd items"] == 20
    assert metric.finish(state)["rfvd"] <= MOMENTS
