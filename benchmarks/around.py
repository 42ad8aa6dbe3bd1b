"""What stands around the network: time of everything else for a 1024x1024 image with ``base`` (random weights).

``python -m benchmarks.around`` prints each part and its share of the network's time. Patchify, the position tables,
packing and unpacking, unpatchify, and the token file written and read; reading and writing the image itself is not
counted (that is Pillow).
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from atoken.io import Image
from atoken.io.token_file import Tokens
from atoken.modalities.pixels import patchify, to_uint8, to_values, unpatchify
from atoken.model import ATokenModel
from atoken.presets import preset
from atoken.rope import rotation
from atoken.tokenizer import Tokenizer
from atoken.tokens import SparseTokens
from benchmarks.measure import best_of


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    size = 1024
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    model = ATokenModel(preset("base")).eval()
    tokenizer = Tokenizer(model, "base")
    packed = patchify(to_values(pixels[None]))
    tokens, patches = tokenizer.encode(Image(pixels)), model(packed)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.atok"
        tokens.save(path)
        parts = {
            "to [-1, 1] and patchify": lambda: patchify(to_values(pixels[None])),
            "position tables (both)": lambda: [side.position(packed) for side in (model.encoder, model.decoder)],
            "rotations (both)": lambda: [rotation(packed.coords, s.head_width) for s in (model.encoder, model.decoder)],
            "packing and unpacking": lambda: SparseTokens.pack(packed.unpack()),
            "unpatchify and to uint8": lambda: to_uint8(unpatchify(patches, 1, size, size)),
            "token file, written": partial(tokens.save, path),
            "token file, read": partial(Tokens.load, path),
        }
        seconds = {name: best_of(3, work) for name, work in parts.items()}
        stored = path.stat().st_size
    network = best_of(2, partial(model, packed))
    print(f"base, {size}x{size} image, fp32, {torch.get_num_threads()} threads; the network takes {network:.2f} s")
    print(f"(encode and decode; the position tables and rotations are part of it); the token file has {stored:,} bytes")
    print("| part | ms | share of the network |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {value * 1e3:.1f} | {value / network:.2%} |")
    print(f"| all | {sum(seconds.values()) * 1e3:.1f} | {sum(seconds.values()) / network:.2%} |")


if __name__ == "__main__":
    main()
