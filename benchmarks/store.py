"""Token stores: what making and reading them costs. ``python -m benchmarks.store WHAT`` prints one table.

* outside: of making a store of 256x256 images with nano, how much of the time is not spent in the model's encode, by
  the clock and by seconds of CPU of all processes, which count the same beside others. Target: 15 %. "Above" compares
  with the same batches alone, as readers take cores from encode;
* workers: the same of JPEG files of 12 megapixels scaled to 32 pixels, where reading is the bottleneck, with 1 reader
  and with 2. Target: 1.7 times as fast;
* memory: peak of all processes together (PSS), over small images, for two numbers of items. Target: within 10 %;
* reads: random items of a store of 16 tokens each, on one thread, against what nano encodes. Targets: 5,000 a second,
  and 20 times.

``--items`` sets how many (of memory: the larger number).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.tables import head, row

SEED, SIDE = 1_000_003, 256
LARGE, SCALED = (3000, 4000), "32"  # of photographs: height and width, and the shorter side that they are scaled to
DISTINCT = 8  # large files that differ; the others are links to these
POLL = 0.05  # seconds: a run of few items is short
CHILD = (
    "import sys; from benchmarks import store; store.make(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])"
)


def write_images(folder: Path, count: int, size: tuple[int, int], suffix: str = ".png") -> None:
    """Generated images as files."""
    from atoken.data.synthetic.procedural import make_image
    from atoken.io import Image, write_image

    for number in range(count):
        frame = make_image(SEED, number, *size).frames[0]
        write_image(Image(np.ascontiguousarray(frame)), folder / f"{number:06d}{suffix}")


def write_large(folder: Path, count: int) -> None:
    """Photographs' size, a few of which differ: larger ones are made of repeated smaller ones, with noise."""
    from PIL import Image

    from atoken.data.synthetic.procedural import make_image

    height, width = LARGE
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number >= DISTINCT:
            os.link(folder / f"{number % DISTINCT:06d}.jpg", path)
            continue
        frame = make_image(SEED, number, 500, 500).frames[0]
        pixels = np.tile(frame, (height // 500, width // 500, 1)).astype(np.int16)
        pixels += np.random.default_rng(number).integers(-8, 9, pixels.shape, np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def make(source: str, store: str, workers: int, *given: str) -> None:
    """Make a store in this process, and print seconds: of all of it, inside the model's encode, of joins."""
    import atoken
    from atoken.cli.parser import parser
    from atoken.store import driver, shards
    from atoken.store.layout import Options
    from atoken.store.local import LocalEngine
    from atoken.store.source import open_source

    options = parser().parse_args(["tokenize", source, "-o", store, *given])
    wanted = Options(**{name: getattr(options, name) for name in Options.__struct_fields__})
    tokenizer = atoken.load("nano", device="cpu", dtype="float32")
    encode, join = Timed(tokenizer.model.encode), Timed(shards.join)
    tokenizer.model.encode = encode  # type: ignore[method-assign]
    shards.join = join
    start, before = time.perf_counter(), _cpu()
    with LocalEngine(tokenizer, workers) as engine:
        stats = driver.tokenize(open_source(source, wanted), Path(store), tokenizer, {"source": "nano"}, wanted, engine)
    seconds = {"all": time.perf_counter() - start, "encode": encode.seconds, "join": join.seconds}
    cpu = {"all": _cpu() - before, "encode": encode.cpu}
    print(json.dumps({"stats": stats, "seconds": seconds, "cpu": cpu}))


def _cpu() -> float:
    """Seconds of CPU of this process and of those that it started and that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


class Timed:
    """A function, and the seconds inside it: by the clock, and of CPU of all threads of this process."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self._inner, self.seconds, self.cpu = inner, 0.0, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the function gives."""
        start, cpu = time.perf_counter(), time.process_time()
        try:
            return self._inner(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - start
            self.cpu += time.process_time() - cpu


def tokenized(source: Path | str, store: Path, workers: int, *given: str) -> dict[str, Any]:
    """What ``make`` prints in a process of its own; ``peak_mb`` of it and its readers, ``whole``: with its start."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-c", CHILD, str(source), str(store), str(workers), *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            peak = max(peak, _memory(child.pid))
            time.sleep(POLL)
        assert child.stdout is not None
        said = child.stdout.read()
    if child.returncode:
        raise SystemExit(f"Making {store.name} ended with exit code {child.returncode}.")
    seconds = {"whole": time.perf_counter() - start}
    result = json.loads(said.splitlines()[-1])
    return result | {"peak_mb": peak / 2**20, "seconds": result["seconds"] | seconds}


def _memory(pid: int) -> int:
    """Bytes of a process and all below it; what they share counts once."""
    try:
        every = [parent := psutil.Process(pid), *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in every:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
    return total


def outside(folder: Path, items: int) -> None:
    """Print the share of the time outside encode."""
    import atoken
    from atoken.io import load_media

    images = folder / "images"
    images.mkdir()
    write_images(images, items, (SIDE, SIDE))
    found = tokenized(images, folder / "store", 1)
    tokenizer = atoken.load("nano", device="cpu", dtype="float32")
    batch = [load_media(images / f"{number:06d}.png") for number in range(min(items, 64))]
    encode = Timed(tokenizer.model.encode)
    tokenizer.model.encode = encode  # type: ignore[method-assign]
    times = []
    for _ in range(6):
        before = encode.seconds, encode.cpu
        tokenizer.encode_batch(batch)
        times.append((encode.seconds - before[0], encode.cpu - before[1]))
    clock, cpu = np.median(times[1:], axis=0) * items / len(batch)
    head("images", "seconds", "whole command", "making", "inside encode", "outside", "the same batches alone", "above")
    by_clock, by_cpu = found["seconds"], found["cpu"]
    for name, of, whole, alone in (
        ("by the clock", by_clock, f"{by_clock['whole']:.1f}", clock),
        ("of CPU", by_cpu, "", cpu),
    ):
        outside, above = 1 - of["encode"] / of["all"], 1 - alone / of["all"]
        row(
            f"{items:,}", name, whole, f"{of['all']:.1f}", f"{of['encode']:.1f}", f"{outside:.1%}", f"{alone:.1f}",
            f"{above:.1%}",
        )  # fmt: skip
    seconds = by_clock
    size = found["stats"]["size_bytes"] / 1e6
    print(f"\nJoins: {size:.0f} MB in {seconds['join']:.2f} s, {size / seconds['join']:.0f} MB a second.")


def workers(folder: Path, items: int) -> None:
    """Print what a second reader gives."""
    images = folder / "images"
    images.mkdir()
    write_large(images, items)
    head("readers", "images", "making, s", "inside encode, s", "images a second", "times")
    first = 0.0
    for count in (1, 2):
        seconds = tokenized(images, folder / f"store{count}", count, "--resize", SCALED)["seconds"]
        first = first or seconds["all"]
        rate = items / seconds["all"]
        shown = f"{seconds['all']:.1f}", f"{seconds['encode']:.1f}", f"{rate:.1f}", f"{first / seconds['all']:.2f}"
        row(count, items, *shown)


def memory(folder: Path, items: int) -> None:
    """Print the peak for few items and for many."""
    images, few = folder / "images", max(items // 50, 1)
    images.mkdir()
    write_images(images, items, (32, 32))
    head("images of 32x32", "peak of all processes, MB", "making, s", "ratio (target 1.10)")
    first = 0.0
    for count in (few, items):
        found = tokenized(images, folder / f"store{count}", 1, "--items", str(count))
        first = first or found["peak_mb"]
        row(
            f"{count:,}", f"{found['peak_mb']:.0f}", f"{found['seconds']['all']:.1f}", f"{found['peak_mb'] / first:.3f}"
        )


def reads(folder: Path, items: int) -> None:
    """Print random reads a second."""
    import torch

    import atoken
    from atoken.data.synthetic.procedural import make_image
    from atoken.io import Image
    from benchmarks.measure import best_of

    tokenized("procedural", folder / "store", 1, "--items", str(items), "--crop", "64")
    torch.set_num_threads(1)
    tokenizer = atoken.load("nano", device="cpu", dtype="float32")
    images = [Image(np.ascontiguousarray(make_image(SEED, number, 64, 64).frames[0])) for number in range(256)]
    encoded = len(images) / best_of(3, lambda: tokenizer.encode_batch(images))
    store = atoken.TokenStore(folder / "store")
    order = np.random.default_rng(0).permutation(len(store))
    ways: dict[str, Callable[[], object]] = {
        "store[i]": lambda: [store[i] for i in order.tolist()],
        "store.grid(i)": lambda: [store.grid(i) for i in order.tolist()],
        "store.grids(64 rows)": lambda: [store.grids(order[at : at + 64]) for at in range(0, len(order), 64)],
        "store.packed(64 rows)": lambda: [store.packed(order[at : at + 64]) for at in range(0, len(order), 64)],
    }
    head("items of 16 tokens", "a second", "times nano's encode")
    row("encode_batch, 256 images of 64x64", f"{encoded:,.0f}", "1")
    for name, read in ways.items():
        rate = len(order) / best_of(3, read)
        row(name, f"{rate:,.0f}", f"{rate / encoded:.0f}")


MEASURES: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "outside": (outside, 5000), "workers": (workers, 400), "memory": (memory, 50_000), "reads": (reads, 20_000),
}  # fmt: skip


def main() -> None:
    """Measure one of them."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=MEASURES)
    options.add_argument("--items", type=int)
    chosen = options.parse_args()
    measure, items = MEASURES[chosen.what]
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), chosen.items or items)


if __name__ == "__main__":
    main()
