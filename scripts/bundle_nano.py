"""Put the models that ``atoken train --preset nano --stage all`` made in place of the bundled ones, with statistics.

``make nano`` trains and then runs this; docs/recipe.md has the stages and the time that each takes.
"""

import argparse
import shutil
import sys
from pathlib import Path

from atoken.checkpoint import fingerprint, load_folder
from atoken.cli import main as atoken
from atoken.presets import BUNDLED
from atoken.pretrain.curriculum import FINISHED


def main() -> None:
    """Copy the last stage of each preset, and list the fingerprints, for ``atoken doctor`` to check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the stages' runs")
    parser.add_argument("--weights", type=Path, default=BUNDLED, help="where the models go")
    options = parser.parse_args()
    for stage, preset in FINISHED.items():
        folder = options.weights / preset
        shutil.copytree(options.runs / stage / "model", folder, dirs_exist_ok=True)
        if code := atoken(["stats", "procedural", "--model", str(folder), "-o", str(folder)]):
            sys.exit(code)
    lines = [f"{preset} {fingerprint(load_folder(options.weights / preset))}\n" for preset in sorted(FINISHED.values())]
    (options.weights / "fingerprints.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
