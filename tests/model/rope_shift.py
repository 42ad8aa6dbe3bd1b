"""How much the rotary embedding changes a newly initialised SigLIP2 tower: ``python -m tests.model.rope_shift``.

A ``Siglip2VisionModel`` with transformers' random initialisation is loaded with the rotary embedding off, which gives
exactly its features, and on. Prints relative L2 distance and cosine of features and pooled vectors.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity
from transformers import Siglip2VisionConfig, Siglip2VisionModel

from atoken.checkpoint import from_siglip2
from atoken.model import ATokenConfig
from atoken.presets import PRESETS
from benchmarks.measure import random_tokens
from benchmarks.tables import head, row

SHAPES = {"256x256": (1, 16, 16), "512x256": (1, 32, 16), "64x64": (1, 4, 4)}


@torch.inference_mode()
def main() -> None:
    """Print the table for two sizes of the tower."""
    torch.manual_seed(0)
    head("tower", "image", "features, relative L2", "features, cosine", "pooled, relative L2", "pooled, cosine")
    for name in ("base", "so400m-c"):
        sizes = PRESETS[name] | {"decoder_layers": 1}
        tower = Siglip2VisionModel(
            Siglip2VisionConfig(
                hidden_size=sizes["encoder_width"], intermediate_size=sizes["encoder_mlp"],
                num_hidden_layers=sizes["encoder_layers"], num_attention_heads=sizes["encoder_heads"],
            )
        ).eval()  # fmt: skip
        plain, rotated = (from_siglip2(tower, ATokenConfig(**sizes, rope=rope)) for rope in (False, True))
        for shape_name, shape in SHAPES.items():
            tokens = random_tokens(plain.config, [shape])
            found, reference = rotated.encode(tokens), plain.encode(tokens)
            pairs = ((found.features.feats, reference.features.feats), (found.pooled, reference.pooled))
            distances = [(float((a - b).norm() / b.norm()), float(cosine_similarity(a, b).mean())) for a, b in pairs]
            row(name, shape_name, *(cell for far, cosine in distances for cell in (f"{far:.3f}", f"{cosine:.4f}")))


if __name__ == "__main__":
    main()
