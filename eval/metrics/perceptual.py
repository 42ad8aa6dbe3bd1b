"""LPIPS v0.1 on VGG-16 (Zhang et al. 2018), by the code of ``atoken/metrics/vgg.py``."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import numpy as np
import torch

from atoken.metrics.vgg import VGG16, Heads, lpips, shared_pass
from eval.contract import Output
from eval.metrics.exact import Mean
from eval.metrics.pixels import large_frames

SMALLEST = 16  # pixels of a side that leave one at the coarsest layer


class Lpips(Mean):
    """LPIPS at the size of the output, frame by frame: mean over frames, then over outputs; 0 is equal.

    Frames are uint8, so that none can come in another range. checksums: SHA-256 by file, for the record.
    """

    name = "lpips"
    numbers = ("lpips",)

    def __init__(self, vgg: VGG16, heads: Heads, checksums: Mapping[str, str], device: str = "cpu") -> None:
        self._vgg, self._heads, self._device = vgg.to(device), tuple(head_C.to(device) for head_C in heads), device
        what = {
            "network": "LPIPS v0.1, VGG-16, fp32",
            "size": "of the sample",
            "mean": "over frames, then over samples",
        }
        self.record = what | dict(checksums)

    def measure(self, output: Output) -> dict[str, float]:
        """``lpips``, from 0. Raises: AtokenError, also where a side is shorter than 16 pixels."""
        return {"lpips": fmean(self._distance(*frame) for frame in large_frames(output, SMALLEST, "LPIPS"))}

    @torch.inference_mode()
    def _distance(self, *pair_HW3: np.ndarray) -> float:
        """Of two frames (H, W, 3) uint8."""
        values = (torch.from_numpy(frame).to(self._device).float() / 127.5 - 1 for frame in pair_HW3)
        pair_13HW = (frame.movedim(2, 0)[None].contiguous() for frame in values)
        # TF32 has ten bits, which would show.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return lpips(*shared_pass(self._vgg, *pair_13HW), self._heads).item()
