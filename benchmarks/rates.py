"""What one core does of the work of a token store: the inputs of ``benchmarks.scale``.

``python -m benchmarks.rates`` prints a table, by seconds of CPU, so that other processes do not count. The last rows
are units of a single small image each, by the clock and on all cores, so that what is left is mostly what an engine
takes for a unit; ``--units`` sets how many, 0 leaves them out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from atoken.io.archive import Archive
from atoken.io.token_file import TokenFileWriter, Tokens, full_coords
from atoken.modalities import IMAGE
from atoken.store import vectors
from atoken.store.layout import MANIFEST, Options
from atoken.store.media import decode
from atoken.store.source import open_source
from atoken.train.manifest import sha256
from benchmarks.store import SIDE, write_images
from benchmarks.tables import head, options, row

WIDTH, VECTORS, NAMES = 1152, 10_000, 20_000  # numbers of a vector of so400m-c; vectors; files of a folder


def rates(folder: Path, units: int) -> None:
    """Print what a core does."""
    images = folder / "images"
    images.mkdir()
    write_images(images, 100, (375, 500), ".jpg")
    wanted = Options(resize=SIDE, crop=SIDE)
    source = open_source(str(images), wanted)
    entries = [source[number] for number in range(len(source))]
    kilobytes = sum(path.stat().st_size for path in images.iterdir()) / len(entries) / 1e3
    head("what", "rate")
    start = time.process_time()
    for entry in entries:
        decode(entry, wanted)
    decoded = len(entries) / (time.process_time() - start)
    row(
        f"JPEG files of 500x375 ({kilobytes:.0f} kB) read, scaled and cropped to {SIDE}x{SIDE}",
        f"{decoded:.0f} a second",
    )
    seconds, size = _written(folder / "one.atok")
    row("latents and vectors of so400m-c to bytes with check sums, written", f"{size / seconds / 1e6:.0f} MB a second")
    start = time.process_time()
    _joined(folder, size)
    row("units joined to a shard", f"{2 * size / (time.process_time() - start) / 1e6:.0f} MB a second")
    names = folder / "names"
    names.mkdir()
    for number in range(NAMES):
        (names / f"n{number:08d}.jpg").touch()
    start = time.process_time()
    open_source(str(names), wanted)
    row("names of a folder listed, with their sizes", f"{NAMES / (time.process_time() - start):,.0f} a second")
    row("vectors of 1,152 numbers put into an approximate index", f"{_added(folder):,.0f} a second")
    for engine in ("local", "ray") if units else ():
        rate = _units(folder, units, engine)
        row(f"units of one image of 16x16 read and encoded by nano, --engine {engine}, 2 cores", f"{rate:.0f} a second")


def _written(target: Path) -> tuple[float, int]:
    """Seconds and bytes of a token file of 200 images of 256x256 pixels, as so400m-c makes them."""
    coords = torch.from_numpy(full_coords(IMAGE, (SIDE, SIDE), 1))
    tokens = Tokens(
        latents=torch.randn(len(coords), 48), codes=None, coords=coords, modality="image", size=(SIDE, SIDE),
        pooled=torch.randn(WIDTH), model="", fingerprint="0" * 64, name="", levels=None,
    )  # fmt: skip
    start = time.process_time()
    with TokenFileWriter(target, compress=False) as writer:
        for _ in range(200):
            writer.add(tokens)
    return time.process_time() - start, target.stat().st_size


def _joined(folder: Path, size: int) -> None:
    """Copy a token file twice into another, and compute the SHA-256 of that, as a join does."""
    with TokenFileWriter(folder / "shard.atok", compress=False) as writer:
        for _ in range(2):
            with Archive(folder / "one.atok") as archive:
                writer.append(archive)
    assert (folder / "shard.atok").stat().st_size > size
    sha256(folder / "shard.atok")


def _added(folder: Path) -> float:
    """Vectors a second that an approximate index takes, on one thread."""
    random = np.random.default_rng(0).standard_normal((VECTORS, WIDTH)).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    (folder / MANIFEST).touch()  # of the store that the vectors are of
    times, counts = [], []

    def added(count: int) -> None:
        times.append(time.process_time())
        counts.append(count)

    vectors.build(folder, random, np.arange(VECTORS), progress=added)
    return sum(counts[1:]) / (times[-1] - times[0])


def _units(folder: Path, items: int, engine: str) -> float:
    """Units a second, without the start: the difference of many and of few."""
    seconds = []
    for count in (items // 10, items):
        out = folder / f"{engine}{count}"
        command = ["procedural", "-o", str(out), "--items", str(count), "--crop", "16", "--batch-tokens", "1"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "atoken", "tokenize", *command, "--engine", engine], check=True)
        seconds.append(time.perf_counter() - start)
    return (items - items // 10) / (seconds[1] - seconds[0])


def main() -> None:
    """Print the table."""
    chosen = options(__doc__, units=1000)
    with tempfile.TemporaryDirectory() as folder:
        rates(Path(folder), chosen.units)


if __name__ == "__main__":
    main()
