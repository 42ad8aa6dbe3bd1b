"""Perceptual losses on one pass of VGG-16: LPIPS and the distance of Gram matrices.

Sources: AToken, section 3.3, for the two losses and for 224 pixels; VGG-16 of Simonyan and Zisserman 2014 (arXiv
1409.1556); LPIPS v0.1 of Zhang et al. 2018 (arXiv 1801.03924); Gram matrices of Gatys et al. 2015 (arXiv 1508.06576).
The paper names no network, no layers and no normaliser for the Gram loss: here they are those of LPIPS, and C H W.
Shape letters: ``B`` images, ``S`` the pixels of a side, ``C`` channels, ``H`` and ``W`` of a layer.

    FOLDER/vgg16-397923af.pth   VGG-16
    FOLDER/vgg.pth              the linear heads of LPIPS
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.metrics.pinned import PinnedFile

VGG_FILE = PinnedFile(
    "vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "VGG-16, for LPIPS and the Gram loss",
    "download https://download.pytorch.org/models/vgg16-397923af.pth",
)
HEADS_FILE = PinnedFile(
    "vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "the linear heads of LPIPS v0.1",
    "take lpips/weights/v0.1/vgg.pth out of the Python package lpips 0.1.4",
)
SIDE = 224  # pixels of a side of what a perceptual network sees (AToken, section 3.3)
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions between two poolings
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS: ImageNet's mean and deviation in [-1, 1]
EPS = 1e-10  # of LPIPS, added to the length of a feature vector

Features = tuple[Tensor, ...]  # (B, C, H, W) of each layer that is compared
Heads = tuple[Tensor, ...]  # (C,) weights of the channels of each such layer


class VGG16(nn.Module):
    """The convolutions of VGG-16; parameters are named as in torchvision's weight file."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, convolutions in BLOCKS:
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])

    def forward(self, images_B3HW: Tensor) -> Features:
        """Images in [-1, 1], 16 pixels a side or more, to relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
        shift, scale = (images_B3HW.new_tensor(each, dtype=torch.float32)[:, None, None] for each in (SHIFT, SCALE))
        x, features = (images_B3HW.float() - shift) / scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
            x = layer(x)
        return (*features, x)


def load_vgg(folder: str | Path | None, otherwise: str = "") -> tuple[VGG16, Heads, dict[str, str]]:
    """VGG-16, the heads of LPIPS, and the SHA-256 of both files. Raises: CheckpointError, as ``PinnedFile.read``."""
    vgg, heads = (file.tensors(folder, otherwise) for file in (VGG_FILE, HEADS_FILE))
    return published_vgg(vgg), published_heads(heads), {file.name: file.sha256 for file in (VGG_FILE, HEADS_FILE)}


def published_vgg(state: Mapping[str, Tensor]) -> VGG16:
    """A frozen VGG-16 with the weights of torchvision's ``vgg16-397923af.pth``; its classifier is left out."""
    with torch.device("meta"):  # no random weights: training draws the same numbers with and without teachers
        vgg = VGG16()
    vgg.load_state_dict({key: value for key, value in state.items() if key.startswith("features.")}, assign=True)
    return vgg.eval().requires_grad_(False)


def published_heads(state: Mapping[str, Tensor]) -> Heads:
    """The linear heads of the lpips package's ``weights/v0.1/vgg.pth``."""
    return tuple(state[f"lin{i}.model.1.weight"].detach().float().flatten() for i in range(len(BLOCKS)))


def resized(images_B3HW: Tensor, side: int = SIDE) -> Tensor:
    """(B, 3, side, side) fp32: bilinear, antialiased where it shrinks; the aspect ratio is not kept (section 3.3)."""
    return F.interpolate(images_B3HW.float(), (side, side), mode="bilinear", antialias=True)


def shared_pass(
    network: Callable[[Tensor], Features], prediction_B3SS: Tensor, target_B3SS: Tensor
) -> tuple[Features, Features]:
    """The features of a reconstruction, and those of its target without gradient, for both losses."""
    with torch.no_grad():
        target = network(target_B3SS)
    return network(prediction_B3SS), target


def lpips(prediction: Features, target: Features, heads: Heads) -> Tensor:
    """(B,) fp32, LPIPS v0.1: weighted squared difference of unit feature vectors, mean over positions, sum over layers.

    The gradient is finite even where all channels are zero.
    """
    layers = zip(prediction, target, heads, strict=True)
    return torch.stack([(_squared(x, y).mean((2, 3)) * head_C).sum(1) for x, y, head_C in layers]).sum(0)


def _squared(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    return (_unit(prediction_BCHW.float()) - _unit(target_BCHW.float())).square()


def _unit(feats_BCHW: Tensor) -> Tensor:
    # The gradient of vector_norm at zero is zero; that of the square root of a sum would be NaN.
    return feats_BCHW / (torch.linalg.vector_norm(feats_BCHW, dim=1, keepdim=True) + EPS)


def gram(prediction: Features, target: Features) -> Tensor:
    """(B,) fp32, also under autocast: squared Frobenius norm of the difference of Gram matrices, sum over layers."""
    layers = zip(prediction, target, strict=True)
    return torch.stack([(_gram_matrix(x) - _gram_matrix(y)).square().sum((1, 2)) for x, y in layers]).sum(0)


def _gram_matrix(feats_BCHW: Tensor) -> Tensor:
    """(B, C, C): F F^T / (C H W). Our choice of normaliser: only with one is the paper's weight of 1e3 sensible."""
    feats_BCN = feats_BCHW.flatten(2).float()
    with torch.autocast(feats_BCHW.device.type, enabled=False):
        return feats_BCN @ feats_BCN.mT / (feats_BCN.shape[1] * feats_BCN.shape[2])
