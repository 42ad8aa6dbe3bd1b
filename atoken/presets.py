"""Named sizes of the model. ``nano`` and ``nano-d`` come with weights inside the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atoken.model import ATokenConfig

FSQ_LEVELS = (4,) * 6  # of one group of channels: 48 channels make 8 groups of 4096 codes (paper section 3.4)
BUNDLED = Path(__file__).parent / "weights"


def _sides(width: int, layers: int, heads: int, mlp: int) -> dict[str, int]:
    sizes = {"width": width, "layers": layers, "heads": heads, "mlp": mlp}
    return {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}


SMALL_GAUSSIAN_DECODER = {"width": 192, "layers": 4, "heads": 4, "mlp": 768, "neighborhood": 5}
SMALL_TEXT_TOWER = {
    "vocab_size": 896, "hidden_size": 96, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 32, "projection_size": 192, "pad_token_id": 1, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
# Scale and bias of image-text similarities start at 10 and -10, as in SigLIP (Zhai et al. 2023, section 3.3).
FROM_SCRATCH = {"logit_scale_init": 2.3026, "logit_bias_init": -10.0}
# Weights start with deviation 1 / sqrt(width): from 0.02, which suits a width of 2,500, nano learns no shapes.
NANO: dict[str, Any] = _sides(192, 6, 4, 768) | FROM_SCRATCH | {"initializer_range": 192**-0.5}
NANO |= {"gaussian_decoder": SMALL_GAUSSIAN_DECODER, "text": SMALL_TEXT_TOWER}
BASE = _sides(768, 12, 12, 3072)
SO400M = _sides(1152, 27, 16, 4304)
GAUSSIAN_DECODER = {"width": 768, "layers": 12, "heads": 12, "mlp": 3072}  # as published

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


def folder_of(source: str | Path) -> Path:
    """The folder of a bundled model, by name; any other source unchanged, as a path."""
    bundled = {folder.name: folder for folder in BUNDLED.glob("*/")}
    return bundled.get(str(source), Path(source))


def name_of(source: Path) -> str:
    """What a model is called in token files and tables: as its file or folder, or as the run that left RUN/model."""
    path = source.absolute()
    return path.stem if path.is_file() else path.parent.name if path.name == "model" else path.name


def preset(name: str) -> ATokenConfig:
    """A new configuration by name. Raises ValueError with the known names."""
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return ATokenConfig(**PRESETS[name])
