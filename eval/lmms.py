"""The paper's tables 9 and 10 by lmms-eval, which runs in a process and, by ``make lmms``, an environment of its own.

One process for each task, so that one whose data or packages are missing costs its own row alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atoken.errors import AtokenError
from atoken.lmms import MODEL
from eval.code import ROOT, code_version
from eval.prepare import Preparation
from eval.protocol import EvalProtocol, result_row, settings

VERSION = "0.7.3"
PYTHON = ROOT / ".lmms/bin/python"  # of ``make lmms``
MOST_SHOWN = 300  # characters of a reason
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception): .*", re.MULTILINE)  # the last lines of tracebacks


class Published(NamedTuple):
    """A column of a table: its task in lmms-eval, and what the task needs besides its data."""

    name: str
    task: str
    needs: str = ""


_JUDGE = "a language model as judge, OPENAI_API_KEY"
TABLES = {
    "table9": (
        Published("RW-QA", "realworldqa"), Published("AI2D", "ai2d"), Published("SQA", "scienceqa_img"),
        Published("MMMU", "mmmu_val"),
        Published("MathVista", "mathvista_testmini_format", f"the package Levenshtein; {_JUDGE}"),
        Published("OCRBench", "ocrbench"), Published("TextVQA", "textvqa_val"),
    ),
    "table10": (
        Published("VideoMME", "videomme"), Published("PercepTest", "perceptiontest_val_mc"),
        Published("NExT-QA", "nextqa_mc_test", "the variable HF_HOME"),
        Published("LongVideoBench", "longvideobench_val_v", "the package decord"),
        Published("MLVU", "mlvu_dev"), Published("LVBench", "lvbench"),
    ),
}  # fmt: skip


def interpreter() -> str:
    """A Python that has lmms-eval. Raises: AtokenError."""
    for python in (str(PYTHON), sys.executable):
        probe = "from importlib.metadata import version; print(version('lmms-eval'))"
        done = (
            subprocess.run([python, "-c", probe], capture_output=True, text=True, check=False) if _is(python) else None
        )
        if done and done.stdout.strip() == VERSION:
            return python
    raise AtokenError(f"There is no lmms-eval {VERSION}; run `make lmms`, which makes an environment for it.")


def _is(python: str) -> bool:
    return Path(python).is_file()


def evaluated(
    model: str, task: str, folder: Path, *, device: str = "", items: int | None = None, options: Sequence[str] = ()
) -> dict[str, Any]:
    """What lmms-eval writes of a task; its samples lie below ``folder`` in files that end in ``_samples_TASK.jsonl``.

    model: a folder, a bundled name or a hub id. options: further ones of lmms-eval. Raises: AtokenError (no lmms-eval,
    or the last error that it printed).
    """
    command = [
        interpreter(), "-m", "lmms_eval", "--model", MODEL, "--model_args", f"pretrained={model}", "--tasks", task,
        "--output_path", str(folder), "--log_samples", "--batch_size", "1", *(["--device", device] if device else []),
        *(["--limit", str(items)] if items else []), *options,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    files = sorted(folder.rglob("*_results.json"))
    found = json.loads(files[-1].read_text()) if files else {}
    if done.returncode or task not in found.get("results", {}):
        said = [line for line in _ERROR.findall(done.stderr + done.stdout) if "RetryError" not in line]
        reason = said[-1] if said else f"it ended with code {done.returncode}"
        raise AtokenError(f"lmms-eval gave no number: {reason[:MOST_SHOWN]}")
    return dict(found)


def table_row(
    table: str, column: Published, model: str, folder: Path, device: str, items: int | None
) -> dict[str, Any]:
    """The row of one task; one without numbers says why, and what the task needs."""
    name, modality = f"{table}-{column.task}", "image" if table == "table9" else "video"
    try:
        found = evaluated(model, column.task, folder / column.task, device=device, items=items)
    except AtokenError as error:
        needs = f" {column.name} needs {column.needs}." if column.needs else ""
        why, counts = f"{str(error).rstrip('.')}.{needs}", {"planned": 0, "measured": 0, "full": 0}
        return result_row(name, model, {}, modality, None, {}, status="failed", why=why, items=counts)
    numbers = {
        key.removesuffix(",none"): float(value)
        for key, value in found["results"][column.task].items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "stderr" not in key
    }
    count = found.get("n-samples", {}).get(column.task, {})
    full, measured = int(count.get("original", 0)), int(count.get("effective", 0))
    record = {"lmms-eval": VERSION, "task": column.task, "version": str(found.get("versions", {}).get(column.task))}
    protocol = EvalProtocol(
        task=name, data=str(found.get("task_hashes", {}).get(column.task)), items=measured, templates="lmms-eval's",
        code=code_version(), metrics={"lmms-eval": record}, **Preparation().record(), **settings({}),
    )  # fmt: skip
    partial = {"status": "partial", "why": f"{measured:,} items were measured, and the whole data set has {full:,}."}
    return result_row(
        name, model, record, modality, protocol, {key: ("lmms-eval", value) for key, value in numbers.items()},
        items={"planned": measured, "measured": measured, "full": full}, **(partial if measured != full else {}),
    )  # fmt: skip
