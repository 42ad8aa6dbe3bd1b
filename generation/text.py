"""What text encoders make of texts: packed features of their tokens, and pooled vectors.

Letters: ``B`` texts, ``M`` tokens of all of them, ``W`` width of an encoder, ``P`` width of its pooled vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextFeatures:
    """Texts by one encoder.

    tokens: (M, W), text after text. lengths: of each text, on the host; 0 is no text at all, the null condition.
    pooled: (B, P), zeros of no text; P is 0 for an encoder without pooled vectors.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    pooled: Tensor

    @staticmethod
    def joined(parts: Sequence[TextFeatures]) -> TextFeatures:
        """The texts of several, one after another."""
        return TextFeatures(
            torch.cat([part.tokens for part in parts]),
            tuple(length for part in parts for length in part.lengths),
            torch.cat([part.pooled for part in parts]),
        )

    def kept(self, kept: Sequence[bool]) -> TextFeatures:
        """The texts for which ``kept`` is true, and no text in place of the others."""
        lengths = tuple(length if one else 0 for length, one in zip(self.lengths, kept, strict=True))
        parts = zip(self.tokens.split(self.lengths), lengths, strict=True)
        mask_B = torch.tensor(kept, device=self.pooled.device)
        return TextFeatures(
            torch.cat([tokens[:length] for tokens, length in parts]), lengths, self.pooled * mask_B[:, None]
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextFeatures:
        """The same on another device, or of another dtype."""
        return TextFeatures(self.tokens.to(device, dtype), self.lengths, self.pooled.to(device, dtype))


Texts = tuple[TextFeatures, ...]  # of the same texts, by each encoder
