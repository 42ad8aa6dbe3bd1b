"""``assemble``: a new vision-language model from a language model and a tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from atoken.tower import ATokenVisionModel
from mllm.config import ATokenVLConfig
from mllm.model import ATokenVLForConditionalGeneration
from mllm.processor import ATokenVLProcessor
from mllm.sources import language_folder


def assemble(
    language: str | Path = "smollm2",
    tower: str | Path = "nano",
    *,
    vision_layer: int | None = None,
    dtype: torch.dtype | None = None,
    **pooling: Any,
) -> tuple[ATokenVLForConditionalGeneration, ATokenVLProcessor]:
    """A model and its processor: a frozen tower, a new projector, and a frozen language model of any causal kind.

    language: a fetched name, a folder or a hub id; tower: a bundled name, a folder or a hub id, also of a tokenizer.
    dtype: of all weights, the language model's own if None. pooling: fields of ``SlowFast``. Raises: AtokenError.
    """
    processor = ATokenVLProcessor.from_language(language, **pooling)
    causal = AutoModelForCausalLM.from_pretrained(language_folder(language), dtype=dtype or "auto")
    vision = ATokenVisionModel.from_pretrained(tower, dtype=causal.dtype)
    config = ATokenVLConfig(
        vision_config=vision.config, text_config=causal.config, media_token_id=processor.media_token_id,
        pooling=processor.pooling, vision_layer=vision_layer, vision_source=str(tower), language_source=str(language),
    )  # fmt: skip
    model = ATokenVLForConditionalGeneration.of(config, vision, causal)
    return model, processor
