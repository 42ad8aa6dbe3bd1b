"""Tokens to write and compare, shared by the tests of token files."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atoken.bottleneck import FSQ
from atoken.io.token_file import TokenFile, Tokens, full_coords
from atoken.modalities import IMAGE

LEVELS = (4,) * 6
FINGERPRINT = "0123456789abcdef" * 4


def make(
    size: tuple[int, int] = (30, 17), frames: int = 1, *, discrete: bool = False, seed: int = 0, **fields: Any
) -> Tokens:
    rng = np.random.default_rng(seed)
    coords = full_coords(IMAGE, size, frames)
    levels = fields.setdefault("levels", LEVELS if discrete else None)
    codes = torch.from_numpy(rng.integers(0, int(np.prod(levels)), (len(coords), 2))) if levels else None
    latents = torch.from_numpy(rng.normal(size=(len(coords), 12)).astype(np.float32))
    defaults: dict[str, Any] = {
        "latents": latents if codes is None else FSQ(levels).from_codes(codes),
        "codes": codes,
        "coords": torch.from_numpy(coords),
        "modality": "image" if frames == 1 else "video",
        "fps": None if frames == 1 else Fraction(30000, 1001),
        "timestamps": None,
        "alpha": None,
        "pooled": torch.from_numpy(rng.normal(size=3).astype(np.float32)),
        "model": "nano",
        "fingerprint": FINGERPRINT,
        "name": "photo.jpg",
    }
    return Tokens(size=size, frames=frames, **(defaults | fields))


def take(tokens: Tokens, rows: np.ndarray) -> Tokens:
    codes = None if tokens.codes is None else tokens.codes[rows]
    return replace(tokens, latents=tokens.latents[rows], coords=tokens.coords[rows], codes=codes)


def assert_same(left: Tokens, right: Tokens) -> None:
    for name in Tokens.__dataclass_fields__:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, torch.Tensor):
            a, b = a.numpy(), b.numpy()
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name
        else:
            assert a == b, name


def read_all(path: Path) -> list[Tokens]:
    with TokenFile(path) as file:
        return [file.read(index) for index in range(len(file))]


def frame_tokens(frames: int = 57, **fields: Any) -> Tokens:
    return make((32, 48), frames, timestamps=np.arange(frames) / 24 + 0.5, **fields)
