"""``Summary``: a repr of one line for dataclasses that hold arrays and tensors."""

from __future__ import annotations

import reprlib
from dataclasses import fields
from typing import Any


class Summary:
    """Base of dataclasses made with ``repr=False``: arrays as dtype, shape and device; what is None is left out."""

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in values.items() if value is not None)
        return f"{type(self).__name__}({shown})"


def _shown(value: Any) -> str:
    if isinstance(value, Summary):
        return repr(value)
    if isinstance(value, tuple) and value and hasattr(value[0], "shape"):
        return f"{len(value)} of {_shown(value[0])}"
    if not hasattr(value, "shape"):
        return reprlib.repr(value)
    dtype = str(value.dtype)
    device = f" on {value.device}" if dtype.startswith("torch.") else ""
    return f"{dtype.removeprefix('torch.')} {tuple(value.shape)}{device}"
