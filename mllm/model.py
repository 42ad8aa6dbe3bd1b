"""``ATokenVLForConditionalGeneration``: AToken's tower, a projector, and any causal language model of transformers.

Media stand in ``input_ids`` as ``media_token_id``, once for each of their tokens, and are filled in as embeddings; the
language model sees embeddings only and is not changed. Letters: ``B`` rows, ``L`` tokens, ``E`` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.utils import cached_file

from atoken.checkpoint import weights_digest
from atoken.errors import AtokenError
from atoken.tower import ATokenVisionModel
from mllm.config import ATokenVLConfig
from mllm.inputs import MediaInputs
from mllm.lora import add_lora, is_lora, lora_of, with_base_layers
from mllm.projector import Projector
from mllm.slowfast import cubes, pool_frames, pool_voxels
from mllm.sources import language_folder, model_folder

SOURCES = {"vision_tower": "vision", "language_model": "language"}  # what begins the names of fields about them


class ATokenVLForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A vision-language model. The tower is frozen: it has no gradient and stays in evaluation mode.

    ``save_pretrained`` leaves out what is frozen of a part whose source the configuration names, and
    ``from_pretrained`` fetches it there; ``whole=True`` writes everything. Raises: AtokenError.
    """

    config_class = ATokenVLConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: ATokenVLConfig) -> None:
        super().__init__(config)
        self.vision_tower = ATokenVisionModel(config.vision_config)
        self.projector = Projector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self._add_lora()
        self.post_init()
        self._freeze()

    @classmethod
    def of(cls, config: ATokenVLConfig, tower: ATokenVisionModel, language: PreTrainedModel) -> Self:
        """A model of loaded parts, in the language model's dtype; the projector is new."""
        with torch.device("meta"):
            model = cls(config)
        model.vision_tower, model.language_model = tower, language
        model.projector = Projector(config.vision_config.hidden_size, config.text_config.hidden_size)
        model.projector.apply(model._init_weights).to(language.dtype)
        model.generation_config = language.generation_config
        model._add_lora()
        model._freeze()
        return model

    def _add_lora(self) -> None:
        if self.config.lora:
            add_lora(self.language_model, lora_of(self.config.lora))

    def _freeze(self) -> None:
        self.vision_tower.requires_grad_(False).eval()
        for name, weight in self.language_model.named_parameters():
            weight.requires_grad_(is_lora(name) or not (self.config.language_source or self.config.lora))

    def train(self, mode: bool = True) -> Self:
        """As in torch, but for the tower."""
        super().train(mode)
        self.vision_tower.eval()
        return self

    def get_input_embeddings(self) -> torch.nn.Module:
        """Those of the language model."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> torch.nn.Module:
        """The head of the language model."""
        return self.language_model.get_output_embeddings()

    @torch.no_grad()
    def encode_media(self, media: Sequence[MediaInputs]) -> tuple[MediaInputs, ...]:
        """The same media with the tower's features, pooled, in place of their patches; they can be kept and used again.

        What has features already stays as it is.
        """
        settings = self.config.settings
        waiting = [one.patches for one in media if one.patches is not None]
        samples = [sample for patches in waiting for sample in patches.unpack()]
        timed = settings.video_mode == "timed_frame"
        features = iter(self.vision_tower.encode_samples(samples, layer=self.config.vision_layer, timed=timed))
        done = []
        for one in media:
            if one.patches is None:
                done.append(one)
                continue
            found = torch.cat([next(features) for _ in one.patches.lengths])
            if one.modality == "asset":
                index, centres = cubes(one.patches.coords[:, 1:].to(found.device), one.size[0], settings)
                found = pool_voxels(found, index, len(centres))
                done.append(replace(one, patches=None, features=found, centres=centres))
            else:
                found = pool_frames(found, one.modality, one.size, settings)
                done.append(replace(one, patches=None, features=found))
        return tuple(done)

    def embed(self, input_ids: Tensor, media: Sequence[MediaInputs] = ()) -> Tensor:
        """(B, L, E): embeddings of tokens (B, L), with media in the order of their tokens.

        Raises: AtokenError where the tokens of media and the media do not match.
        """
        slots = input_ids == self.config.media_token_id
        count, expected = int(slots.sum()), sum(map(len, media))
        if count != expected:
            raise AtokenError(
                f"The text has {count} tokens for media, and the {len(media)} media given take {expected}; both must "
                "come from one call of the processor."
            )
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(slots, 0))
        if not media:
            return embeddings
        encoded = [one.to(embeddings.device) for one in self.encode_media(media)]
        features = torch.cat([one.features for one in encoded if one.features is not None])
        zeros = [features.new_zeros(len(one.features), 3) for one in encoded if one.features is not None]
        centres = torch.cat(
            [zero if one.centres is None else one.centres for one, zero in zip(encoded, zeros, strict=True)]
        )
        layout = torch.cat([one.layout for one in encoded])
        if int((layout < 0).sum()) != len(features):
            raise AtokenError("The media were prepared with other settings of pooling than those of this model.")
        filled = self.projector(features, centres, layout)
        return embeddings.masked_scatter(slots[..., None], filled.to(embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        media: Sequence[MediaInputs] = (),
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """What the language model gives for tokens (B, L), in which media are filled in; or for embeddings.

        media: of all rows, in the order of their tokens, as pixels or as features (``encode_media``). options: those of
        the language model, such as ``logits_to_keep``. Raises: AtokenError (media that do not match, a text that is
        longer than the language model's positions).
        """
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, media)
        if position_ids is None:  # those of packed conversations start anew
            self.check_length(inputs_embeds.shape[1])
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, labels=labels, **options,
        )  # fmt: skip

    @property
    def positions(self) -> int | None:
        """How many tokens the language model reads and writes at most; None where it does not say."""
        return getattr(self.config.text_config, "max_position_embeddings", None)

    def check_length(self, length: int, new: int = 0) -> None:
        """Raises: AtokenError if so many tokens, and ``new`` of an answer, are more than the language model reads."""
        if self.positions and length + new > self.positions:
            answer = f"its answer may have {new:,}, " if new else ""
            raise AtokenError(
                f"The conversation has {length:,} tokens, {answer}and the language model reads {self.positions:,}; "
                f"shorten the text, or lower frames{', max_new_tokens' if new else ''} or the sizes of images."
            )

    def generate(self, input_ids: Tensor | None = None, media: Sequence[MediaInputs] = (), **options: Any) -> Any:
        """As in transformers: (B, L + new) token ids, or what ``return_dict_in_generate`` asks for.

        Without a length an answer ends by itself, or where the language model's positions do, and not after 20 tokens.
        Raises: AtokenError as ``forward``, also where the answer might be cut: ``max_new_tokens`` must fit, too.
        """
        if input_ids is None:
            return super().generate(**options)
        config = options.get("generation_config") or self.generation_config
        length, new = input_ids.shape[1], options.get("max_new_tokens") or config.max_new_tokens
        self.check_length(length, new or 0)
        if self.positions and not (new or options.get("max_length") or config.max_length):
            options["max_new_tokens"] = max(1, self.positions - length)
        embeddings = self.embed(input_ids, media)
        slots = input_ids == self.config.media_token_id  # penalties look ids up in the logits, which may lack this one
        done = super().generate(inputs=input_ids.masked_fill(slots, 0), inputs_embeds=embeddings, **options)
        sequences = done if isinstance(done, Tensor) else done.sequences
        rows = len(sequences) // len(input_ids)
        sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(rows, 0)
        return done

    @classmethod
    def from_pretrained(cls, source: str | Path | None, *inputs: Any, **options: Any) -> Self:
        """As in transformers, also by a bundled name; parts that the configuration names come from where it says."""
        source = model_folder(source)
        config = options.pop("config", None) or ATokenVLConfig.from_pretrained(source)
        named = {part: getattr(config, f"{field}_source") for part, field in SOURCES.items() if source is not None}
        if not any(named.values()):
            model = super().from_pretrained(source, *inputs, config=config, **options)
        else:
            state = load_file(str(cached_file(source, "model.safetensors")))
            for part, name in named.items():
                if name:
                    loaded = from_source(part, name)
                    _check_same(loaded, getattr(config, f"{SOURCES[part]}_fingerprint"), name, source)
                    state = {f"{part}.{key}": weight for key, weight in loaded.state_dict().items()} | state
            model = super().from_pretrained(None, *inputs, config=config, state_dict=with_base_layers(state), **options)
            model.generation_config = GenerationConfig.from_pretrained(source)
        model._freeze()
        return model

    def save_pretrained(self, save_directory: str | Path, *, whole: bool = False, **options: Any) -> None:
        """As in transformers, without frozen weights of parts whose source is named, unless ``whole``."""
        state = options.pop("state_dict", None) or self.state_dict()
        frozen = {name for name, weight in self.named_parameters(remove_duplicate=False) if not weight.requires_grad}
        left_out: dict[str, set[str]] = {}
        for part, field in SOURCES.items():
            named = getattr(self.config, f"{field}_source") and not whole
            left_out[part] = {name for name in state if named and name in frozen and name.startswith(f"{part}.")}
        kept = {name: weight for name, weight in state.items() if not any(name in names for names in left_out.values())}
        with self._unnamed([SOURCES[part] for part, names in left_out.items() if not names]):
            super().save_pretrained(save_directory, state_dict=kept, **options)

    @contextmanager
    def _unnamed(self, parts: Sequence[str]) -> Iterator[None]:
        """The configuration for a while without the sources of these parts."""
        fields = [f"{part}_{about}" for part in parts for about in ("source", "fingerprint")]
        before = {field: getattr(self.config, field) for field in fields}
        for field in fields:
            setattr(self.config, field, None)
        try:
            yield
        finally:
            for field, value in before.items():
                setattr(self.config, field, value)


def from_source(component: str, source: str | Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The tower or the language model of a source, in its own dtype unless another is asked for."""
    if component == "vision_tower":
        return ATokenVisionModel.from_pretrained(source, dtype=dtype or "auto")
    return AutoModelForCausalLM.from_pretrained(language_folder(source), dtype=dtype or "auto")


def _check_same(part: PreTrainedModel, fingerprint: str | None, name: str, source: str | Path | None) -> None:
    """Raises: AtokenError for weights other than those that the model was made with."""
    if fingerprint and weights_digest(part, {}) != fingerprint:
        raise AtokenError(f"{name} has other weights than those that {source} was trained with; restore them.")


AutoModelForImageTextToText.register(ATokenVLConfig, ATokenVLForConditionalGeneration)
