"""Time to start: whole processes, from before they are started until they have ended, the best of several.

``python -m benchmarks.startup`` prints a table with the target of each figure. ``import atoken`` is given above the
bare interpreter, the commands as a user waits for them. The reconstruction is of a 512x512 photograph (scikit-image's
astronaut, as PNG) with the bundled ``nano``, tokens, result and side-by-side image written. The machine should be
otherwise idle.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import best_of

NANO = Path(__file__).parents[1] / "atoken" / "weights" / "nano"


def seconds(runs: int, *arguments: str) -> float:
    """Best time of a Python process with these arguments; one that fails ends the benchmark."""
    command = [sys.executable, *arguments]
    return best_of(runs, lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True))


def reconstruction(runs: int) -> float:
    """Best time of ``atoken reconstruct`` on the photograph."""
    import PIL.Image
    from skimage.data import astronaut

    with tempfile.TemporaryDirectory() as folder:
        photograph = Path(folder) / "astronaut.png"
        PIL.Image.fromarray(astronaut()).save(photograph)
        return seconds(runs, "-m", "atoken", "reconstruct", str(photograph), "-o", str(Path(folder) / "out"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"Best of {runs}\n\n| process | seconds | target |\n| --- | --- | --- |")
    bare = seconds(runs, "-c", "pass")
    print(f"| python -c pass | {bare:.3f} | |")
    print(f"| import atoken, above that | {seconds(runs, '-c', 'import atoken') - bare:.3f} | 0.3 |")
    print(f"| atoken --help | {seconds(runs, '-m', 'atoken', '--help'):.3f} | 0.5 |")
    missing = [] if NANO.is_dir() else ["the weights of nano are not in the package yet"]
    missing += [] if importlib.util.find_spec("skimage") else ["scikit-image is not installed"]
    if missing:
        print(f"\natoken reconstruct was not timed: {' and '.join(missing)}.")
    else:
        print(f"| atoken reconstruct, 512x512, nano | {reconstruction(runs):.2f} | 5 |")


if __name__ == "__main__":
    main()
