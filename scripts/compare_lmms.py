"""The same questions to the same model by lmms-eval and by our harness: answers and scores must be equal.

    python -m scripts.compare_lmms MODEL --items 50

Exit code 1 where they differ. ``make lmms`` makes an environment with lmms-eval and runs this in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from atoken.errors import AtokenError
from eval.command import main as harness
from eval.lmms import ROOT, evaluated
from mllm.answers import plain

TASKS = {"atoken_vqa_images": "vqa-images", "atoken_vqa_videos": "vqa-videos", "atoken_vqa_assets": "vqa-assets"}
WAYS = {"messages": (), "text and media": ("--force_simple",)}
OFFLINE = ("--include_path", str(ROOT / "mllm/lmms_tasks"))


def by_harness(model: str, task: str, folder: Path, items: int) -> tuple[list[str], float]:
    """Answers, and the share of right ones."""
    harness(["run", task, "--model", f"vl:{model}", "--items", str(items), "-o", str(folder), "--device", "cpu"])
    row = json.loads((folder / "result.json").read_text())["rows"][0]
    lines = [json.loads(line) for line in (folder / row["items"]["file"]).read_text().splitlines()]
    return [line["answer"] for line in lines], row["numbers"]["accuracy"]["value"]


def by_lmms_eval(model: str, task: str, folder: Path, items: int, way: str) -> tuple[list[str], float]:
    """The same from lmms-eval."""
    found = evaluated(model, task, folder, device="cpu", items=items, options=(*OFFLINE, *WAYS[way]))
    (samples,) = folder.rglob(f"*_samples_{task}.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    lines.sort(key=lambda line: line["doc_id"])
    return [line["filtered_resps"] for line in lines], found["results"][task]["accuracy,none"]


def main() -> int:
    """Print both scores of each task, and the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a folder, a bundled name or a hub id")
    parser.add_argument("--items", type=int, default=50, help="of each task (default: 50)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    options = parser.parse_args()
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks:
            ours, score = by_harness(options.model, TASKS[task], Path(folder) / task, options.items)
            for way in WAYS:
                found, other = by_lmms_eval(options.model, task, Path(folder) / f"{task} {way}", options.items, way)
                same = sum(plain(one) == plain(two) for one, two in zip(ours, found, strict=True))
                print(f"{task}, {way}: {score:.4f} and {other:.4f} by lmms-eval; {same} of {len(ours)} answers equal")
                differ += same != len(ours) or abs(score - other) > 1e-9
    return int(bool(differ))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AtokenError as error:
        sys.exit(str(error))
