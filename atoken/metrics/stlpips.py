"""ST-LPIPS: a perceptual distance that a shift of a few pixels does not move (Ghildyal and Liu 2022, arXiv 2207.13686).

LPIPS on trunks that blur before they subsample (Zhang 2019, arXiv 1904.11486). Trunks and heads are those of the
Python package ``stlpips-pytorch`` (``atoken fetch st-lpips``). Its numbers are not LPIPS. Letters: ``B`` images,
``C`` channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.errors import CheckpointError
from atoken.metrics.pinned import PinnedFile, channels_last
from atoken.metrics.vgg import SCALE, SHIFT, Features, lpips

Trunk = Literal["alex", "vgg"]
HOW = "run `atoken fetch st-lpips`"
STLPIPS_FILES: dict[Trunk, PinnedFile] = {
    "alex": PinnedFile(
        "alex_shift_tolerant.pth",
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        "ST-LPIPS on AlexNet",
        HOW,
    ),
    "vgg": PinnedFile(
        "vgg_shift_tolerant.pth",
        "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
        "ST-LPIPS on VGG-16",
        HOW,
    ),
}


class BlurPool(nn.Module):
    """Every second pixel of the image blurred by (1, 2, 1), which is reflected by 2 pixels at its edges."""

    filt: Tensor  # (C, 1, 3, 3)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, (H + 1) // 2 + 1, (W + 1) // 2 + 1)."""
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


def _conv(inputs: int, outputs: int, kernel: int, padding: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding)


def _alex() -> list[list[nn.Module]]:
    """The layers of each slice; features are what leaves a slice."""
    pooled = [nn.MaxPool2d(3, stride=1)]
    return [
        [_conv(3, 64, 11, 2), BlurPool(64), nn.ReLU()],
        [*pooled, BlurPool(64), _conv(64, 192, 5, 2), nn.ReLU()],
        [*pooled, BlurPool(192), _conv(192, 384, 3, 1), nn.ReLU()],
        [_conv(384, 256, 3, 1), nn.ReLU()],
        [_conv(256, 256, 3, 1), nn.ReLU()],
    ]


def _vgg() -> list[list[nn.Module]]:
    slices: list[list[nn.Module]] = []
    channels = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers: list[nn.Module] = [nn.MaxPool2d(2, stride=1), BlurPool(channels)] if slices else []
        for _ in range(convolutions):
            layers += [_conv(channels, width, 3, 1), nn.ReLU()]
            channels = width
        slices.append(layers)
    return slices


class STLPIPS(nn.Module):
    """Distances (B,) of images (B, 3, H, W) in [-1, 1], 32 pixels a side or more; a frozen network of either trunk."""

    def __init__(self, trunk: Trunk = "alex") -> None:
        super().__init__()
        slices = {"alex": _alex, "vgg": _vgg}[trunk]()
        self.slices = nn.ModuleList(nn.Sequential(*layers) for layers in slices)
        widths = [[layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)][-1] for layers in slices]
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(width)) for width in widths)

    def features(self, images_B3HW: Tensor) -> Features:
        """(B, C, H', W') of each slice."""
        shift, scale = (images_B3HW.new_tensor(each, dtype=torch.float32)[:, None, None] for each in (SHIFT, SCALE))
        x, features = (images_B3HW.float() - shift) / scale, []
        x = x.contiguous(memory_format=torch.channels_last)  # as the weights are
        for layers in self.slices:
            x = layers(x)
            features.append(x)
        return tuple(features)

    def forward(self, prediction_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
        """(B,) fp32; gradients flow into the prediction alone."""
        with torch.no_grad():
            target = self.features(target_B3HW)
        return lpips(self.features(prediction_B3HW), target, tuple(self.heads))


def load_stlpips(folder: str | Path | None, trunk: Trunk = "alex", otherwise: str = "") -> STLPIPS:
    """The published network, frozen. Raises: CheckpointError, as ``PinnedFile.read``."""
    return published_stlpips(STLPIPS_FILES[trunk].tensors(folder, otherwise), trunk)


def published_stlpips(state: Mapping[str, Tensor], trunk: Trunk) -> STLPIPS:
    """A frozen ST-LPIPS with published weights, whose layers are numbered through. Raises: CheckpointError."""
    with torch.device("meta"):
        network = STLPIPS(trunk)
    number, renamed = 0, {}
    for index, layers in enumerate(network.slices):
        for place, layer in enumerate(layers.children()):
            for name in layer.state_dict():
                renamed[f"slices.{index}.{place}.{name}"] = state[f"net.slice{index + 1}.{number}.{name}"]
            number += 1
    renamed |= {f"heads.{i}": state[f"lin{i}.model.1.weight"].flatten() for i in range(len(network.heads))}
    network.load_state_dict(channels_last(renamed), assign=True)  # a CPU needs 0.8 of the time
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise CheckpointError("The weights of ST-LPIPS hold values that are not finite.")
    return network.eval().requires_grad_(False)
