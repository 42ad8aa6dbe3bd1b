"""CPU time of encoding a 256x256 image with ``nano`` in a Python process, idle and beside busy processes.

``python -m benchmarks.neighbours`` prints a table: atoken imported before torch, as it should be, and after it, where
threads that wait spin unless ``OMP_WAIT_POLICY=PASSIVE`` is set. The machine should be otherwise idle.
"""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.tables import head, options, row

CODE = """
import sys, time
import {first}
import atoken, numpy
tokenizer = atoken.load("nano", device="cpu")
pixels = numpy.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=numpy.uint8)
for _ in range(3):
    tokenizer.encode(pixels)
start = time.process_time()
for _ in range({runs}):
    tokenizer.encode(pixels)
print((time.process_time() - start) / {runs})
"""
BUSY = [sys.executable, "-c", "while True: pass"]


def seconds(first: str, busy: int, runs: int) -> float:
    """CPU seconds of one image, of all threads, with so many busy processes beside."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    neighbours = [subprocess.Popen(BUSY) for _ in range(busy)]
    try:
        command = [sys.executable, "-c", CODE.format(first=first, runs=runs)]
        return float(subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


def main() -> None:
    """Print the table."""
    runs = options(__doc__, runs=20).runs
    print(f"CPU ms of an image, mean of {runs}\n")
    head("imported first", "idle", "beside one", "beside two", "largest ratio", "target")
    for first, target in (("atoken", 2.5), ("torch", "")):
        times = [seconds(first, busy, runs) for busy in range(3)]
        row(first, *(f"{time * 1e3:.1f}" for time in times), f"{max(times) / times[0]:.1f}", target)


if __name__ == "__main__":
    main()
