"""``MediaInputs``: an image, a video or an asset as the model takes it, by its patches or by the tower's features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from atoken.summary import Summary
from atoken.tokens import SparseTokens
from mllm.slowfast import Grid


@dataclass(frozen=True, repr=False)
class MediaInputs(Summary):
    """One of ``patches`` and ``features`` is there; the second is what ``encode_media`` makes of the first.

    size: steps, rows and columns of patches; of an asset the voxels a side, three times. layout: (L,) int64, what
    stands at each of its tokens (``layout_of``). patches: (N, 768) of images, frames and assets, (N, 3072) of tubelets;
    each of its samples is encoded alone. features: (n, D), pooled. centres: (n, 3), of an asset's cubes. file: where
    its features are to be kept, once there are some.
    """

    modality: str
    size: Grid
    layout: Tensor
    patches: SparseTokens | None = None
    features: Tensor | None = None
    centres: Tensor | None = None
    file: Path | None = None

    def __len__(self) -> int:
        """Its tokens in the language model."""
        return len(self.layout)

    def to(self, device: torch.device | str) -> MediaInputs:
        """The same on another device."""
        names = ("layout", "patches", "features", "centres")
        found = {name: getattr(self, name) for name in names}
        return replace(self, **{name: value.to(device) for name, value in found.items() if value is not None})
