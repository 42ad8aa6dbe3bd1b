"""LoRA (Hu et al. 2021): low-rank matrices beside the linear layers of a frozen language model, by peft.

They are put into the language model alone, so no name can match a layer of the tower; its embeddings and its head stay
as they are, tied or not. Switched off, it is the language model again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from atoken.errors import AtokenError, MissingExtraError

if TYPE_CHECKING:
    from mllm.model import ATokenVLForConditionalGeneration

WEIGHTS = (".lora_A.", ".lora_B.")  # stand in the names of LoRA's weights


@dataclass(frozen=True)
class LoRA:
    """rank: of the matrices. alpha: their product counts ``alpha / rank`` times.

    targets: names of the layers that get them, such as ``q_proj``; none is all linear layers but the head.
    Raises: AtokenError.
    """

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("alpha", self.alpha)):
            if not isinstance(value, int) or value < 1:
                raise AtokenError(f"The {name} of LoRA must be a whole number from 1 on, got {value!r}.")
        object.__setattr__(self, "targets", tuple(self.targets))  # a list, in a file


def lora_of(fields: Mapping[str, Any]) -> LoRA:
    """LoRA from its fields, those that are left out at their defaults. Raises: AtokenError (an unknown field)."""
    if unknown := fields.keys() - asdict(LoRA()).keys():
        raise AtokenError(f"LoRA has no {', '.join(sorted(unknown))}; it has {', '.join(asdict(LoRA()))}.")
    return LoRA(**fields)


def add_lora(language: Any, lora: LoRA) -> None:
    """Put LoRA into a language model, as if it were not there: one of the two matrices is zero.

    Raises: AtokenError (no such layers), MissingExtraError.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("peft", "mllm", "A model with LoRA") from error
    targets = list(lora.targets) or "all-linear"
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)
    try:
        inject_adapter_in_model(config, language)
    except ValueError as error:
        raise AtokenError(f"The language model has no layers for LoRA named {', '.join(lora.targets)}.") from error
    for name, weight in language.named_parameters():
        if is_lora(name):  # peft has them in fp32
            weight.data = weight.data.to(language.dtype)


def is_lora(name: str) -> bool:
    """Whether a weight of this name is LoRA's."""
    return any(part in name for part in WEIGHTS)


def with_base_layers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Weights by name, those of layers that have LoRA in ``state`` under the names that they have beside it."""
    inside = {name.partition(WEIGHTS[0])[0] for name in state if WEIGHTS[0] in name}
    split = {name: name.rpartition(".") for name in state}
    return {
        f"{layer}.base_layer.{kind}" if layer in inside else name: state[name]
        for name, (layer, _, kind) in split.items()
    }


@contextmanager
def without_lora(model: ATokenVLForConditionalGeneration) -> Iterator[None]:
    """Switch LoRA off for a while; nothing happens to a model that has none."""
    layers = [layer for _, layer in _layers(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_lora(model: ATokenVLForConditionalGeneration) -> None:
    """Add LoRA to the weights of the language model, which then has no source but is its own.

    Raises: AtokenError (there is no LoRA).
    """
    if not model.config.lora:
        raise AtokenError("The model has no LoRA to merge.")
    for name, layer in _layers(model):
        layer.merge()
        model.language_model.set_submodule(name, layer.get_base_layer())
    del model.language_model.peft_config
    model.config.lora = model.config.language_source = model.config.language_fingerprint = None


def _layers(model: ATokenVLForConditionalGeneration) -> list[tuple[str, Any]]:
    """The layers of the language model that have LoRA, by name."""
    if not model.config.lora:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [found for found in model.language_model.named_modules() if isinstance(found[1], BaseTunerLayer)]
