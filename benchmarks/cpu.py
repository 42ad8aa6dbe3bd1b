"""Speed on this CPU: so400m against the matrix-product rate, and what stands around the network.

``python -m benchmarks.cpu`` prints a table; the machine should be otherwise idle.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from atoken.model import ATokenModel
from atoken.presets import preset
from benchmarks.measure import best_of, matrix_rate, operations, random_tokens

SHAPES = {"256x256 image": (1, 16, 16), "16x128x128 video": (4, 8, 8)}


def main() -> None:
    """Print the table of so400m in fp32 and bf16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = ATokenModel(preset("so400m-c")).eval()
    print(f"so400m-c, encode + decode, {options.threads} threads, best of {options.runs}")
    print("| input | dtype | seconds | Gop | Gop/s | matrix product Gop/s | share |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for name, shape in SHAPES.items():
            rate = matrix_rate(dtype)
            tokens = random_tokens(model.config, [shape])
            with torch.inference_mode():
                seconds = best_of(options.runs, partial(model, tokens))
            rate = max(rate, matrix_rate(dtype))
            work = operations(model.config, tokens.lengths)
            print(
                f"| {name} | {str(dtype).removeprefix('torch.')} | {seconds:.3f} | {work / 1e9:.0f} | "
                f"{work / seconds / 1e9:.0f} | {rate / 1e9:.0f} | {work / seconds / rate:.1%} |"
            )


if __name__ == "__main__":
    main()
