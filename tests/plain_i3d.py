"""I3D once more, channels last and written without modules: what ``atoken/metrics/i3d.py`` must equal."""

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.metrics.i3d import TRUNK


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
