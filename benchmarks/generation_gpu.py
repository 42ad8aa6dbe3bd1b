"""Lightning-DiT on a GPU: images a second and MFU of sampling and of training, and what q/k norm costs.

``python -m benchmarks.generation_gpu --compiled`` prints two tables of ``XL/1`` on 256 tokens of 48 channels, in bf16:
one of sampling with guidance at every step, where both halves are one batch, without decoding; one of training steps by
the plain engine. With and without q/k norm take turns, and the fastest of ``--runs`` counts. MFU counts products and
attention against the device's dense bf16 peak. On a machine without a GPU the same runs in fp32, which takes smaller
sizes: ``--preset nano --batch 4 --steps 4``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from atoken.store.batches import StoreBatch
from atoken.train.devices import device_peak, mfu, percent
from atoken.train.engine import PlainEngine
from atoken.train.recipe import Recipe
from benchmarks.measure import matrix_rate
from benchmarks.tables import head, row
from generation.dit import DiT
from generation.guidance import Guidance, guided
from generation.objectives import FlowObjective
from generation.presets import sizes
from generation.sampling import sample, sigma_steps

SIDE, CHANNELS, CLASSES = 16, 48, 1000
COLUMNS = ("seconds", "images/s", "TFLOP/s", "of the matrix product", "MFU")


class Bench:
    """One model with and one without q/k norm, on a device, and what its work is compared with."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        self.peak = options.peak * 1e12 or device_peak(name)
        self.rate = matrix_rate(self.dtype, self.device, 4096 if self.device == "cuda" else 1024)
        peak = "not known" if self.peak is None else f"{self.peak / 1e12:.0f} TFLOP/s"
        print(f"{name}, torch {torch.__version__}, {self.dtype}: peak {peak}, products {self.rate / 1e12:.3g} TFLOP/s")

    def model(self, qk_norm: bool) -> DiT:
        """Random weights, none of them zero, whose products would be as fast but whose gradients would not."""
        size: dict[str, Any] = sizes("dit", self.options.preset)
        size |= {"depth": self.options.depth or size["depth"]}
        torch.manual_seed(0)
        with torch.device(self.device):
            model = DiT(side=SIDE, channels=CHANNELS, classes=CLASSES, qk_norm=qk_norm, **size)
            for weight in model.parameters():
                torch.nn.init.normal_(weight, std=0.02)
        if self.options.compiled:
            model.compile(fullgraph=True)
        return model

    def batch(self) -> StoreBatch:
        """Micro-batch of random latents."""
        count = self.options.batch
        labels = torch.arange(count) % CLASSES
        return StoreBatch(torch.randn(count, CHANNELS, SIDE, SIDE), None, labels, (), tuple(range(count)), 0)

    def sampling(self, qk_norm: bool) -> tuple[Callable[[], Any], float]:
        """All steps for one batch, and its FLOPs."""
        model = self.model(qk_norm).to(self.dtype).eval()
        labels_B = self.batch().label_ids.to(self.device)
        noise = torch.randn(self.options.batch, CHANNELS, SIDE, SIDE, device=self.device)
        velocity = guided(
            lambda x, sigma_B, labels_B: model(x.to(self.dtype), sigma_B, labels_B),
            labels_B, torch.full_like(labels_B, CLASSES), Guidance(1.65),
        )  # fmt: skip
        flops = 2 * FlowObjective(model).counted(self.batch()).forward * self.options.steps
        return lambda: sample(velocity, noise, sigma_steps(self.options.steps)), flops

    def training(self, qk_norm: bool) -> tuple[Callable[[], Any], float]:
        """A step, and its FLOPs."""
        recipe = Recipe(steps=10**6, warmup=0, mixed_precision=self.device == "cuda")
        objective, batch = FlowObjective(self.model(qk_norm)), self.batch()
        engine = PlainEngine(objective, recipe, self.device)
        return lambda: engine.train([batch]), objective.flops(batch)

    def table(self, what: str, build: Callable[[bool], tuple[Callable[[], Any], float]]) -> None:
        """Print a row with, and a row without; the last column is what q/k norm adds to the time."""
        (plain, plain_flops), (normed, normed_flops) = build(False), build(True)
        seconds = self._fastest(plain, normed)
        head(what, *COLUMNS, "q/k norm costs")
        names = ("without q/k norm", "with q/k norm")
        costs = ("", f"{seconds[1] / seconds[0] - 1:.1%}")
        for name, taken, flops, cost in zip(names, seconds, (plain_flops, normed_flops), costs, strict=True):
            row(
                name, f"{taken:.3f}", f"{self.options.batch / taken:.2f}", f"{flops / taken / 1e12:.3g}",
                f"{flops / taken / self.rate:.1%}", percent(mfu(flops, taken, self.peak)), cost,
            )  # fmt: skip

    def _fastest(self, *works: Callable[[], Any]) -> list[float]:
        """Seconds of each, which take turns; the first turn, in which they are compiled, does not count."""
        turns = [[self._seconds(work) for work in works] for _ in range(self.options.runs + 1)]
        return [min(times) for times in zip(*turns[1:], strict=True)]

    def _seconds(self, work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="XL/1", help="of dit (default: XL/1)")
    parser.add_argument("--depth", type=int, help="layers, where fewer than those of the preset fit")
    parser.add_argument("--batch", type=int, default=32, help="images at a time (default: 32)")
    parser.add_argument("--steps", type=int, default=50, help="of Euler (default: 50)")
    parser.add_argument("--runs", type=int, default=3, help="that count (default: 3)")
    parser.add_argument("--peak", type=float, default=0, help="dense bf16 TFLOP/s, where it is not known by name")
    parser.add_argument("--compiled", action="store_true", help="by torch.compile, once for each table and row")
    bench = Bench(parser.parse_args())
    with torch.no_grad():
        bench.table("sampling", bench.sampling)
    print()
    bench.table("training", bench.training)


if __name__ == "__main__":
    main()
