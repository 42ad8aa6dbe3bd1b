"""VGG-16 and its two losses: equal to layers written out, to the lpips package, and to closed forms."""

import json
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.metrics.vgg import SIDE, gram, lpips, published_heads, published_vgg, resized, shared_pass
from tests.lpips_package import last_line, needs_lpips
from tests.model.test_layers import triangle
from tests.tolerances import BF16_FORWARD, EXACT, FP32

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # numbers in the published file
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
WIDTHS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def state():
    """A weight file like torchvision's, of random weights that keep the scale of features."""
    generator = torch.Generator().manual_seed(0)
    made = {"classifier.0.weight": torch.zeros(1), "classifier.0.bias": torch.zeros(1)}
    for number, (inputs, outputs) in zip(CONVOLUTIONS, pairwise(CHANNELS), strict=True):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        made[f"features.{number}.weight"] = weight * (2 / (9 * inputs)) ** 0.5
        made[f"features.{number}.bias"] = torch.randn(outputs, generator=generator) * 0.1
    return made


@pytest.fixture(scope="module")
def vgg(state):
    return published_vgg(state)


@pytest.fixture(scope="module")
def heads():
    generator = torch.Generator().manual_seed(1)
    return published_heads(
        {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for i, width in enumerate(WIDTHS)}
    )


