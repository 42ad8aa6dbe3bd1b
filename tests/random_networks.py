"""Published networks with random weights, in the layout of their files."""

import hashlib
from dataclasses import replace

import numpy as np
import torch

from atoken.metrics.i3d import TRUNK
from atoken.metrics.stlpips import STLPIPS


def pinned(file, path, write):
    """``file``, pinned to what ``write`` puts into a file of its name in the folder ``path``."""
    with (path / file.name).open("wb") as opened:
        write(opened)
    return replace(file, sha256=hashlib.sha256((path / file.name).read_bytes()).hexdigest())


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Weights that keep signals alive, so that a fault anywhere reaches the output."""
    draw = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=draw)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=draw)
        elif tensor.is_floating_point():
            tensor.uniform_(-0.3, 0.5, generator=draw)
    return network.eval()


def i3d_variables() -> dict:
    """Random variables in the layout of the published file."""
    draw = np.random.default_rng(1)

    def unit(inputs: int, outputs: int, kernel: tuple[int, ...]) -> tuple[dict, dict]:
        weights = draw.normal(0, (2 / (inputs * np.prod(kernel))) ** 0.5, (*kernel, inputs, outputs))
        last = (1, 1, 1, 1, outputs)
        params = {"Conv_0": {"kernel": weights.astype("f4")}}
        params["BatchNorm_0"] = {"bias": draw.uniform(-0.3, 0.5, last).astype("f4")}
        statistics = {"mean": draw.normal(0, 0.3, last), "var": draw.uniform(0.5, 2, last)}
        return params, {"BatchNorm_0": {key: value.astype("f4") for key, value in statistics.items()}}

    params: dict = {}
    statistics: dict = {}
    channels = 3
    for name, sizes in TRUNK.items():
        if name.startswith("Conv"):
            params[name], statistics[name] = unit(channels, sizes[0], sizes[1])
            channels = sizes[0]
        elif name.startswith("Mixed"):
            a, b, c, d, e, f = sizes
            units = {
                "Branch_0/Conv3d_0a_1x1": (channels, a, (1, 1, 1)), "Branch_1/Conv3d_0a_1x1": (channels, b, (1, 1, 1)),
                "Branch_1/Conv3d_0b_3x3": (b, c, (3, 3, 3)), "Branch_2/Conv3d_0a_1x1": (channels, d, (1, 1, 1)),
                "Branch_2/Conv3d_0b_3x3": (d, e, (3, 3, 3)), "Branch_3/Conv3d_0b_1x1": (channels, f, (1, 1, 1)),
            }  # fmt: skip
            made = {key: unit(*value) for key, value in units.items()}
            params[name] = {key: value[0] for key, value in made.items()}
            statistics[name] = {key: value[1] for key, value in made.items()}
            channels = a + c + e + f
    last = {"kernel": draw.normal(0, 0.05, (1, 1, 1, channels, 400)), "bias": draw.normal(0, 0.1, 400)}
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": {key: value.astype("f4") for key, value in last.items()}}
    return {"params": params, "batch_stats": statistics}


def stlpips_state(trunk: str) -> dict[str, torch.Tensor]:
    """Random weights, and the blur that is not learned, under the names of the published file."""
    network, published, number = randomised(STLPIPS(trunk)), {}, 0
    blur = torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16
    for index, layers in enumerate(network.slices):
        for layer in layers:
            for name, tensor in layer.state_dict().items():
                tensor = blur.expand(tensor.shape).clone() if name == "filt" else tensor
                published[f"net.slice{index + 1}.{number}.{name}"] = tensor
            number += 1
    heads = {f"lin{i}.model.1.weight": head.abs()[None, :, None, None] for i, head in enumerate(network.heads)}
    return published | heads
