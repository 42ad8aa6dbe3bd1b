"""What the harness costs beside the networks, and whether ranks and kills change its result.

``python -m benchmarks.evaluation [--items 1000] [--model nano]`` prints two tables. The first: procedural 256x256
images, read from PNG files, through the model with PSNR, SSIM and a Frechet distance between nano's own vectors; how
much of the time is spent outside of the model and of that network. The second: as many 64x64 images, by the command
line, on 1, 2 and 4 ranks, and in a process that gets SIGKILL at 10 random moments and is started again; whether rows,
items and images are the same bytes. Everything runs on one thread a rank.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
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

SEED, SIDE, SMALL_SIDE = 1_000_003, 256, 64
KILLS = 10


class Timed:
    """Passes everything on, and adds up the seconds that some of its calls take."""

    def __init__(self, inner: Any, *calls: str) -> None:
        self._inner, self._calls, self.seconds = inner, calls, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._timed(found) if name in self._calls else found

    def _timed(self, call: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def main() -> None:
    """Print both tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=1000)
    options.add_argument("--model", default="nano")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        throughput(Path(folder), chosen.items, chosen.model)
        sameness(Path(folder), chosen.items, chosen.model)


def throughput(folder: Path, items: int, model: str) -> None:
    """The first table."""
    made = _made(folder / "large", items, SIDE)
    options = parser().parse_args(["reconstruct", str(made), "--model", model, "--device", "cpu"])
    builds = {name: build for name, build in PIXELS.items() if name in ("psnr", "ssim")} | NANO
    task = replace(LOCAL["image"], metrics=builds, shard=96, batch=8)
    model = Timed(model_of(options), "reconstruct")
    work = job(options, task, images(made), model)
    (metric,) = [metric for metric in work.metrics if hasattr(metric, "network")]
    metric.network = network = Timed(metric.network, "features")
    start = time.perf_counter()
    row = measure(work, folder / "throughput")
    seconds = time.perf_counter() - start
    assert row is not None
    print("| items | items a second | of the time: the model | features | outside of both |\n|" + " --- |" * 5)
    inside = [clock.seconds / seconds for clock in (model, network)]
    shares = [*inside, 1 - sum(inside)]
    print(f"| {items:,} | {items / seconds:.1f} | {' | '.join(f'{share:.1%}' for share in shares)} |\n")
    print({name: round(one["value"], 4) for name, one in row["numbers"].items()}, row["status"], "\n")


def sameness(folder: Path, items: int, model: str) -> None:
    """The second table."""
    made = _made(folder / "small", items, SMALL_SIDE)
    command = [sys.executable, "-m", "eval", "reconstruct", str(made), "--model", model, "--device", "cpu", "-o"]
    seconds = _ranks([*command, str(folder / "1")], 1)
    start = _ranks([*command, str(folder / "1")], 1)  # nothing is measured again
    for world in (2, 4):
        _ranks([*command, str(folder / str(world))], world)
    random.seed(0)
    out, part = str(folder / "killed"), (seconds - start) / (KILLS + 2)
    killed = sum(_killed([*command, out], start + random.uniform(-1, 1) * part) for _ in range(KILLS))
    _ranks([*command, out], 1)
    print("| against one rank without a kill | same bytes |\n| --- | --- |")
    for name, other in (("2 ranks", "2"), ("4 ranks", "4"), (f"{killed} of {KILLS} kills in time", "killed")):
        print(f"| {name} | {'yes' if _outcome(folder / other) == _outcome(folder / '1') else 'NO'} |")


def _made(folder: Path, items: int, side: int) -> Path:
    folder.mkdir()
    for number in range(items):
        frame = make_image(SEED, number, side, side).frames[0]
        write_image(Image(np.ascontiguousarray(frame)), folder / f"{number:05d}.png")
    return folder


def _ranks(command: Sequence[str], world: int) -> float:
    """Seconds of a run on so many ranks."""
    start = time.monotonic()
    started = [
        subprocess.Popen(command, env=_launched(rank, world), stdout=subprocess.DEVNULL) for rank in range(world)
    ]
    assert [process.wait() for process in started] == [0] * world
    return time.monotonic() - start


def _outcome(out: Path) -> tuple[str, dict[str, bytes]]:
    """Rows as text, and every file of items and images by name."""
    rows = json.dumps(json.loads((out / "result.json").read_text())["rows"])
    files = [path for path in out.glob("*/**/*") if path.is_file() and path.suffix != ".part"]
    return rows, {str(path.relative_to(out)): path.read_bytes() for path in files}


def _killed(command: Sequence[str], seconds: float) -> bool:
    """Whether a run was not done yet when it was killed."""
    process = subprocess.Popen(command, env=_launched(0, 1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    process.kill()
    process.wait()
    return True


def _launched(rank: int, world: int) -> dict[str, str]:
    return {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world)}


if __name__ == "__main__":
    main()
