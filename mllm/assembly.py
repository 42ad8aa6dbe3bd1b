"""``assemble``: a new vision-language model from a language model and a tower; ``load``: one that was saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from atoken.checkpoint import weights_digest
from atoken.errors import AtokenError
from atoken.placement import checked_device, checked_dtype
from mllm.config import ATokenVLConfig
from mllm.model import ATokenVLForConditionalGeneration, from_source
from mllm.processor import ATokenVLProcessor
from mllm.sources import model_folder


def assemble(
    language: str | Path = "smollm2",
    tower: str | Path = "nano",
    *,
    vision_layer: int | None = None,
    dtype: torch.dtype | None = None,
    lora: Mapping[str, Any] | None = None,
    **pooling: Any,
) -> tuple[ATokenVLForConditionalGeneration, ATokenVLProcessor]:
    """A model and its processor: a frozen tower, a new projector, and a frozen language model of any causal kind.

    language: a fetched name, a folder or a hub id; tower: a bundled name, a folder or a hub id, also of a tokenizer.
    dtype: of all weights, the language model's own if None. lora: fields of ``LoRA``, {} for the usual; None is without
    it. pooling: fields of ``SlowFast``. Raises: AtokenError.
    """
    processor = ATokenVLProcessor.from_language(language, **pooling)
    causal, language_fingerprint = _part("language_model", language, dtype)
    vision, vision_fingerprint = _part("vision_tower", tower, causal.dtype)
    config = ATokenVLConfig(
        vision_config=vision.config, text_config=causal.config, media_token_id=processor.media_token_id,
        pooling=processor.pooling, vision_layer=vision_layer, vision_source=str(tower), language_source=str(language),
        vision_fingerprint=vision_fingerprint, language_fingerprint=language_fingerprint, lora=lora,
    )  # fmt: skip
    model = ATokenVLForConditionalGeneration.of(config, vision, causal)
    return model, processor


def _part(part: str, source: str | Path, dtype: torch.dtype | None) -> tuple[Any, str]:
    """A part in a dtype, and the fingerprint of what it is in its own, since float16 rounds in another way."""
    loaded = from_source(part, source)
    fingerprint = weights_digest(loaded, {})
    return loaded if dtype in (None, loaded.dtype) else from_source(part, source, dtype), fingerprint


def load(
    source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
) -> tuple[ATokenVLForConditionalGeneration, ATokenVLProcessor]:
    """The model and the processor of a folder, a bundled name or a hub id. device, dtype: as in ``atoken.load``.

    Raises: AtokenError.
    """
    place = checked_device(device)
    precision = checked_dtype(dtype, place)
    if "/" not in str(source) and not Path(model_folder(source)).is_dir():  # nor can the hub have it
        raise AtokenError(
            f"There is no vision-language model {source}: pass a folder that save_pretrained wrote, or a hub id "
            "(owner/name), or vl-nano, once make vl-nano has trained it."
        )
    try:
        found, wanted = ATokenVLConfig.get_config_dict(source)[0].get("model_type"), ATokenVLConfig.model_type
        if found != wanted:
            raise ValueError(f"its config.json is of type {found}, not {wanted}.")
        model = ATokenVLForConditionalGeneration.from_pretrained(source, dtype=precision)
        processor = ATokenVLProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise AtokenError(f"Cannot load a vision-language model and its processor from {source}: {reason}") from error
    return model.to(place).eval(), processor
