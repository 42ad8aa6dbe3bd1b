"""What the harness costs in addition to the networks.

``python -m benchmarks.evaluation [--items 1000] [--model nano]``: procedural 256x256 images, read from PNG files, go
through the model with PSNR, SSIM and a Frechet distance between nano's own vectors, on one thread. The table shows how
much of the time is spent outside of the model and of that network.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

from atoken.data.synthetic.procedural import make_image
from atoken.io import Image, write_image
from eval.command import parser
from eval.commands import job
from eval.measures import NANO, PIXELS
from eval.models.by_name import model_of
from eval.run import measure
from eval.sources.folders import images
from eval.tasks import LOCAL

SEED, SIDE = 1_000_003, 256


class Timed:
    """Passes everything on, and adds up the seconds of one of its calls."""

    def __init__(self, inner: Any, call: str) -> None:
        self._inner, self._call, self.seconds = inner, call, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return (lambda *arguments: self._timed(found, *arguments)) if name == self._call else found

    def _timed(self, call: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=1000)
    options.add_argument("--model", default="nano")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(chosen.items):
            frame = make_image(SEED, number, SIDE, SIDE).frames[0]
            write_image(Image(np.ascontiguousarray(frame)), Path(folder) / f"{number:05d}.png")
        throughput(Path(folder), chosen.items, chosen.model)


def throughput(folder: Path, items: int, name: str) -> None:
    """Measure the images of a folder and print the table."""
    options = parser().parse_args(["reconstruct", str(folder), "--model", name, "--device", "cpu"])
    builds = {metric: PIXELS[metric] for metric in ("psnr", "ssim")} | NANO
    task = replace(LOCAL["image"], metrics=builds, shard=96, batch=8)
    model: Any = Timed(model_of(options), "reconstruct")
    work = job(options, task, images(folder), model)
    (metric,) = [metric for metric in work.metrics if hasattr(metric, "network")]
    metric.network = network = Timed(metric.network, "features")
    start = time.perf_counter()
    row = measure(work, folder / "out")
    seconds = time.perf_counter() - start
    assert row is not None
    print("| items | items a second | of the time: the model | features | outside of both |\n|" + " --- |" * 5)
    inside = [clock.seconds / seconds for clock in (model, network)]
    shares = [*inside, 1 - sum(inside)]
    print(f"| {items:,} | {items / seconds:.1f} | {' | '.join(f'{share:.1%}' for share in shares)} |\n")
    print({name: round(one["value"], 4) for name, one in row["numbers"].items()}, row["status"])


if __name__ == "__main__":
    main()
