"""The losses of a curriculum's stages, one after another, as one image.

``python -m benchmarks.curves RUNS STAGE ... -o FILE.svg`` reads the log of each stage's run. Points are means over 25
steps in which a term was there. Needs matplotlib (the extra ``eval``).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

TERMS = {  # of the log, by the panel that shows them
    "L1 of patches in [-1, 1]": ("image/l1", "video/l1", "part/l1"),
    "sigmoid loss of texts, a sample": ("image-text/alignment", "video-text/alignment", "asset-text/alignment"),
}
POINTS = 25  # steps of a point


def curves(runs: Path, stages: Sequence[str]) -> tuple[dict[str, np.ndarray], list[int]]:
    """(points, 2) of step and mean for each term, steps counted over all stages; and where each stage ends."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ends = [0]
    for stage in stages:
        rows = [json.loads(line) for line in (runs / stage / "log.jsonl").read_text().splitlines()]
        for first in range(0, len(rows), POINTS):
            some = rows[first : first + POINTS]
            for term in (name for names in TERMS.values() for name in names):
                if values := [row[term] for row in some if row.get(term) is not None]:
                    found[term].append((ends[-1] + first + len(some) / 2, float(np.mean(values))))
        ends.append(ends[-1] + len(rows))
    return {name: np.array(points) for name, points in found.items()}, ends


def main() -> None:
    """Draw the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "atoken"  # the same image each time
    from matplotlib import pyplot

    found, ends = curves(options.runs, options.stages)
    figure, panels = pyplot.subplots(len(TERMS), 1, figsize=(8, 6), sharex=True, layout="constrained")
    for panel, (title, names) in zip(panels, TERMS.items(), strict=True):
        for name in (name for name in names if name in found):
            panel.plot(*found[name].T, label=name.split("/")[0], linewidth=1.2)
        panel.set(title=title, yscale="log")
        panel.legend(fontsize="small")
        for end, stage in zip(ends, options.stages, strict=False):
            panel.axvline(end, color="0.8", linewidth=0.8, zorder=0)
            panel.text(end, panel.get_ylim()[1], f" stage {stage}", va="top", fontsize="small")
    panels[-1].set_xlabel("step")
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
