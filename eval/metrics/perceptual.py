"""LPIPS v0.1 on VGG-16 (Zhang et al. 2018) and ST-LPIPS on AlexNet (Ghildyal and Liu 2022), from ``atoken/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from atoken.metrics.stlpips import STLPIPS, STLPIPS_FILES
from atoken.metrics.vgg import VGG16, Heads, lpips, shared_pass
from eval.metrics.pixels import FrameMean


class PerceptualDistance(FrameMean):
    """A network's distance of two images (1, 3, H, W) in [-1, 1], at the size of the output; 0 where they are equal.

    checksums: SHA-256 by file, for the record. smallest: pixels of a side that the network needs.
    """

    def __init__(
        self, name: str, network: Callable[[Tensor, Tensor], Tensor], what: str, checksums: Mapping[str, str],
        smallest: int, device: str,
    ) -> None:  # fmt: skip
        self._network, self._device = network, device
        record = {"network": what, "size": "of the sample"} | dict(checksums)
        super().__init__(name, self._distance, record, smallest)

    @torch.inference_mode()
    def _distance(self, *pair_HW3: np.ndarray) -> float:
        values = (torch.from_numpy(frame).to(self._device).float() / 127.5 - 1 for frame in pair_HW3)
        pair_13HW = (frame.movedim(2, 0)[None].contiguous() for frame in values)
        # TF32 has ten bits, which would show.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return self._network(*pair_13HW).item()


class Lpips(PerceptualDistance):
    """LPIPS v0.1 on VGG-16."""

    def __init__(self, vgg: VGG16, heads: Heads, checksums: Mapping[str, str], device: str = "cpu") -> None:
        vgg, heads = vgg.to(device), tuple(head_C.to(device) for head_C in heads)

        def network(*pair_13HW: Tensor) -> Tensor:
            return lpips(*shared_pass(vgg, *pair_13HW), heads)

        super().__init__("lpips", network, "LPIPS v0.1, VGG-16, fp32", checksums, 16, device)


class StLpips(PerceptualDistance):
    """ST-LPIPS on AlexNet; its numbers are not LPIPS."""

    def __init__(self, network: STLPIPS, device: str = "cpu") -> None:
        file = STLPIPS_FILES["alex"]
        what = "ST-LPIPS, shift-tolerant AlexNet, fp32"
        super().__init__("ST-LPIPS", network.to(device), what, {file.name: file.sha256}, 32, device)
