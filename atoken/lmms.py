"""What lmms-eval finds by the entry point ``lmms_eval.models``: the vision-language models of ``mllm/``.

It is here because an entry point that fails hides those of others, and ``mllm/`` is not installed with the package: it
is there where lmms-eval is started in a checkout, by ``python -m lmms_eval``.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

MODEL = "atoken_vl"  # of lmms-eval's --model


def models() -> list[Any]:
    """One manifest, or none outside of a checkout."""
    if find_spec("mllm") is None:
        return []
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(MODEL, "mllm.lmms.Simple", "mllm.lmms.WithMessages")]
