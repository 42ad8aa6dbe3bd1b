"""On a GPU: so400m's encoder on 1024x1024 images in bf16 (MFU), and agreement of the CPU and the GPU.

``python -m benchmarks.gpu [--peak TFLOPS]`` prints two tables. MFU counts linear layers, and attention as the sum of
squared lengths, against the device's dense bf16 peak. Agreement is of latents and of decoded patches, relative to the
largest value: targets 1e-4 in fp32 and 2e-2 in bf16; one image is one patch wide, where torch's CPU kernel for the
position table is known to differ (docs/conventions.md), and has a line of its own.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from functools import partial

import torch

from atoken.attention import backend
from atoken.model import ATokenModel
from atoken.presets import preset
from benchmarks.measure import best_of, encoder_operations, matrix_rate, random_tokens

PEAK = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0}  # dense bf16 TFLOP/s by the makers' data sheets
MIXED: Sequence[tuple[int, int, int]] = [(1, 16, 16), (4, 8, 8), (1, 5, 23), (9, 3, 4)]
ONE_COLUMN: Sequence[tuple[int, int, int]] = [(1, 7, 1)]


@torch.inference_mode()
def throughput(batches: Sequence[int], peak: float) -> None:
    """Print MFU of encoding so many 1024x1024 images at once."""
    model = ATokenModel(preset("so400m-c")).eval().to("cuda", torch.bfloat16)
    rate = matrix_rate(torch.bfloat16, "cuda")
    print(f"attention: {backend('cuda', torch.bfloat16).__name__}; matrix product {rate / 1e12:.0f} TFLOP/s")
    print("| images | ms | images/s | TFLOP/s | of the matrix product | MFU |\n| --- | --- | --- | --- | --- | --- |")
    for count in batches:
        tokens = random_tokens(model.config, [(1, 64, 64)] * count, "cuda")
        tokens = tokens.with_feats(tokens.feats.bfloat16())
        seconds = best_of(10, partial(model.encode, tokens), "cuda")
        speed = encoder_operations(model.config, tokens.lengths) / seconds
        print(
            f"| {count} | {seconds * 1e3:.1f} | {count / seconds:.1f} | {speed / 1e12:.0f} | {speed / rate:.1%} | "
            f"{speed / (peak * 1e12):.1%} |"
        )


@torch.inference_mode()
def agreement() -> None:
    """Print how far CPU and GPU are apart for mixed batches of images and videos, and for one column."""
    torch.manual_seed(0)
    model = ATokenModel(preset("base")).eval()
    print("| input | dtype | latents | decoded | target |\n| --- | --- | --- | --- | --- |")
    for dtype, target in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        twins = [copy.deepcopy(model).to(where, dtype) for where in ("cpu", "cuda")]
        for name, shapes in (("mixed sizes", MIXED), ("one column", ONE_COLUMN)):
            tokens = random_tokens(model.config, shapes)
            results = [twin(tokens.to(twin.device)) for twin in twins]
            latents = _apart(*(encoded.latents.feats for encoded, _ in results))
            decoded = _apart(*(patches.feats for _, patches in results))
            print(f"| {name} | {str(dtype).removeprefix('torch.')} | {latents:.1e} | {decoded:.1e} | {target:.0e} |")


def _apart(found: torch.Tensor, reference: torch.Tensor) -> float:
    reference = reference.float().cpu()
    return float((found.float().cpu() - reference).abs().max() / reference.abs().max())


def main() -> None:
    """Run both, or say that there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, help="the device's dense bf16 TFLOP/s, where it is not known here")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 8])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; run this on a machine that has one.")
    torch.set_float32_matmul_precision("highest")
    name = torch.cuda.get_device_name()
    peak = options.peak or next((value for key, value in PEAK.items() if key in name), None)
    if peak is None:
        raise SystemExit(f"The peak of {name} is not known here; pass --peak with its dense bf16 TFLOP/s.")
    print(f"{name}, torch {torch.__version__}, peak {peak:.0f} TFLOP/s")
    throughput(options.images, peak)
    agreement()


if __name__ == "__main__":
    main()
