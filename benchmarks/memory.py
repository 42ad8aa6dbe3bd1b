"""Memory of the commands: peak resident set of ``encode``, ``decode`` and ``reconstruct``, short video and long video.

``python -m benchmarks.memory`` generates videos of 200 and 2000 frames of 64x64, runs each command with ``nano`` in its
own process, and prints the peak of that process (``ru_maxrss`` of ``wait4``) and its time. Target: the peak on the
long video within 10 % of the short one. The time, which includes starting, must not grow faster than the frames.
A process starts with the peak of its parent: so a child generates the videos, and nothing large is imported here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from benchmarks.tables import head, row

LENGTHS = (200, 2000)
TARGET = 1.10
GENERATE_VIDEO = """
import sys
from atoken.data.synthetic.procedural import make_video
from atoken.io import VideoWriter
path, frames = sys.argv[1], int(sys.argv[2])
with VideoWriter(path, 24, size=(64, 64)) as writer:
    for first in range(0, frames, 40):
        writer.write(make_video(0, first, min(40, frames - first), 64, 64).frames)
"""


class Used(NamedTuple):
    """What a process used."""

    peak_mb: float
    seconds: float


def used(*arguments: str) -> Used:
    """Run a Python process to its end; if it fails, the benchmark ends."""
    start = perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(arguments[:4])} ended with exit code {child.returncode}.")
    return Used(usage.ru_maxrss / 1024, perf_counter() - start)


def commands(folder: Path, frames: int) -> dict[str, Used]:
    """Each command on a video of ``frames`` frames."""
    video, tokens, back = (str(folder / f"{frames}{suffix}") for suffix in (".mp4", ".atok", "-back.mp4"))
    used("-c", GENERATE_VIDEO, video, str(frames))
    ends = {
        "encode": [video, "-o", tokens],
        "decode": [tokens, "-o", back],
        "reconstruct": [video, "-o", f"{back}-out"],
    }
    return {name: used("-m", "atoken", name, *end) for name, end in ends.items()}


def main() -> int:
    """Print the table; exit code 1 if the target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        short, long = (commands(Path(folder), frames) for frames in LENGTHS)
    ratios = {name: long[name].peak_mb / peak for name, (peak, _) in short.items()}
    head("command", *(f"{frames} frames MB" for frames in LENGTHS), f"ratio (target {TARGET:.2f})", "seconds")
    for name, (peak, seconds) in short.items():
        times = f"{seconds:.1f}, {long[name].seconds:.1f}"
        row(name, f"{peak:.0f}", f"{long[name].peak_mb:.0f}", f"{ratios[name]:.3f}", times)
    return int(max(ratios.values()) > TARGET)


if __name__ == "__main__":
    sys.exit(main())
