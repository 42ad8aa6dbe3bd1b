"""Speed on this CPU: so400m against the matrix-product rate, and everything around the network for a large image.

``python -m benchmarks.cpu`` prints two tables; the machine should be otherwise idle. The second is of a 1024x1024 image
and ``base`` with random weights: patchify, position tables, packing and unpacking, unpatchify, and the token file
written and read, each with its share of the network's time. Pillow's reading and writing of the image is not counted.
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
from benchmarks.measure import best_of, matrix_rate, operations, random_tokens
from benchmarks.tables import head, options, row

SHAPES = {"256x256 image": (1, 16, 16), "16x128x128 video": (4, 8, 8)}
SIDE = 1024


@torch.inference_mode()
def network(runs: int) -> None:
    """Print the table of so400m in fp32 and bf16."""
    model = ATokenModel(preset("so400m-c")).eval()
    print(f"so400m-c, encode + decode, {torch.get_num_threads()} threads, best of {runs}\n")
    head("input", "dtype", "seconds", "Gop", "Gop/s", "matrix product Gop/s", "share")
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for name, shape in SHAPES.items():
            rate = matrix_rate(dtype)
            tokens = random_tokens(model.config, [shape])
            seconds = best_of(runs, partial(model, tokens))
            rate = max(rate, matrix_rate(dtype))
            work = operations(model.config, tokens.lengths)
            speeds = f"{work / seconds / 1e9:.0f}", f"{rate / 1e9:.0f}", f"{work / seconds / rate:.1%}"
            row(name, str(dtype).removeprefix("torch."), f"{seconds:.3f}", f"{work / 1e9:.0f}", *speeds)


@torch.inference_mode()
def around() -> None:
    """Print the table of what surrounds the network."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    model = ATokenModel(preset("base")).eval()
    sides = model.encoder, model.decoder
    packed = patchify(to_values(pixels[None]))
    tokens, patches = Tokenizer(model, "base").encode(Image(pixels)), model(packed)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.atok"
        tokens.save(path)
        parts = {
            "to [-1, 1] and patchify": lambda: patchify(to_values(pixels[None])),
            "position tables (both)": lambda: [side.position(packed) for side in sides],
            "rotations (both)": lambda: [rotation(packed.coords, side.head_width) for side in sides],
            "packing and unpacking": lambda: SparseTokens.pack(packed.unpack()),
            "unpatchify and to uint8": lambda: to_uint8(unpatchify(patches, 1, SIDE, SIDE)),
            "token file, written": partial(tokens.save, path),
            "token file, read": partial(Tokens.load, path),
        }
        seconds = {name: best_of(3, work) for name, work in parts.items()}
        stored = path.stat().st_size
    whole = best_of(2, partial(model, packed))
    print(
        f"\nbase, {SIDE}x{SIDE} image, fp32: encode and decode take {whole:.2f} s, which includes the position tables"
    )
    print(f"and rotations; the token file has {stored:,} bytes\n")
    head("part", "ms", "share of the network")
    for name, value in (seconds | {"all": sum(seconds.values())}).items():
        row(name, f"{value * 1e3:.1f}", f"{value / whole:.2%}")


def main() -> None:
    """Print both tables."""
    chosen = options(__doc__, threads=torch.get_num_threads(), runs=5)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    network(chosen.runs)
    around()


if __name__ == "__main__":
    main()
