"""Memory of the commands: peak resident set of ``encode``, ``decode`` and ``reconstruct``, short video and long video.

``python -m benchmarks.memory`` makes videos of 200 and 2000 frames of 64x64, runs each command on each in a process of
its own, and prints its peak (``ru_maxrss`` as ``wait4`` gives it: of that process, not of its decoder) and its time.
The target: memory on the long video within 10 % of the short one. The time must not grow faster than the frames; what a
command takes to start is part of it. The videos are made in a child, because a process starts with the peak of the one
that starts it; for the same reason nothing large is imported here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

LENGTHS = (200, 2000)
TARGET = 1.10
BUNDLED = Path(__file__).parents[1] / "atoken" / "weights"

MAKE_VIDEO = """
import sys
from atoken.data.synthetic.procedural import make_video
from atoken.io import VideoWriter
path, frames = sys.argv[1], int(sys.argv[2])
with VideoWriter(path, 24, size=(64, 64)) as writer:
    for first in range(0, frames, 40):
        writer.write(make_video(0, first, min(40, frames - first), 64, 64).frames)
"""
MAKE_MODEL = """
import sys, torch
from atoken.model import ATokenConfig, ATokenModel
torch.manual_seed(0)
size = {"width": 96, "layers": 2, "heads": 2, "mlp": 128}
sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in size.items()}
ATokenModel(ATokenConfig(**sides)).save_pretrained(sys.argv[1])
"""


class Used(NamedTuple):
    """What a process took."""

    peak_mb: float
    seconds: float


def used(*arguments: str) -> Used:
    """Run a Python process to its end; an error in it ends this one."""
    start = perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments[:4])} ended with exit code {child.returncode}.")
    return Used(usage.ru_maxrss / 1024, perf_counter() - start)


def commands(folder: Path, frames: int, model: str) -> dict[str, Used]:
    """Each command on a video of so many frames."""
    video, tokens, back = (str(folder / f"{frames}{suffix}") for suffix in (".mp4", ".atok", "-back.mp4"))
    used("-c", MAKE_VIDEO, video, str(frames))
    atoken = ("-m", "atoken")
    return {
        "encode": used(*atoken, "encode", video, "-o", tokens, "--model", model),
        "decode": used(*atoken, "decode", tokens, "-o", back, "--model", model),
        "reconstruct": used(*atoken, "reconstruct", video, "-o", str(folder / f"{frames}-out"), "--model", model),
    }


def main() -> int:
    """Print the table; exit code 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="nano", help="as the commands take it; a small random one where it is missing"
    )
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        if not ((BUNDLED / model).is_dir() or Path(model).exists()):
            print(f"There is no model {model} yet; these are figures of a small one with random weights.\n")
            model = str(Path(folder) / "small")
            used("-c", MAKE_MODEL, model)
        short, long = (commands(Path(folder), frames, model) for frames in LENGTHS)
    print(
        f"| command | {LENGTHS[0]} frames MB | {LENGTHS[1]} frames MB | ratio (target {TARGET:.2f}) | seconds |\n|"
        + " --- |" * 5
    )
    for name, (peak, seconds) in short.items():
        ratio = long[name].peak_mb / peak
        figures = f"{peak:.0f} | {long[name].peak_mb:.0f} | {ratio:.3f} | {seconds:.1f}, {long[name].seconds:.1f}"
        print(f"| {name} | {figures} |")
    return int(any(long[name].peak_mb > TARGET * peak for name, (peak, _) in short.items()))


if __name__ == "__main__":
    sys.exit(main())
