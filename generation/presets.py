"""Named sizes of the generators: as published, and ``nano``, which a laptop trains: at most 10 MiB in bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atoken.errors import AtokenError
from atoken.presets import FSQ_LEVELS

BUNDLED = Path(__file__).parent / "bundled"

_DIT = {  # width, depth, heads (LightningDiT, Yao et al. 2025)
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
DIT: dict[str, dict[str, Any]] = {
    f"{name}/{patch}": {"width": width, "depth": depth, "heads": heads, "patch": patch}
    for name, (width, depth, heads) in _DIT.items()
    for patch in (1, 2)
} | {"nano": {"width": 192, "depth": 7, "heads": 4, "patch": 1}}

_CODES = {"tokens": 8, "levels": 4096, "fsq_levels": FSQ_LEVELS}  # of AToken-D (paper section 5.3)
_SCALARS = {
    "tokens": 16, "levels": 64, "fsq_levels": None,
    "order": (8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5),  # by frequencies of their autoencoder's channels
}  # fmt: skip
_TOKENBRIDGE: dict[str, dict[str, Any]] = {  # TokenBridge, Wang et al. 2025
    "base": {"encoder_size": (768, 12, 12), "decoder_size": (768, 12, 12), "head_size": (768, 4, 8)},
    "L": {"encoder_size": (1024, 16, 16), "decoder_size": (1024, 16, 16), "head_size": (1024, 4, 8)},
    "H": {"encoder_size": (1280, 20, 16), "decoder_size": (1280, 20, 16), "head_size": (1024, 6, 8)},
}
TOKENBRIDGE: dict[str, dict[str, Any]] = (
    {name: size | _CODES for name, size in _TOKENBRIDGE.items()}
    | {f"{name}/scalars": size | _SCALARS for name, size in _TOKENBRIDGE.items()}
    | {
        "nano": {
            "encoder_size": (192, 3, 4), "decoder_size": (192, 5, 4), "head_size": (96, 3, 4), "buffer": 8,
            "dropout": 0.0, "shared": True, **_CODES,
        }
    }
)  # fmt: skip

# Ours: the paper gives no sizes of its MMDiT.
MMDIT: dict[str, dict[str, Any]] = {
    "nano": {"width": 160, "depth": 6, "heads": 5},
    "S": {"width": 512, "depth": 14, "heads": 8},
    "1B": {"width": 1152, "depth": 21, "heads": 18},
}

# TRELLIS's, Xiang et al. 2024; nano is for grids of 32 voxels a side.
STRUCTURE_VAE: dict[str, dict[str, Any]] = {
    "L": {"channels": (32, 128, 512), "latents": 8},
    "nano": {"channels": (8, 24, 48), "latents": 8, "blocks": 1, "middle": 1},
}
STRUCTURE: dict[str, dict[str, Any]] = {
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "nano": {"width": 144, "depth": 6, "heads": 4, "shared": True},
}
SLAT: dict[str, dict[str, Any]] = {
    "L": {"width": 1024, "depth": 24, "heads": 16, "io_channels": (128,)},
    "nano": {"width": 128, "depth": 6, "heads": 4, "shared": True, "io_channels": (32,)},
}

_KINDS = {
    "dit": DIT, "tokenbridge": TOKENBRIDGE, "mmdit": MMDIT, "structure-vae": STRUCTURE_VAE, "structure": STRUCTURE,
    "slat": SLAT,
}  # fmt: skip


def sizes(kind: str, name: str) -> dict[str, Any]:
    """The arguments of the model that a kind trains: ``DiT``, ``MaskedAR`` and so on. Raises: AtokenError."""
    known = _KINDS[kind]
    if name not in known:
        raise AtokenError(f"There is no preset {name} of {kind}; there are {', '.join(known)}.")
    return known[name]


def folder_of(source: str | Path) -> Path:
    """The folder of a bundled pipeline, by name; any other source unchanged, as a path."""
    bundled = {folder.name: folder for folder in BUNDLED.glob("*/")}
    return bundled.get(str(source), Path(source))
