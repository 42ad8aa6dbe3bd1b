"""Speed on this CPU: so400m against the matrix-product rate, and everything around the network for a large image.

``python -m benchmarks.cpu`` prints three tables; the machine should be otherwise idle. The last is of a 1024x1024
image and ``base`` with random weights: patchify, position tables, packing and unpacking, unpatchify, and the token file
written and read, each with its share of the network's time. Pillow's reading and writing of the image is not counted.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

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
from atoken.tower import ATokenVisionModel
from benchmarks.measure import best_of, encoder_operations, matrix_rate, operations, random_tokens
from benchmarks.tables import head, options, row

SHAPES = {"256x256 image": (1, 16, 16), "16x128x128 video": (4, 8, 8)}
TOWER_SIDE = 384
SIDE = 1024


def network(runs: int) -> None:
    """Print the tables of so400m in fp32 and bf16: encode and decode, and the vision tower."""
    model = ATokenModel(preset("so400m-c")).eval()
    tokens = {name: random_tokens(model.config, [shape]) for name, shape in SHAPES.items()}
    works = {name: operations(model.config, packed.lengths) for name, packed in tokens.items()}
    _rates("encode + decode", runs, model, tokens, works)
    side = TOWER_SIDE
    tower = ATokenVisionModel.from_atoken(model)
    pixels = {f"{side}x{side} image": torch.rand(1, 3, side, side) * 2 - 1}
    work = encoder_operations(model.config, [(side // 16) ** 2], latents=0)
    print()
    _rates("vision tower", runs, tower, pixels, dict.fromkeys(pixels, work))


@torch.inference_mode()
def _rates(what: str, runs: int, model: torch.nn.Module, inputs: dict[str, Any], works: dict[str, int]) -> None:
    """A row for each input in fp32 and bf16; ``works``: its multiplications and additions."""
    print(f"so400m-c, {what}, {torch.get_num_threads()} threads, best of {runs}\n")
    head("input", "dtype", "seconds", "Gop", "Gop/s", "matrix product Gop/s", "share")
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for name, argument in inputs.items():
            rate = matrix_rate(dtype)
            seconds = best_of(runs, partial(model, argument))
            rate, work = max(rate, matrix_rate(dtype)), works[name]
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
    """Print the tables."""
    chosen = options(__doc__, threads=torch.get_num_threads(), runs=5)
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    network(chosen.runs)
    around()


if __name__ == "__main__":
    main()
