"""Published networks: each equals a second, plain implementation on random weights, in the layout of its file."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.metrics.efficientnet import STAGES, EfficientNetLite0, published_efficientnet
from atoken.metrics.i3d import FEWEST, I3D, published_i3d
from atoken.metrics.stlpips import STLPIPS, BlurPool, published_stlpips
from tests.plain_i3d import plain_i3d, same
from tests.random_networks import i3d_variables, randomised, stlpips_state
from tests.tolerances import FP32


@torch.inference_mode()
def test_i3d_equals_a_plain_one_in_every_layer():
    variables = i3d_variables()
    video = torch.randn(1, FEWEST, 224, 224, 3, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    expected = plain_i3d(video, variables)
    for name, actual in published_i3d(variables).layers(video.movedim(-1, 1)):
        torch.testing.assert_close(actual, expected[name], rtol=0, atol=FP32 * float(expected[name].abs().max()))


def test_i3d_has_the_published_number_of_parameters_without_gains():
    parameters = dict(I3D().named_parameters())
    gains = sum(value.numel() for name, value in parameters.items() if name.endswith("norm.weight"))
    assert sum(value.numel() for value in parameters.values()) - gains == 12_697_264 - gains


@torch.inference_mode()
def test_efficientnet_equals_a_plain_one():
    network = randomised(EfficientNetLite0())
    state = dict(network.state_dict())
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(3)) * 2 - 1

    def unit(x: torch.Tensor, conv: str, norm: str, stride: int = 1, act: bool = True) -> torch.Tensor:
        weight = state[f"{conv}.weight"]
        groups = x.shape[1] if weight.shape[1] == 1 and x.shape[1] > 1 else 1
        pads = [one for axis in (3, 2) for one in same(x.shape[axis], weight.shape[axis], stride)]
        y = F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)
        gain, bias, mean, var = (
            state[f"{norm}.{key}"][:, None, None] for key in ("weight", "bias", "running_mean", "running_var")
        )
        y = (y - mean) / (var + 1e-3).sqrt() * gain + bias
        return y.clamp(0, 6) if act else y

    x = unit(((image + 1) * 127.5 - 127) / 128, "_conv_stem", "_bn0", 2)
    number, channels = 0, 32
    for expansion, _, stride, width, count in STAGES:
        for index in range(count):
            block, step = f"_blocks.{number}", 1 if index else stride
            y = unit(x, f"{block}._expand_conv", f"{block}._bn0") if expansion > 1 else x
            y = unit(y, f"{block}._depthwise_conv", f"{block}._bn1", step)
            y = unit(y, f"{block}._project_conv", f"{block}._bn2", act=False)
            x = x + y if step == 1 and channels == width else y
            number, channels = number + 1, width
    pooled = unit(x, "_conv_head", "_bn1").mean((2, 3))
    logits = pooled @ state["_fc.weight"].T + state["_fc.bias"]
    features, actual = published_efficientnet(state)(image)
    torch.testing.assert_close(features, pooled, rtol=0, atol=FP32 * float(pooled.abs().max()))
    torch.testing.assert_close(actual, logits, rtol=0, atol=FP32 * float(logits.abs().max()))


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
@torch.inference_mode()
def test_st_lpips_blurs_before_it_subsamples(trunk):
    loaded = published_stlpips(stlpips_state(trunk), trunk)
    draw = torch.Generator().manual_seed(4)
    image = torch.rand(2, 3, 64, 72, generator=draw) * 2 - 1
    noisy = (image + 0.3 * torch.randn(image.shape, generator=draw)).clamp(-1, 1)
    assert torch.equal(loaded(image, image), torch.zeros(2))
    assert (loaded(noisy, image) > 0).all()
    # 64 -> 58 by the kernel of 11, 30 by blurring, 28 by the window of 3, 15; and 64 -> 63 by the window of 2, 33.
    assert loaded.features(image)[1].shape[2:] == {"alex": (15, 17), "vgg": (33, 37)}[trunk]


def test_blurring_is_a_weighted_mean_of_every_second_place():
    blur = BlurPool(2)
    blur.filt = (torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16).expand(2, 1, 3, 3)
    x = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(5))
    reflected = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for row in range(4):
        for column in range(4):
            window = reflected[0, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected = torch.tensor((window * weights).sum((1, 2)))
            torch.testing.assert_close(blur(x)[0, :, row, column].double(), expected, rtol=0, atol=FP32)


def test_distances_have_gradients_in_the_prediction_alone():
    network = randomised(STLPIPS("alex"))
    prediction, target = (torch.rand(1, 3, 40, 40, requires_grad=True) for _ in range(2))
    network(prediction, target).sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None
