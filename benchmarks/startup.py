"""Time to start: whole processes, from before they are started until they have ended, the best of several.

``python -m benchmarks.startup`` prints a table with the target of each figure. ``import atoken`` is measured above the
bare interpreter, the commands as a user waits for them. The reconstruction is of a 512x512 photograph (scikit-image's
astronaut, as PNG) with ``nano``; it writes tokens, result and side-by-side image. The machine should be idle.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import PIL.Image
from skimage.data import astronaut

from benchmarks.measure import best_of
from benchmarks.tables import head, options, row


def seconds(runs: int, *arguments: str) -> float:
    """Best time of a Python process with these arguments; if it fails, the benchmark ends."""
    command = [sys.executable, *arguments]
    return best_of(runs, lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))


def main() -> None:
    """Print the table."""
    runs = options(__doc__, runs=5).runs
    print(f"Best of {runs}\n")
    head("process", "seconds", "target")
    bare = seconds(runs, "-c", "pass")
    row("python -c pass", f"{bare:.3f}", "")
    row("import atoken, above that", f"{seconds(runs, '-c', 'import atoken') - bare:.3f}", 0.3)
    row("atoken --help", f"{seconds(runs, '-m', 'atoken', '--help'):.3f}", 0.5)
    with tempfile.TemporaryDirectory() as folder:
        photograph, out = Path(folder) / "astronaut.png", Path(folder) / "out"
        PIL.Image.fromarray(astronaut()).save(photograph)
        taken = seconds(runs, "-m", "atoken", "reconstruct", str(photograph), "-o", str(out))
        row("atoken reconstruct, 512x512, nano", f"{taken:.2f}", 5)


if __name__ == "__main__":
    main()
