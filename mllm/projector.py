"""Features of the tower as embeddings of a language model: two layers, and learned separators.

Letters: ``L`` tokens of media with separators, ``n`` features among them, ``D`` width of the tower, ``E`` of the
language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from mllm.slowfast import FEATURE, SEPARATORS


class Projector(nn.Module):
    """Linear, GELU, linear. Voxels lie anywhere in an asset, so their positions are added; other media have an order.

    The separators are an ``Embedding``, since ZeRO-3 gathers parameters of modules that are called.
    """

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(vision_width, language_width)
        self.position = nn.Linear(3, language_width, bias=False)
        self.down = nn.Linear(language_width, language_width)
        self.separators = nn.Embedding(len(SEPARATORS), language_width)

    def forward(self, features: Tensor, centres: Tensor, layout: Tensor) -> Tensor:
        """(L, E), of features (n, D), centres (n, 3), zeros where there are none, and the layout (L,)."""
        dtype = self.up.weight.dtype
        projected = self.down(F.gelu(self.up(features.to(dtype)) + self.position(centres.to(dtype))))
        embeddings = self.separators(layout.clamp(min=0))
        return torch.masked_scatter(embeddings, (layout == FEATURE)[:, None], projected.to(embeddings.dtype))
