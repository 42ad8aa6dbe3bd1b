"""Text encoders, and what they make of texts: packed features of their tokens, and pooled vectors.

Letters: ``B`` texts, ``M`` tokens of all of them, ``W`` width of an encoder, ``P`` width of its pooled vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import atoken
from atoken.errors import AtokenError, CheckpointError
from atoken.model import ATokenConfig
from atoken.presets import folder_of
from atoken.text import TextTokenizer

MOST_TOKENS = 512  # of a text by encoders of any length


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


class Encoder(Protocol):
    """Texts as features. ``width`` is W, ``pooled_width`` P; an empty text is no text."""

    width: int
    pooled_width: int

    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        """The features of B texts, fp32, on the encoder's device."""

    def lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        """How many features each text has."""


class TextEncoder:
    """A frozen tower of transformers with its tokenizer; what is longer than it reads is cut.

    tokenizer: a ``TextTokenizer`` of SigLIP2's kind, for a tower that takes padding as text, of which only the features
    of the text itself are kept; or transformers' own, for a tower with a mask, which reads ``MOST_TOKENS``.
    """

    def __init__(self, tower: nn.Module, tokenizer: Any, width: int, pooled_width: int) -> None:
        self.tower, self.tokenizer = tower.eval().requires_grad_(False), tokenizer
        self.width, self.pooled_width = width, pooled_width

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> TextFeatures:
        """The features of B texts, fp32, on the device of the tower."""
        device = next(self.tower.parameters()).device
        found, mask_BL = self._inputs(texts)
        with torch.autocast(device.type, enabled=False):
            out = self.tower(**{name: value.to(device) for name, value in found.items()})
        said_B = mask_BL.any(1).to(device)
        pooled_BP = (
            out.pooler_output.float() * said_B[:, None] if self.pooled_width else said_B.new_zeros(len(texts), 0)
        )
        tokens_MW = out.last_hidden_state[mask_BL.to(device)].float()
        return TextFeatures(tokens_MW, tuple(mask_BL.sum(1).tolist()), pooled_BP.float())

    def lengths(self, texts: Sequence[str]) -> tuple[int, ...]:
        """How many features each text has."""
        return tuple(self._inputs(texts)[1].sum(1).tolist())

    def _inputs(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """What the tower takes, and (B, L) which of its tokens are of the text."""
        if isinstance(self.tokenizer, TextTokenizer):
            ids_BL = self.tokenizer(texts)
            found, mask_BL = {"input_ids": ids_BL}, ids_BL != self.tokenizer.tokenizer.pad_token_id
        else:
            options = {"padding": True, "truncation": True, "max_length": MOST_TOKENS, "return_tensors": "pt"}
            found = dict(self.tokenizer(list(texts), **options))
            mask_BL = found["attention_mask"].bool()
        return found, mask_BL & torch.tensor([bool(text.strip()) for text in texts])[:, None]

    def to(self, device: torch.device | str) -> TextEncoder:
        """The same, moved."""
        self.tower.to(device)
        return self


def load_encoder(source: str | Path) -> TextEncoder:
    """The text side of a tokenizer (``nano``), T5, umT5 or the like, or SigLIP2's, by name, folder or hub id.

    Raises: AtokenError (a tokenizer without texts), CheckpointError.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder_of(source))
        if isinstance(config, ATokenConfig):
            return encoder_of(atoken.load(source))
        if (of_text := getattr(config, "text_config", None)) is not None:
            tower = AutoModel.from_pretrained(source).text_model
            tokenizer = TextTokenizer.load(source, of_text.max_position_embeddings)
            return TextEncoder(tower, tokenizer, of_text.hidden_size, of_text.projection_size)
        tower = AutoModelForTextEncoding.from_pretrained(source)
        return TextEncoder(tower, AutoTokenizer.from_pretrained(source), config.hidden_size, 0)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{source} holds no text encoder that transformers can load: {reason}") from error


def encoder_of(tokenizer: atoken.Tokenizer) -> TextEncoder:
    """The text side of a loaded tokenizer. Raises: AtokenError."""
    tower = tokenizer.model.text_tower
    if tower is None or tokenizer.texts is None:
        raise AtokenError(f"Model {tokenizer.name} has no text side; name a text encoder.")
    return TextEncoder(tower, tokenizer.texts, tower.config.hidden_size, tokenizer.model.config.encoder_width)
