"""The plain rasteriser on this CPU: time and memory by number of Gaussians, without and with gradients.

``python -m benchmarks.rasterize`` prints two tables; the machine should be otherwise idle. The scene is a shell of
radius 0.45 of Gaussians of scale 0.004 and random opacity, seen at 40 degrees from distance 2. Each row has its own
process; its memory is the rise of the peak (``ru_maxrss``) while it draws. Targets on 2 cores: 500,000 Gaussians at
512x512 in 12 s, and 20,000 at 128x128 forward and backward in 1 s.
"""

from __future__ import annotations

import multiprocessing
import resource
from functools import partial

import torch

from atoken.cameras import Cameras
from atoken.gaussians import Gaussians
from benchmarks.measure import best_of
from benchmarks.tables import head, options, row

FORWARD = [(count, 512, None) for count in (10_000, 20_000, 50_000, 100_000, 200_000, 500_000)]
FORWARD += [(500_000, 512, 0.02), (500_000, 1024, None), (1_000_000, 512, None)]
BACKWARD = [(count, 128, None) for count in (10_000, 20_000, 50_000, 100_000)] + [(500_000, 512, None)]


def shell(count: int, opacity: float | None) -> Gaussians:
    """Gaussians on a sphere of radius 0.45; opacities are uniform in 0..1 unless ``opacity`` is given."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    opacities = torch.rand(count, generator=generator) if opacity is None else torch.full((count,), opacity)
    colors = torch.rand(count, 3, generator=generator)
    return Gaussians(0.45 * directions, torch.full((count, 3), 0.004), quats, opacities, colors)


def draw(gaussians: Gaussians, side: int, backward: bool) -> None:
    """Draw one view; with ``backward``, also the gradient of its mean square with respect to all parameters."""
    with torch.set_grad_enabled(backward):
        rgb = gaussians.render(Cameras.turntable(1), side)
        if backward:
            rgb.square().mean().backward()


def measured(
    count: int, side: int, opacity: float | None, backward: bool, threads: int, runs: int
) -> tuple[float, float]:
    """Seconds of the best run, and MiB by which the peak rises."""
    torch.set_num_threads(threads)
    gaussians = shell(count, opacity)
    for tensor in vars(gaussians).values():
        tensor.requires_grad_(backward)
    draw(shell(10, None), 8, False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = best_of(runs, partial(draw, gaussians, side, backward))
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def table(cases: list[tuple[int, int, float | None]], backward: bool, threads: int, runs: int) -> None:
    """Print a row for each (Gaussians, side, opacity)."""
    head("Gaussians", "image", "opacity", "seconds", "microseconds a Gaussian", "MiB")
    for count, side, opacity in cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, memory = pool.apply(measured, (count, side, opacity, backward, threads, runs))
        shown = "0 to 1" if opacity is None else f"{opacity:g}"
        each = f"{seconds / count * 1e6:.1f}"
        row(f"{count:,}", f"{side}x{side}", shown, f"{seconds:.2f}", each, f"{memory:.0f}")


def main() -> None:
    """Print both tables."""
    chosen = options(__doc__, threads=torch.get_num_threads(), runs=3)
    print(f"One view, {chosen.threads} threads, best of {chosen.runs}\n\nForward\n")
    table(FORWARD, False, chosen.threads, chosen.runs)
    print("\nForward and backward\n")
    table(BACKWARD, True, chosen.threads, chosen.runs)


if __name__ == "__main__":
    main()
