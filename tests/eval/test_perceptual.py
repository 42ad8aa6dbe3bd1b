"""LPIPS of samples: equal to plain float64 arithmetic and to the lpips package, and its weights found or asked for."""

import hashlib
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.errors import AtokenError, CheckpointError
from atoken.io import Image
from atoken.metrics import vgg as vgg_module
from atoken.metrics.stlpips import STLPIPS_FILES, published_stlpips
from eval.contract import Item, Output
from eval.measures import PIXELS, Needs
from eval.metrics.perceptual import Lpips
from tests.lpips_package import last_line, needs_lpips
from tests.pretrain.small_teachers import small_heads, small_vgg
from tests.random_networks import pinned, stlpips_state
from tests.tolerances import EXACT, FP32

MEDIA = Image(np.zeros((1, 1, 3), np.uint8))


@pytest.fixture(scope="module")
def metric():
    return Lpips(small_vgg(), small_heads(), {"vgg.pth": "c0ffee"})


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def measured(metric, prediction, target):
    return metric.measure(Output(Item("a", MEDIA), prediction=prediction, target=target))["lpips"]


def written_out(network, heads, *frames_HW3):
    """LPIPS in float64, one operation after another, of frames in [0, 255]."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet
    x = torch.stack([torch.from_numpy(frame).double() / 255 for frame in frames_HW3])
    shift, scale = (torch.tensor(each).double() for each in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    assert torch.allclose((1 + shift) / 2, mean.double(), atol=1e-3)
    assert torch.allclose(scale / 2, deviation.double(), atol=1e-3)
    x = ((2 * x - 1 - shift) / scale).movedim(-1, 1)
    distance, head = 0.0, iter(heads)
    for layer in [*network.features, None]:
        if layer is None or isinstance(layer, torch.nn.MaxPool2d):
            first, second = F.normalize(x, dim=1)
            distance += (next(head).double()[:, None, None] * (first - second) ** 2).sum(0).mean().item()
            x = x if layer is None else F.max_pool2d(x, 2)
        elif isinstance(layer, torch.nn.Conv2d):
            x = F.conv2d(x, layer.weight.double(), layer.bias.double(), padding=1)
        else:
            x = x.clamp(min=0)
    return distance


@pytest.mark.parametrize("size", [(16, 16), (17, 50), (64, 48)], ids=str)
def test_it_is_its_paper_in_float64(metric, size):
    prediction, target = pixels(0, 1, *size), pixels(1, 1, *size)
    expected = written_out(small_vgg(), small_heads(), prediction[0], target[0])
    assert expected > 0.05
    assert measured(metric, prediction, target) == pytest.approx(expected, abs=FP32)


def test_nothing_is_at_no_distance_and_order_does_not_matter(metric):
    prediction, target = pixels(2, 1, 40, 32), pixels(3, 1, 40, 32)
    assert measured(metric, prediction, prediction.copy()) == EXACT
    assert measured(metric, prediction, target) == pytest.approx(measured(metric, target, prediction), abs=FP32)
    dark = np.zeros_like(prediction)
    assert measured(metric, dark, dark) == EXACT
    assert measured(metric, dark + np.uint8(1), dark) > 0


def test_a_video_is_the_mean_of_its_frames_and_shards_do_not_matter(metric):
    prediction, target = pixels(4, 3, 24, 20), pixels(5, 3, 24, 20)
    alone = [measured(metric, *frames) for frames in zip(prediction[:, None], target[:, None], strict=True)]
    assert measured(metric, prediction, target) == pytest.approx(np.mean(alone), rel=1e-12)

    samples = [
        Output(
            Item(str(seed), MEDIA),
            prediction=pixels(seed, 1 + seed % 2, 18, 20),
            target=pixels(9, 1 + seed % 2, 18, 20),
        )
        for seed in range(6)
    ]
    whole, merged = metric.start(), metric.start()
    metric.add(whole, samples)
    for part in (samples[4:], samples[:1], samples[1:4]):
        shard = metric.start()
        metric.add(shard, part)
        merged = metric.merge(merged, shard)
    assert metric.finish(merged) == metric.finish(whole)


def test_the_record_names_network_and_checksums(metric):
    assert metric.record["network"] == "LPIPS v0.1, VGG-16, fp32"
    assert metric.record["vgg.pth"] == "c0ffee"


def test_small_images_and_other_ranges_are_refused(metric):
    with pytest.raises(
        AtokenError, match="LPIPS needs sides of 16 pixels or more, and a is 15x30; prepare larger ones"
    ):
        measured(metric, pixels(0, 1, 30, 15), pixels(0, 1, 30, 15))
    with pytest.raises(AtokenError, match="must be uint8"):
        measured(metric, *(pixels(0, 1, 30, 30).astype(np.float32) / 255,) * 2)


def says(folder):
    with pytest.raises(CheckpointError) as error:
        PIXELS["lpips"](Needs(None, weights=folder))
    assert str(error.value).endswith("or measure without LPIPS.")
    assert "--" not in str(error.value)
    return str(error.value)


def test_a_weight_file_that_is_missing_or_another_one_is_one_sentence(tmp_path):
    assert "vgg16-397923af.pth is needed" in says(None)
    assert "download https://download.pytorch.org/models/vgg16-397923af.pth" in says(tmp_path)
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"another")
    assert "is not the published file" in says(tmp_path)


def test_published_files_are_loaded_and_their_checksums_recorded(tmp_path, monkeypatch):
    widths = [3, *(width for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)) for _ in range(count))]
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    generator = torch.Generator().manual_seed(0)
    vgg = {f"features.{place}.bias": torch.zeros(width) for place, width in zip(places, widths[1:], strict=True)}
    for place, (before, after) in zip(places, pairwise(widths), strict=True):
        vgg[f"features.{place}.weight"] = (
            torch.randn(after, before, 3, 3, generator=generator) * (2 / 9 / before) ** 0.5
        )
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate((64, 128, 256, 512, 512))}
    sums = {}
    for name, state in (("VGG_FILE", vgg), ("HEADS_FILE", heads)):
        pinned = getattr(vgg_module, name)
        torch.save(state, tmp_path / pinned.name)
        sums[pinned.name] = hashlib.sha256((tmp_path / pinned.name).read_bytes()).hexdigest()
        monkeypatch.setattr(vgg_module, name, replace(pinned, sha256=sums[pinned.name]))
    metric = PIXELS["lpips"](Needs(None, weights=tmp_path))
    assert {name: metric.record[name] for name in sums} == sums
    assert measured(metric, pixels(6, 1, 16, 16), pixels(7, 1, 16, 16)) > 0


def test_st_lpips_is_its_network_frame_by_frame(tmp_path, monkeypatch):
    state = stlpips_state("alex")
    file = pinned(STLPIPS_FILES["alex"], tmp_path, lambda opened: torch.save(state, opened))
    monkeypatch.setitem(STLPIPS_FILES, "alex", file)
    metric = PIXELS["ST-LPIPS"](Needs(None, weights=tmp_path))
    assert metric.record["network"] == "ST-LPIPS, shift-tolerant AlexNet, fp32"
    assert metric.record["alex_shift_tolerant.pth"] == file.sha256
    pair = pixels(0, 2, 32, 40), pixels(1, 2, 32, 40)

    def value(*videos):
        return metric.measure(Output(Item("a", MEDIA), *videos))["ST-LPIPS"]

    values = (torch.from_numpy(video).movedim(-1, 1) / 127.5 - 1 for video in pair)
    wanted = published_stlpips(state, "alex")(*values).mean().item()
    assert wanted > 100 * FP32
    assert value(*pair) == pytest.approx(wanted, rel=FP32)
    assert value(pair[0], pair[0].copy()) == EXACT
    with pytest.raises(AtokenError, match="ST-LPIPS needs sides of 32 pixels or more, and a is 40x31"):
        value(*(video[:, :31] for video in pair))


def test_st_lpips_says_how_its_weights_are_fetched():
    with pytest.raises(CheckpointError, match="run `atoken fetch st-lpips`"):
        PIXELS["ST-LPIPS"](Needs(None))


# In a process of its own: the step that makes torchvision importable must not be seen by other tests.
PACKAGE = """
import json
import numpy as np, torch
from eval.torchvision_step import mend_torchvision
assert mend_torchvision()
import lpips
from atoken.io import Image
from atoken.metrics.vgg import published_heads, published_vgg
from eval.contract import Item, Output
from eval.metrics.perceptual import Lpips

torch.manual_seed(0)
package = lpips.LPIPS(pretrained=True, pnet_rand=True, net="vgg", verbose=False)
for module in package.net.modules():
    if isinstance(module, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
state = {"features." + name.split(".", 1)[1]: value for name, value in package.net.state_dict().items()}
metric = Lpips(published_vgg(state), published_heads(package.state_dict()), {})
rng, found = np.random.default_rng(0), []
for size in ((1, 16, 16, 3), (1, 33, 47, 3), (2, 48, 32, 3)):
    y = rng.integers(0, 256, size, dtype=np.uint8)
    x = np.clip(y + rng.normal(0, 30, size), 0, 255).astype(np.uint8)
    sample = Output(Item("a", Image(y[0])), prediction=x, target=y)
    tensors = (torch.from_numpy(side).movedim(-1, 1) / 255 for side in (x, y))
    with torch.no_grad():
        expected = package(*tensors, normalize=True).mean().item()
    found.append([metric.measure(sample)["lpips"], expected])
print(json.dumps(found))
"""


@needs_lpips
def test_it_is_the_lpips_package_with_the_same_network():
    for found, package in json.loads(last_line(PACKAGE)):
        assert package > 100 * FP32
        assert found == pytest.approx(package, abs=FP32)
