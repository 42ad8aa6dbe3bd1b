"""Token stores whose makers are killed, and stores of both engines: all must be equal to the byte.

``python -m benchmarks.kills WHAT [--engine ray]`` prints a table. The source has images of many sizes, a video and a 3D
asset; they are mirrored, drawn from the posterior and shuffled, and units are small.

* driver: kill -9 at moments that are spread over the units of a run, then the same command again. Of Ray, everything
  that the driver started ends with it;
* worker: kill -9 of one of the processes that the driver started, at such moments; the run goes on by itself;
* engines: one reader and two, Ray with one actor and with two.

A store is equal if it has the same files with the same bytes. Exit code 1 if one is not.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from benchmarks.store import write_images
from benchmarks.tables import head, row

OPTIONS = [
    "--flip",
    "--shuffle",
    "7",
    "--sample",
    "2",
    "--vectors",
    "--shard-mb",
    "1",
    "--batch-tokens",
    "256",
    "--latents",
    "float16",
]
EXAMPLES = Path(__file__).parents[1] / "examples"
ENGINES = {
    "local": ["--workers", "2"],
    "ray": ["--engine", "ray", "--actors", "1", "--gpus-per-actor", "0"],
}


class Run:
    """A process that makes a store, from the moment at which its plan is written."""

    def __init__(self, source: Path, store: Path, given: list[str]) -> None:
        command = [sys.executable, "-m", "atoken", "tokenize", str(source), "-o", str(store), *OPTIONS, *given]
        self.store, self.log = store, store.with_suffix(".log")
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(command, stdout=log, stderr=log)
        while not (store / "plan.json").exists():
            if self.child.poll() is not None:
                self.end()
            time.sleep(0.01)

    def end(self) -> None:
        """Wait; what fails ends the benchmark."""
        if self.child.wait():
            raise SystemExit(f"{self.store.name} ended with {self.child.returncode}: {self.log.read_text()[-2000:]}")

    def workers(self) -> list[psutil.Process]:
        """The processes that read or encode for it."""
        found = []
        for process in psutil.Process(self.child.pid).children(recursive=True):
            try:
                name = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if "spawn_main" in name or (name.startswith("ray::") and "IDLE" not in name):
                found.append(process)
        return found


def write_source(folder: Path, images: int) -> None:
    """Images of 16 sizes in folders of two classes, a video and an asset."""
    for number in range(16):
        below = folder / ("even", "odd")[number % 2] / f"{number:02d}"
        below.mkdir(parents=True)
        write_images(below, images // 16, (24 + 8 * number, 80))
    for name in ("pan.mp4", "tower.glb"):
        shutil.copy(EXAMPLES / name, folder / name)


def digests(store: Path) -> dict[str, str]:
    """SHA-256 of each file of a store."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(store: Path) -> Counter[tuple[str, bool, int]]:
    """How often each key, flip and draw is in a store."""
    import atoken

    opened = atoken.TokenStore(store)
    return Counter(zip(*(opened.column(name).to_pylist() for name in ("key", "flipped", "draw")), strict=True))


def progress(store: Path) -> float:
    """The share of a store's units that are made."""
    plan, work = msgspec.json.decode((store / "plan.json").read_bytes()), store / ".work"
    shards, units = (len(list(work.glob(f"*.{suffix}"))) for suffix in ("shard", "unit"))
    return (shards * plan["shard_units"] + units) / -(-plan["items"] // plan["unit_items"])


def killed(what: str, folder: Path, given: list[str], moments: int) -> Iterator[tuple[str, Path]]:
    """Stores of which a process was killed once, and how far they were."""
    source, first = folder / "source", folder / "undisturbed"
    Run(source, first, given).end()
    for moment in range(moments):
        store = folder / f"{what}{moment}"
        run = Run(source, store, given)
        while run.child.poll() is None and progress(store) < moment / moments:
            time.sleep(0.01)
        victims = [psutil.Process(run.child.pid)] if what == "driver" else run.workers()
        if not victims or run.child.poll() is not None:
            how = "nothing to kill"
        else:
            victim = random.Random(moment).choice(victims)
            name = "driver" if what == "driver" else victim.cmdline()[0].rpartition("/")[2]
            how = f"{name} at {progress(store):.0%}"
            victim.kill()
        if what == "driver":
            run.child.wait()
            run = Run(source, store, given)
        run.end()
        yield how, store


def main() -> int:
    """Print a table; 1 if a store differs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["driver", "worker", "engines"])
    options.add_argument("--engine", choices=ENGINES, default="local")
    options.add_argument("--images", type=int, default=480)
    options.add_argument("--moments", type=int, default=10)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_source(folder / "source", chosen.images)
        head("run", "at", "equal to the byte", "rows", "lost", "twice")
        stores = engines(folder) if chosen.what == "engines" else killed(
            chosen.what, folder, ENGINES[chosen.engine], chosen.moments
        )  # fmt: skip
        wrong = 0
        for number, (how, store) in enumerate(stores):
            expected, found = rows_of(folder / "undisturbed"), rows_of(store)
            equal = digests(store) == digests(folder / "undisturbed")
            wrong += not equal
            lost, twice = (expected - found).total(), (found - expected).total()
            row(number + 1, how, "yes" if equal else "NO", found.total(), lost, twice)
            shutil.rmtree(store)
    return int(wrong > 0)


def engines(folder: Path) -> Iterator[tuple[str, Path]]:
    """Stores of both engines with one worker and with two."""
    source = folder / "source"
    Run(source, folder / "undisturbed", ENGINES["local"]).end()
    one_reader = {"local, 1 reader": ["--workers", "1"]}
    rays = {
        f"Ray, {count} actors": [*ENGINES["ray"][:2], "--actors", str(count), "--gpus-per-actor", "0"]
        for count in (1, 2)
    }
    for name, given in (one_reader | rays).items():
        store = folder / name.replace(" ", "-")
        Run(source, store, given).end()
        yield name, store


if __name__ == "__main__":
    sys.exit(main())
