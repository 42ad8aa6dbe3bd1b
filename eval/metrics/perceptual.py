"""LPIPS v0.1 on VGG-16 (Zhang et al. 2018), by the code of ``atoken/metrics/vgg.py``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from atoken.metrics.vgg import VGG16, Heads, lpips, shared_pass
from eval.metrics.pixels import FrameMean

SMALLEST = 16  # pixels of a side that leave one at the coarsest layer


class Lpips(FrameMean):
    """LPIPS at the size of the output, from 0, where frames are equal. checksums: SHA-256 by file, for the record."""

    def __init__(self, vgg: VGG16, heads: Heads, checksums: Mapping[str, str], device: str = "cpu") -> None:
        self._vgg, self._heads, self._device = vgg.to(device), tuple(head_C.to(device) for head_C in heads), device
        what = {"network": "LPIPS v0.1, VGG-16, fp32", "size": "of the sample"}
        super().__init__("lpips", self._distance, what | dict(checksums), SMALLEST)

    @torch.inference_mode()
    def _distance(self, *pair_HW3: np.ndarray) -> float:
        values = (torch.from_numpy(frame).to(self._device).float() / 127.5 - 1 for frame in pair_HW3)
        pair_13HW = (frame.movedim(2, 0)[None].contiguous() for frame in values)
        # TF32 has ten bits, which would show.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return lpips(*shared_pass(self._vgg, *pair_13HW), self._heads).item()