def images(seed, *size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def layer_by_layer(state, images_B3HW):
    """The five layers as the literature names them, one operation after another."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])  # of LPIPS
    x = (images_B3HW - shift[:, None, None]) / scale[:, None, None]
    taps = {}
    names = [f"{block}_{i}" for block, count in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for i in range(1, count + 1)]
    for name, number in zip(names, CONVOLUTIONS, strict=True):
        if name.endswith("_1") and name != "1_1":
            x = F.max_pool2d(x, kernel_size=2, stride=2)
        x = F.relu(F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1))
        taps[name] = x
    return [taps[name] for name in ("1_2", "2_2", "3_3", "4_3", "5_3")]


@pytest.mark.parametrize("size", [(2, 3, 32, 48), (1, 3, 17, 31)])
def test_one_pass_gives_the_five_layers(vgg, state, size):
    found, expected = vgg(images(2, *size)), layer_by_layer(state, images(2, *size))
    assert len(found) == 5
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, rtol=FP32, atol=FP32 * b.abs().max().item())


def test_the_published_file_is_read_strictly(state):
    with pytest.raises(RuntimeError, match="Missing key"):
        published_vgg({key: value for key, value in state.items() if key != "features.28.bias"})


# Against the lpips package, in a process of its own: beside a CPU build of torch its torchvision cannot load unless two
# operators are declared for it, and other tests must not see that (docs/dependencies.md).
PACKAGE = """
import hashlib, json, sys
import torch
try:
    import lpips
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lpips", "torchvision")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import lpips
from pathlib import Path
from atoken.metrics import vgg

def compared(pretrained):
    '''Values of both, the largest gradient, and how far the gradients are apart.'''
    torch.manual_seed(0)
    package = lpips.LPIPS(pretrained=pretrained, pnet_rand=True, net="vgg", verbose=False)
    for head in package.lins:
        head.model[1].weight.data.abs_()
    for module in package.net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    state = {"features." + name.split(".", 1)[1]: value for name, value in package.net.state_dict().items()}
    network, heads = vgg.published_vgg(state), vgg.published_heads(package.state_dict())
    x, y = torch.rand(2, 2, 3, 48, 32) * 2 - 1
    y[1] = x[1] + 0.1 * torch.randn(3, 48, 32)
    x.requires_grad_()
    values = package(x, y).flatten(), vgg.lpips(*vgg.shared_pass(network, x, y), heads)
    gradient, other = (torch.autograd.grad(value.sum(), x)[0] for value in values)
    largest, apart = (each.abs().max().item() for each in (gradient, gradient - other))
    return [value.tolist() for value in values], largest, apart

file = Path(lpips.__file__).parent / "weights/v0.1/vgg.pth"
pinned = hashlib.sha256(file.read_bytes()).hexdigest() == vgg.HEADS_FILE.sha256
print(json.dumps([pinned, compared(pretrained=True), compared(pretrained=False)]))
"""


@needs_lpips
def test_lpips_is_that_of_the_lpips_package():
    pinned, *both_heads = json.loads(last_line(PACKAGE))
    assert pinned
    for (package, found), gradient, apart in both_heads:
        assert min(package) > 100 * FP32
        assert found == pytest.approx(package, rel=FP32, abs=FP32)
        assert apart <= FP32 * gradient


def test_lpips_is_what_its_paper_says(vgg, heads):
    prediction, target = (vgg(images(seed, 3, 3, 32, 32)) for seed in (3, 4))
    expected = torch.zeros(3, dtype=torch.double)
    for x, y, head_C in zip(prediction, target, heads, strict=True):
        difference = F.normalize(x.double(), dim=1) - F.normalize(y.double(), dim=1)
        expected += torch.einsum("bchw,c->b", difference**2, head_C.double()) / x[0, 0].numel()
    torch.testing.assert_close(lpips(prediction, target, heads).double(), expected, rtol=FP32, atol=FP32)


def test_gram_in_closed_form():
    prediction = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).reshape(1, 2, 1, 2)  # two channels at two places
    target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
    # F F^T is [[5, 3], [3, 9]] and [[4, 0], [0, 1]]; C H W is 4.
    closed = (1 + 9 + 9 + 64) / 16
    assert gram((prediction,), (target,)).tolist() == [closed]
    assert gram((prediction, prediction * 2), (target, target * 2)).tolist() == [closed * 17]


def test_gram_is_a_sum_over_pairs_of_channels(vgg):
    prediction, target = (vgg(images(seed, 2, 3, 32, 16)) for seed in (5, 6))
    expected = torch.zeros(2, dtype=torch.double)
    for x, y in zip(prediction, target, strict=True):
        a, b = (torch.einsum("bchw,bdhw->bcd", z.double(), z.double()) / z[0].numel() for z in (x, y))
        expected += torch.einsum("bcd,bcd->b", a - b, a - b)
    torch.testing.assert_close(gram(prediction, target).double(), expected, rtol=FP32, atol=FP32)


def test_gram_does_not_depend_on_the_size_of_a_texture(vgg):
    prediction, target = (torch.rand(1, 8, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8))
    tiled = (prediction.repeat(1, 1, 3, 2),), (target.repeat(1, 1, 3, 2),)
    torch.testing.assert_close(gram(*tiled), gram((prediction,), (target,)), rtol=FP32, atol=FP32)


def test_losses_are_symmetric_fp32_and_of_each_image_alone(vgg, heads):
    x, y = images(9, 2, 3, 32, 32), images(10, 2, 3, 32, 32)
    for loss in (lambda a, b: lpips(*shared_pass(vgg, a, b), heads), lambda a, b: gram(*shared_pass(vgg, a, b))):
        whole = loss(x, y)
        assert whole.shape == (2,)
        torch.testing.assert_close(loss(y, x), whole, rtol=FP32, atol=FP32)
        alone = torch.cat([loss(x[i : i + 1], y[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(alone, whole, rtol=FP32, atol=FP32)


def test_under_autocast_features_are_rounded_but_sums_are_not(vgg, heads):
    x, y = images(11, 2, 3, 32, 32), images(12, 2, 3, 32, 32)
    features = shared_pass(vgg, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = shared_pass(vgg, x, y)
        within = gram(*features), lpips(*features, heads), gram(*rounded), lpips(*rounded, heads)
    assert rounded[0][-1].dtype == torch.bfloat16
    without = gram(*features), lpips(*features, heads), gram(*rounded), lpips(*rounded, heads)
    assert all(torch.equal(*pair) and pair[0].dtype == torch.float32 for pair in zip(within, without, strict=True))
    torch.testing.assert_close(within[3], within[1], rtol=BF16_FORWARD, atol=0)


@pytest.mark.parametrize("dark", [False, True])
def test_a_image_is_at_no_distance_from_itself_and_the_gradient_is_zero(vgg, heads, dark):
    x = torch.full((1, 3, 32, 32), -1.0) if dark else images(13, 1, 3, 32, 32)
    prediction = x.clone().requires_grad_()
    features = shared_pass(vgg, prediction, x)
    for value in (lpips(*features, heads), gram(*features)):
        (gradient,) = torch.autograd.grad(value.sum(), prediction, retain_graph=True)
        assert value.item() == EXACT
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("other", [0.0, 1.0])
def test_the_gradient_is_finite_where_no_feature_fires(other):
    features, target = torch.zeros(1, 4, 2, 2, requires_grad=True), torch.full((1, 4, 2, 2), other)
    value = lpips((features,), (target,), (torch.ones(4),))
    (gradient,) = torch.autograd.grad(value.sum(), features)
    assert value.item() == pytest.approx(other, abs=FP32)
    assert torch.isfinite(gradient).all()


def test_the_gradient_is_that_of_the_reconstruction_alone(vgg, heads):
    prediction, target = images(14, 1, 3, 16, 16).requires_grad_(), images(15, 1, 3, 16, 16).requires_grad_()
    features = shared_pass(vgg, prediction, target)
    (lpips(*features, heads) + gram(*features)).sum().backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None
    assert all(parameter.grad is None for parameter in vgg.parameters())


@pytest.mark.parametrize("size", [(16, 40), (2 * SIDE, 232)])
def test_a_ramp_stays_a_ramp_when_resized(size):
    rows = torch.linspace(-1, 1, size[0])[:, None].expand(size).expand(1, 3, *size)
    made = resized(rows)
    assert made.shape == (1, 3, SIDE, SIDE)
    centres = (torch.arange(SIDE) + 0.5) / SIDE * size[0] - 0.5  # in pixels of the original
    inner = (centres > 2) & (centres < size[0] - 3)  # away from the border
    expected = -1 + 2 * centres / (size[0] - 1)
    torch.testing.assert_close(made[0, 1, inner, 7], expected[inner], rtol=0, atol=FP32)


def test_a_image_of_that_size_is_not_touched_by_resizing():
    made = images(16, 1, 3, SIDE, SIDE)
    assert torch.equal(resized(made), made)


def test_stripes_of_one_pixel_become_grey_when_resized_to_half():
    stripes = torch.tensor([1.0, -1.0]).repeat(SIDE).expand(1, 3, 2 * SIDE, 2 * SIDE)
    assert resized(stripes)[..., 2:-2].abs().max() <= FP32


@pytest.mark.parametrize("size", [(672, 448), (300, 224), (100, 500)])
def test_images_are_resized_by_triangles_as_wide_as_two_pixels_of_the_result(size):
    """Antialiased where they shrink, along one axis after the other."""
    image = images(5, 1, 3, *size).double()
    rows, columns = (triangle(side, SIDE) for side in size)
    torch.testing.assert_close(resized(image), (rows @ image @ columns.T).float(), rtol=0, atol=10 * FP32)
