"""Published networks: each equals a second, plain implementation on random weights, in the layout of its file."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.metrics.efficientnet import STAGES, EfficientNetLite0, published_efficientnet
from atoken.metrics.i3d import FEWEST, I3D, TRUNK, published_i3d
from atoken.metrics.stlpips import STLPIPS, BlurPool, published_stlpips
from tests.random_networks import i3d_variables, randomised, stlpips_state
from tests.tolerances import FP32


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding before and behind: ceil(size / stride) outputs, the odd one behind."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def conv3d(x: np.ndarray, variables: dict, statistics: dict, stride: int) -> torch.Tensor:
    """(B, T, H, W, C), channels last, as the file has it."""
    kernel = torch.tensor(variables["Conv_0"]["kernel"])
    pads = [one for axis in (3, 2, 1) for one in same(x.shape[axis], kernel.shape[axis - 1], stride)]
    channels_first = F.pad(x.movedim(-1, 1), pads)
    y = F.conv3d(channels_first, kernel.permute(4, 3, 0, 1, 2), stride=stride).movedim(1, -1)
    bias, mean, var = variables["BatchNorm_0"]["bias"], *(statistics["BatchNorm_0"][key] for key in ("mean", "var"))
    return torch.relu((y - torch.tensor(mean)) / (torch.tensor(var) + 1e-3).sqrt() + torch.tensor(bias))


def pool3d(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    pads = [one for axis in (3, 2, 1) for one in same(x.shape[axis], kernel[axis - 1], stride[axis - 1])]
    return F.max_pool3d(F.pad(x.movedim(-1, 1), pads), kernel, stride).movedim(1, -1)  # of zeros or more: ReLU's


def plain_i3d(video_BTHWC: torch.Tensor, variables: dict) -> dict[str, torch.Tensor]:
    """Every layer, channels last, from the variables as they are in the file."""
    x, layers = video_BTHWC, {}
    params, statistics = variables["params"], variables["batch_stats"]
    for name, sizes in TRUNK.items():
        if name.startswith("Conv"):
            x = conv3d(x, params[name], statistics[name], sizes[2][0])
        elif name.startswith("MaxPool"):
            x = pool3d(x, *sizes)
        else:

            def unit(y: torch.Tensor, key: str, name: str = name) -> torch.Tensor:
                return conv3d(y, params[name][f"Branch_{key}"], statistics[name][f"Branch_{key}"], 1)

            x = torch.cat(
                [
                    unit(x, "0/Conv3d_0a_1x1"),
                    unit(unit(x, "1/Conv3d_0a_1x1"), "1/Conv3d_0b_3x3"),
                    unit(unit(x, "2/Conv3d_0a_1x1"), "2/Conv3d_0b_3x3"),
                    unit(pool3d(x, (3, 3, 3), (1, 1, 1)), "3/Conv3d_0b_1x1"),
                ],
                dim=-1,
            )
        layers[name] = x.movedim(-1, 1)
    means = torch.stack([x[:, t : t + 2].mean((1, 2, 3)) for t in range(x.shape[1] - 1)], dim=1)
    last = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    logits = means @ torch.tensor(last["kernel"][0, 0, 0]) + torch.tensor(last["bias"])
    return layers | {"Logits": logits.mean(1)}


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
