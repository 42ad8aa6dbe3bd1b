"""Texts as a SigLIP2 text tower reads them (arXiv 2502.14786): cleaned, tokenised, padded to one length."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoken.errors import CheckpointError

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean(text: str) -> str:
    """Lower case, no punctuation, single spaces; an underscore separates words (SigLIP's canonical form)."""
    return re.sub(r"\s+", " ", text.replace("_", " ").translate(_PUNCTUATION)).strip().lower()


class TextTokenizer:
    """A ``transformers`` tokenizer and the number of tokens (L) that the tower reads; longer texts are cut."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        """Whether a folder or hub id has the files of a text tokenizer."""
        from transformers.utils import cached_file

        return cached_file(folder, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is not None

    @staticmethod
    def load(folder: str | Path, length: int) -> TextTokenizer:
        """Load the tokenizer files of a folder or hub id; no code in them is run. Raises: CheckpointError."""
        from transformers import AutoTokenizer

        try:
            found = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{folder} holds no text tokenizer that transformers can load: {reason}") from error
        if found.pad_token_id is None:
            raise CheckpointError(f"The text tokenizer in {folder} has no padding token; SigLIP2's has one.")
        return TextTokenizer(found, length)

    def save(self, folder: str | Path) -> None:
        """Write its files into the folder of a model."""
        self.tokenizer.save_pretrained(folder)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(T, L) int64 ids of the cleaned texts. There is no mask: padding counts as text, as in SigLIP2."""
        if not texts:
            return torch.zeros(0, self.length, dtype=torch.long)
        cleaned = [clean(text) for text in texts]
        found = self.tokenizer(cleaned, padding="max_length", truncation=True, max_length=self.length)
        return torch.tensor(found["input_ids"], dtype=torch.long)
