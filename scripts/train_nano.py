"""Train the bundled models from generated data, stage after stage, and put them in place.

On 2 CPU cores: ``python scripts/train_nano.py``; docs/recipe.md has the stages and the time that each takes.
Interrupted, the same command resumes.
"""

import argparse
import shutil
from pathlib import Path

import torch

from atoken.checkpoint import fingerprint, load_folder
from atoken.presets import BUNDLED
from atoken.train.loop import run
from atoken.train.stages import STAGES


def _record(weights: Path) -> None:
    """List the fingerprints of all bundled models, for ``atoken doctor`` to check."""
    folders = sorted(path.parent for path in weights.glob("*/config.json"))
    lines = [f"{folder.name} {fingerprint(load_folder(folder))}\n" for folder in folders]
    (weights / "fingerprints.txt").write_text("".join(lines))


def _start(options: argparse.Namespace, stage: str) -> Path:
    """What a stage left in the folder of runs, or the bundled model of that name."""
    ran = options.runs / stage / "model"
    return ran if ran.exists() or not (options.weights / stage).exists() else options.weights / stage


def main() -> None:
    """Run the stages asked for, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints and logs")
    parser.add_argument("--weights", type=Path, default=BUNDLED, help="where the finished models go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that generate data")
    options = parser.parse_args()
    for name in options.stages:
        stage = STAGES[name]
        start = _start(options, stage.start_from) if stage.start_from else None
        model = run(stage, options.runs / name, start=start, device=options.device, workers=options.workers)
        if name == stage.preset:  # the last stage of a bundled model
            shutil.copytree(model, options.weights / name, dirs_exist_ok=True)
            print(f"{name}: {options.weights / name}")
    _record(options.weights)


if __name__ == "__main__":
    main()
