"""AToken itself as the network whose features are compared. Letters: ``B`` images or videos, ``D`` width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.modalities.pixels import patchify, to_values
from atoken.patches import grid
from atoken.tokenizer import Tokenizer
from atoken.tokens import SparseTokens
from eval.code import code_digest
from eval.networks import BATCH, SPATIAL, Features, joined

CELLS = 8  # a side, to which the map of features is averaged


class ATokenFeatures:
    """A loaded tokenizer's own vectors: they need no download, but cannot be compared with published numbers.

    pooled: (B, D), not normalised. spatial: the first 7 channels of the features before the bottleneck, averaged to
    8 x 8 cells. videos: encode a video as a whole.
    """

    kinds = frozenset({"pooled", "spatial"})

    def __init__(self, tokenizer: Tokenizer, *, videos: bool = False) -> None:
        self.name, self.checksum = f"atoken-{tokenizer.name}", tokenizer.fingerprint
        dtype, code = str(tokenizer.model.dtype).removeprefix("torch."), code_digest(["atoken.tokenizer"])
        self.record: Mapping[str, str] = {"resize": "none", "network dtype": dtype, "network code": code}
        self.videos, self._tokenizer = videos, tokenizer

    def features(self, frames: Sequence[np.ndarray]) -> Features:
        """Of frames, or of whole videos."""
        seen = list(frames) if self.videos else [frame[None] for video in frames for frame in video]
        size = 1 if self.videos else BATCH
        return joined([self._of_some(seen[first : first + size]) for first in range(0, len(seen), size)])

    @torch.inference_mode()
    def _of_some(self, videos: Sequence[np.ndarray]) -> Features:
        packed = SparseTokens.pack([patchify(to_values(video)) for video in videos])
        encoded = self._tokenizer.model.encode(packed.to(self._tokenizer.device))
        maps = [_cells(part.feats, video) for part, video in zip(encoded.features.unpack(), videos, strict=True)]
        return {"pooled": encoded.pooled.float().cpu().numpy(), "spatial": torch.stack(maps).numpy()}


def _cells(feats_ND: Tensor, video_THW3: np.ndarray) -> Tensor:
    """(8 * 8 * 7,): the tokens of a video, averaged over time and to cells; channels last, as ADM's are."""
    steps, rows, columns = grid(*video_THW3.shape[:3])
    map_HWD = feats_ND[:, :SPATIAL].float().reshape(steps, rows, columns, SPATIAL).mean(0)
    return F.adaptive_avg_pool2d(map_HWD.movedim(2, 0), CELLS).movedim(0, 2).flatten().cpu()
