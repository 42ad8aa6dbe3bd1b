"""Killed runs and damaged checkpoints: whatever happens, a resumed run ends as if nothing had.

``python -m benchmarks.resume`` trains nano for 24 small steps, saving every third, in processes that get SIGKILL at 30
random moments and at each of 12 points inside saving a checkpoint, resumes each, and compares final weights and log
with those of a run that nobody disturbed. Then it flips 300 single bits of a checkpoint, each in a byte of its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoken.errors import CheckpointError
from atoken.pretrain.curriculum import NANO_TASKS, UNUSED
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.run import run
from atoken.pretrain.stages import Stage
from atoken.train import checkpoints, manifest
from atoken.train.checkpoints import Checkpoints
from atoken.train.recipe import Recipe

TASKS = {
    "image": replace(NANO_TASKS["image"], tokens=128, patches=(16, 64)),
    "video": replace(NANO_TASKS["video"], tokens=128, patches=(16, 32)),
}
STAGE = Stage("resume", "nano", TASKS, {"image": 3, "video": 1}, frozen=UNUSED, recipe=Recipe(steps=24, warmup=4))
MOMENTS, FLIPS, EVERY = 30, 300, 3
# Functions that saving calls and where they are, which call of them in the run, and when the process dies.
HOMES: dict[str, Any] = {"save_file": checkpoints, "sha256": manifest, "sync": manifest, "rename": Path}
POINTS = [
    (call, number, when)
    for call, numbers in {"save_file": (3,), "sha256": (4,), "sync": (6, 7, 8), "rename": (2,)}.items()
    for number in numbers
    for when in ("before", "after")
]


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:  # in a process of its own
        _train(Path(sys.argv[1]), *sys.argv[2:])
        return
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        start = time.monotonic()
        _process(whole).wait()
        seconds = time.monotonic() - start
        wanted = _outcome(whole)
        moments = [_killed(Path(folder) / "a", wanted, _after(random.uniform(0, seconds))) for _ in range(MOMENTS)]
        points = [_killed(Path(folder) / "b", wanted, _at(*point)) for point in POINTS]
        print("| what | tried | killed in time | unreadable | other weights | other samples |\n|" + " --- |" * 6)
        for what, found in (("SIGKILL at random moments", moments), ("SIGKILL inside saving", points)):
            counts = (str(sum(column)) for column in zip(*found, strict=True))
            print(f"| {what} | {len(found)} | {' | '.join(counts)} |")
        print(f"\n{FLIPS - _flips(Checkpoints(whole))} of {FLIPS} flipped bits were detected.")


def _train(folder: Path, call: str = "", number: str = "0", when: str = "") -> None:
    """The run; where asked, it kills itself before or after the nth call of a function."""
    if call:
        _dying(HOMES[call], call, int(number), when)
    datasets = load_datasets("procedural", STAGE)
    run(STAGE, folder, start=None, datasets=datasets, device="cpu", workers=0, save_every=EVERY)


def _dying(home: Any, name: str, number: int, when: str) -> None:
    plain, calls = getattr(home, name), 0

    def dies(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*arguments, **options)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(home, name, dies)


def _process(folder: Path, *point: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.resume", str(folder), *map(str, point)], stderr=subprocess.DEVNULL
    )


def _after(seconds: float) -> Callable[[Path], int]:
    def kill(folder: Path) -> int:
        process = _process(folder)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        process.kill()
        return process.wait()

    return kill


def _at(*point: object) -> Callable[[Path], int]:
    return lambda folder: _process(folder, *point).wait()


def _killed(folder: Path, wanted: tuple[bytes, list], kill: Callable[[Path], int]) -> tuple[bool, bool, bool, bool]:
    """Kill a run, resume it: was it killed before its end, could it not go on, are weights and samples others."""
    killed = kill(folder) == -signal.SIGKILL
    unreadable = _process(folder).wait() != 0
    weights, rows = _outcome(folder) if not unreadable else (b"", [])
    shutil.rmtree(folder)
    return killed, unreadable, weights != wanted[0], rows != wanted[1]


def _outcome(folder: Path) -> tuple[bytes, list]:
    """The final weights, and of each step its number, tasks and tokens, and the loss to the last digit."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seen = [[row[name] for name in ("step", "tasks", "tokens", "loss")] for row in rows]
    return (folder / "model" / "model.safetensors").read_bytes(), seen


def _flips(whole: Checkpoints) -> int:
    """How many flipped bits of the newest checkpoint were not noticed."""
    newest = whole.folders()[-1]
    files = {path: path.read_bytes() for path in newest.iterdir()}
    places = random.sample([(path, place) for path, data in files.items() for place in _places(len(data))], FLIPS)
    missed = 0
    for path, place in places:
        flipped = bytearray(files[path])
        flipped[place] ^= 1 << random.randrange(8)
        path.write_bytes(flipped)
        with suppress(CheckpointError):
            manifest.read(newest)
            missed += 1
        path.write_bytes(files[path])
    return missed


def _places(size: int) -> list[int]:
    return random.sample(range(size), min(size, FLIPS))


if __name__ == "__main__":
    main()
