"""A vision-language model on the frozen tower: SlowFast-LLaVA-1.5 for images, videos and 3D assets.

The first touch of a name makes the ``Auto`` classes of transformers know the model.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mllm.assembly import assemble as assemble
    from mllm.assembly import load as load
    from mllm.chat import Chat as Chat
    from mllm.config import ATokenVLConfig as ATokenVLConfig
    from mllm.conversation import MediaItem as MediaItem
    from mllm.model import ATokenVLForConditionalGeneration as ATokenVLForConditionalGeneration
    from mllm.processor import ATokenVLProcessor as ATokenVLProcessor
    from mllm.slowfast import SlowFast as SlowFast
    from mllm.slowfast import token_budget as token_budget

_HOME = {
    "assemble": "assembly", "ATokenVLConfig": "config", "ATokenVLForConditionalGeneration": "model",
    "ATokenVLProcessor": "processor", "Chat": "chat", "load": "assembly", "MediaItem": "conversation",
    "SlowFast": "slowfast", "token_budget": "slowfast",
}  # fmt: skip
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mllm' has no attribute {name!r}")
    importlib.import_module("mllm.assembly")  # which imports, and registers, everything
    return getattr(importlib.import_module(f"mllm.{_HOME[name]}"), name)
