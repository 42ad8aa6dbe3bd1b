"""What benchmarks measure: the matrix-product rate of this run, a model's operations, the best of several runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from atoken.model import ATokenConfig
from atoken.patches import grid_coords
from atoken.tokens import SparseTokens


def best_of(runs: int, work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of the fastest of ``runs`` runs, after a first one that does not count."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def matrix_rate(dtype: torch.dtype, device: str = "cpu", size: int = 4096, runs: int = 3) -> float:
    """Operations a second of the fastest of several 4096^3 ``torch.mm``."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / best_of(runs, lambda: torch.mm(left, right), device)


def operations(config: ATokenConfig, lengths: Sequence[int]) -> int:
    """Multiplications and additions of encode + decode; see ``encoder_operations``."""
    return encoder_operations(config, lengths) + _side(config, "decoder", config.latent_channels, lengths)


def encoder_operations(config: ATokenConfig, lengths: Sequence[int], latents: int | None = None) -> int:
    """Multiplications and additions of encode: linear layers, and attention as the sum of squared lengths.

    The pooling head, norms and rotations are not counted. latents: 0 if the features are all that is computed.
    """
    return _side(config, "encoder", 2 * config.latent_channels if latents is None else latents, lengths)


def _side(config: ATokenConfig, side: str, latents: int, lengths: Sequence[int]) -> int:
    width, layers, mlp = (getattr(config, f"{side}_{name}") for name in ("width", "layers", "mlp"))
    linear = layers * 2 * (4 * width * width + 2 * width * mlp) + 2 * width * (config.patch_values + latents)
    return sum(lengths) * linear + layers * 4 * width * sum(n * n for n in lengths)


def random_tokens(config: ATokenConfig, shapes: Sequence[tuple[int, int, int]], device: str = "cpu") -> SparseTokens:
    """Packed random patches on full grids of (time steps, rows, columns)."""
    samples = []
    for shape in shapes:
        coords = grid_coords(*shape)
        feats = torch.rand(len(coords), config.patch_values) * 2 - 1
        samples.append(SparseTokens(feats, coords, (len(coords),)))
    return SparseTokens.pack(samples).to(device)
