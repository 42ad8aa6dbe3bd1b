"""Named sizes of the model. ``nano`` and ``nano-d`` come with weights inside the package."""

from __future__ import annotations

from pathlib import Path

from atoken.model import ATokenConfig

FSQ_LEVELS = (4,) * 6  # of one group; 48 channels are 8 groups of 4096 codes (paper section 3.4)
BUNDLED = Path(__file__).parent / "weights"


def _sides(width: int, layers: int, heads: int, mlp: int) -> dict[str, int]:
    sizes = {"width": width, "layers": layers, "heads": heads, "mlp": mlp}
    return {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}


SMALL_GAUSSIAN_DECODER = {"width": 192, "layers": 4, "heads": 4, "mlp": 768, "neighborhood": 5}
NANO = _sides(192, 6, 4, 768) | {"gaussian_decoder": SMALL_GAUSSIAN_DECODER}
BASE = _sides(768, 12, 12, 3072)
SO400M = _sides(1152, 27, 16, 4304)
GAUSSIAN_DECODER = {"width": 768, "layers": 12, "heads": 12, "mlp": 3072}  # the published one; comes with weights only

PRESETS: dict[str, dict] = {
    "nano": NANO,
    "nano-d": NANO | {"encoder_layers": 7, "decoder_layers": 7, "fsq_levels": FSQ_LEVELS},
    "base": BASE,
    "base-s1": BASE | {"latent_channels": 32},
    "base-d": BASE | {"fsq_levels": FSQ_LEVELS},
    "so400m-c": SO400M,
    "so400m-c-s1": SO400M | {"latent_channels": 32},
    "so400m-d": SO400M | {"fsq_levels": FSQ_LEVELS},
}


def preset(name: str) -> ATokenConfig:
    """A new configuration by name. Raises ValueError with the known names."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return ATokenConfig(**PRESETS[name])
