"""``ATokenVLConfig``: a frozen tower, a projector and a causal language model, and how media become tokens."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from atoken.errors import AtokenError
from atoken.tower import ATokenVisionConfig
from mllm.lora import lora_of
from mllm.slowfast import SlowFast
from mllm.sources import model_folder


def settings_of(fields: dict[str, Any] | None) -> SlowFast:
    """Settings from their fields, those that are left out at their defaults. Raises: AtokenError (an unknown field)."""
    fields = fields or {}
    if unknown := fields.keys() - vars(SlowFast()).keys():
        raise AtokenError(f"There is no {', '.join(sorted(unknown))} among {', '.join(vars(SlowFast()))}.")
    return SlowFast(**fields)


class ATokenVLConfig(PreTrainedConfig):
    """Configuration of ``ATokenVLForConditionalGeneration``.

    media_token_id: stands in ``input_ids`` for each token of media; it may lie beyond the language model's vocabulary.
    pooling: fields of ``SlowFast``. vision_layer: which hidden state of the tower is read, None for the last one after
    its norm. vision_source, language_source: where a part comes from that is not stored with the model (a bundled or
    fetched name, a folder, a hub id); None if it is; vision_fingerprint, language_fingerprint: of the weights there.
    lora: fields of ``LoRA``, None for a language model without it. Raises: AtokenError.
    """

    model_type = "atoken_vl"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": ATokenVisionConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    media_token_id: int = 0
    pooling: dict[str, Any] | None = None
    vision_layer: int | None = None
    vision_source: str | None = None
    language_source: str | None = None
    vision_fingerprint: str | None = None
    language_fingerprint: str | None = None
    lora: dict[str, Any] | None = None
    tie_word_embeddings: bool = False  # the language model ties its own

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = ATokenVisionConfig(**(self.vision_config or {}))
        if not isinstance(self.text_config, PreTrainedConfig):
            fields = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(fields.pop("model_type", "qwen2"), **fields)
        self.pooling = asdict(settings_of(self.pooling))
        self.lora = None if self.lora is None else asdict(lora_of(self.lora))
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, source: str | Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; a bundled name is a source, too."""
        return super().get_config_dict(model_folder(source), **options)

    @property
    def settings(self) -> SlowFast:
        """``pooling``, checked."""
        return settings_of(self.pooling)


AutoConfig.register(ATokenVLConfig.model_type, ATokenVLConfig)
