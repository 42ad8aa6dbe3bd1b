"""Values of more than 8 bits a channel to 8 bits, by the one rule of docs/conventions.md."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from atoken.errors import AtokenWarning, MediaError

if TYPE_CHECKING:
    import PIL.Image

_BITS = (8, 10, 12, 14, 16)  # of common sensors
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # byte orders; N is this machine's


def to_8_bits(values: np.ndarray, what: str) -> np.ndarray:
    """Keep the top 8 of the fewest of 8, 10, 12, 14 or 16 bits that hold the largest value, as uint8.

    Warns where that is not 16, but for 32-bit integers of 8 bits. Raises: MediaError (values below 0 or above 65535).
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise MediaError(f"{what} has 32-bit values from {low} to {high}; scale it to 8 or 16 bits first.")
    bits = next(bits for bits in _BITS if high < 1 << bits)
    if high and bits < 16 and (bits > 8 or values.dtype.itemsize == 2):
        text = (
            f"{what} has {8 * values.dtype.itemsize}-bit values up to {high}; 0..{(1 << bits) - 1} is mapped to 0..255."
        )
        warnings.warn(text, AtokenWarning, stacklevel=4)
    return (values >> (bits - 8)).astype(np.uint8)


def floats_to_8_bits(values: np.ndarray, what: str) -> np.ndarray:
    """Scale values that all lie in 0..1, round others in 0..255, as uint8. Raises: MediaError (other values)."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):
        raise MediaError(f"{what} has float values from {low:g} to {high:g}; scale it to 0..1 or 0..255 first.")
    return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)


def raw_mode(pil: PIL.Image.Image) -> str:
    """How an image that is not yet loaded stores its pixels, in Pillow's words; "" where it has none."""
    tiles = getattr(pil, "tile", [])
    return _raw_mode(tiles[0].args) if tiles else ""


def is_wide(mode: str) -> bool:
    """Whether a raw mode has 16 bits for each of several channels; Pillow keeps the high byte of those."""
    name, _, depth = mode.partition(";")
    return name in ("LA", "RGB", "RGBA", "RGBX") and depth[:2] == "16"


def low_bytes(pil: PIL.Image.Image) -> np.ndarray:
    """(H, W, C) uint8: the low bytes of an ``is_wide`` image that is not yet loaded, through the other byte order."""
    file: Any = pil
    if raw_mode(pil).startswith("LA"):  # for which Pillow has no other order; its four bytes are read as channels
        file._mode, file.tile = "RGBA", [tile._replace(args="RGBA") for tile in file.tile]
        return np.asarray(pil)[..., [1, 1, 1, 3]]
    file.tile = [tile._replace(args=_other_order(tile.args)) for tile in file.tile]
    return np.asarray(pil)


def _raw_mode(args: Any) -> str:
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _other_order(args: Any) -> Any:
    mode = _raw_mode(args)
    mode = mode[:-1] + _OTHER[mode[-1]]
    return mode if isinstance(args, str) else (mode, *args[1:])
