"""Measure the bundled models and their peers on the real test sets, and write a page of each into ``docs/reports``.

The folder of data has ``kodak`` and ``sample-videos`` (eval/tasks.py); photographs and furniture are in the cache of
``atoken fetch``. Results stay in ``out/reports``, and the same command goes on where it was; ``torchrun
--nproc_per_node 2 -m scripts.make_reports DATA`` uses two cores. The pages are short ones, because the images
are not ours to pass on.
"""

import argparse
import sys
from pathlib import Path

from eval.command import main as evaluate
from eval.models.by_name import file_name
from eval.report.page import report
from eval.run import Ranks

OWN = ("nano", "nano-d")
FEW_BYTES = ("jpeg:15", "webp:15", "avif:40")  # about those of nano-d
MORE_BYTES = ("jpeg:60", "jpeg:92", "webp:60", "webp:90", "avif:65", "avif:85")
MODELS = {
    "kodak": (*OWN, "pca:48", "pca-of-kodak:48", *FEW_BYTES, *MORE_BYTES),
    "photos-test": (*OWN, "pca:48", *FEW_BYTES),
    "sample-videos": (*OWN, "h264:40", "h264:30", "h265:40", "h265:30"),
    "furniture-test": OWN,
}


def main() -> None:
    """One task after another, each of its models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", help="folder with kodak and sample-videos")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/reports"), help="where the pages go")
    parser.add_argument("--results", type=Path, default=Path("out/reports"), help="where the results go")
    parser.add_argument("--items", help="only so many of each set, for a trial")
    options = parser.parse_args()
    few = ["--items", options.items] if options.items else []
    options.out.mkdir(parents=True, exist_ok=True)
    for task, models in MODELS.items():
        folders = [options.results / task / file_name(model) for model in models]
        for model, folder in zip(models, folders, strict=True):
            words = ["run", task, "--data", options.data, "--model", model, "-o", str(folder), *few]
            if evaluate(words) and not few:
                sys.exit(f"{model} could not be measured on all of {task}.")
        if not Ranks.launched().rank:
            print(report([folder / "result.json" for folder in folders], options.out / f"{task}.html", short=True))


if __name__ == "__main__":
    main()
