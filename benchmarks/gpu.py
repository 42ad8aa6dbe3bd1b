"""On a GPU: so400m's encoder on 1024x1024 images in bf16 (MFU), and agreement of the CPU and the GPU.

``python -m benchmarks.gpu [--peak TFLOPS]`` prints two tables. MFU counts linear layers, and attention as the sum of
squared lengths, against the device's dense bf16 peak. Agreement is the largest difference of latents and of decoded
patches, relative to the largest value; targets are 1e-4 in fp32 and 2e-2 in bf16. An image that is one patch wide has
its own row: torch's CPU kernel for its position table is known to differ (docs/conventions.md).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch

from atoken.attention import backend
from atoken.model import ATokenModel
from atoken.presets import preset
from atoken.train.devices import device_peak
from benchmarks.measure import best_of, encoder_operations, matrix_rate, random_tokens
from benchmarks.tables import head, options, row

BATCHES = (1, 4, 8)  # images encoded at once
SHAPES: dict[str, Sequence[tuple[int, int, int]]] = {
    "mixed sizes": [(1, 16, 16), (4, 8, 8), (1, 5, 23), (9, 3, 4)],
    "one column": [(1, 7, 1)],
}
TARGETS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@torch.inference_mode()
def throughput(peak: float) -> None:
    """Print the MFU of encoding several 1024x1024 images at once; ``peak`` in FLOP/s."""
    model = ATokenModel(preset("so400m-c")).eval().to("cuda", torch.bfloat16)
    rate = matrix_rate(torch.bfloat16, "cuda")
    print(f"attention: {backend('cuda', torch.bfloat16).__name__}; matrix product {rate / 1e12:.0f} TFLOP/s\n")
    head("images", "ms", "images/s", "TFLOP/s", "of the matrix product", "MFU")
    for count in BATCHES:
        tokens = random_tokens(model.config, [(1, 64, 64)] * count, "cuda")
        tokens = tokens.with_feats(tokens.feats.bfloat16())
        seconds = best_of(10, partial(model.encode, tokens), "cuda")
        speed = encoder_operations(model.config, tokens.lengths) / seconds
        shares = f"{speed / rate:.1%}", f"{speed / peak:.1%}"
        row(count, f"{seconds * 1e3:.1f}", f"{count / seconds:.1f}", f"{speed / 1e12:.0f}", *shares)


@torch.inference_mode()
def agreement() -> None:
    """Print the differences of CPU and GPU."""
    torch.manual_seed(0)
    model = ATokenModel(preset("base")).eval()
    head("input", "dtype", "latents", "decoded", "target")
    for dtype, target in TARGETS.items():
        twins = [copy.deepcopy(model).to(device, dtype) for device in ("cpu", "cuda")]
        for name, shapes in SHAPES.items():
            tokens = random_tokens(model.config, shapes)
            results = [twin(tokens.to(twin.device)) for twin in twins]
            latents = _difference(*(encoded.latents.feats for encoded, _ in results))
            decoded = _difference(*(patches.feats for _, patches in results))
            row(name, str(dtype).removeprefix("torch."), f"{latents:.1e}", f"{decoded:.1e}", f"{target:.0e}")


def _difference(reference: torch.Tensor, found: torch.Tensor) -> float:
    reference = reference.float().cpu()
    return float((found.float().cpu() - reference).abs().max() / reference.abs().max())


def main() -> None:
    """Print both tables, or say that there is no GPU."""
    chosen = options(__doc__, peak=0)
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; run this on a machine that has one.")
    torch.set_float32_matmul_precision("highest")
    name = torch.cuda.get_device_name()
    peak = chosen.peak * 1e12 or device_peak(name)
    if peak is None:
        raise SystemExit(f"The peak of {name} is not known; pass its dense bf16 TFLOP/s with --peak.")
    print(f"{name}, torch {torch.__version__}, peak {peak / 1e12:.0f} TFLOP/s")
    throughput(peak)
    agreement()


if __name__ == "__main__":
    main()
