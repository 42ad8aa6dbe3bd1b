"""Where a model computes, and in which precision: what ``load`` and ``Tokenizer.to`` are given, checked."""

from __future__ import annotations

import torch

from atoken.errors import CheckpointError


def checked_device(device: str | torch.device) -> torch.device:
    """The device, "auto" being CUDA where there is one, else the CPU. Raises: CheckpointError if it is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        raise CheckpointError(f"This machine has no device {str(device)!r}; pass device='cpu'.") from error
    if chosen.type == "meta":
        raise CheckpointError("The device 'meta' holds no numbers to compute with; pass device='cpu'.")
    return chosen


def checked_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The precision, "auto" being bfloat16 on CUDA and float32 elsewhere. Raises: CheckpointError."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise CheckpointError(f"dtype must be auto, float32 or bfloat16, got {dtype!r}.")
    return found
