"""How numbers were measured, and whether two of them may stand in one column.

A result file (``result.json``) is ``{"format": FORMAT, "rows": [...], "run": {...}}``. Rows are the same for any number
of ranks and interruptions; what may differ (time, host, versions, ranks) is in ``run``. A row is::

    {"task": "coco-256",            a row of eval/tasks.py
     "model": "nano",               the model under test, and
     "identity": {...},             its own record: fingerprint of weights, quality of a codec
     "modality": "image",           or video, or asset
     "status": "complete",          or partial (items are missing), or failed (no numbers, or one that is not finite)
     "why": "",                     a sentence where it is not complete
     "protocol": {...},             the fields of ``EvalProtocol``
     "numbers": {"psnr": {"value": 24.1, "metric": "psnr", "fingerprint": "3f9a12bc"}, ...},
     "faults": {"fid": "..."},      metrics that gave no finite number; such a row has failed
     "skipped": {"lpips": "..."},   metrics that could not start or not finish, for want of a weight file, say
     "items": {"planned": 5000, "measured": 4999, "full": 5000, "file": "FOLDER/items.jsonl"},
     "failed": [{"key": "a.jpg", "why": "..."}, ...],   the first MOST_LISTED of them; all are in the file of items
     "worst": [{"key": "b.jpg", "psnr": 18.2, "target": "FOLDER/images/007-target.png", "prediction": "..."}, ...],
     "shown": [...]}                as the worst, but evenly over the data set

Paths are relative to the result file. A line of the file of items is ``{"key": ..., NAME: NUMBER, ...}``, or
``{"key": ..., "failed": SENTENCE}``; a number that is not finite is written as text. ``"answer"`` is what a model said.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

FORMAT = "atoken-eval-2"
MOST_LISTED = 100
# What a model's record may say that numbers depend on, and the value where it says nothing: a codec, for one, has no
# latents to draw and rounds nothing below fp32. Everything else in its record tells which model it is.
SETTINGS = {
    "dtype": "float32",
    "latents": "mean",
    "seed": "none",
    "pool": "whole",
    "views": "those that were encoded",
    "voxels": "all",
    "judge": "none",
}


@dataclass(frozen=True)
class EvalProtocol:
    """Everything about a row that must agree before its numbers are compared, as text.

    data: SHA-256 of the items that were measured, in order: name, bytes on disk, label, captions. crop to background:
    see ``Preparation.record``. templates: of zero-shot prompts. dtype to judge: how the model ran (pool: of the vector
    of a video; views: those of an asset that are compared; voxels: how many of an asset it saw; judge: another model,
    whose vectors say what is in its images). code: version of AToken and a digest of the code that measures. metrics:
    the record of each metric by its name.
    """

    task: str
    data: str
    items: int
    crop: str
    filter: str
    size: str
    frames: str
    fps: str
    cameras: str
    background: str
    templates: str
    dtype: str
    latents: str
    seed: str
    code: str
    pool: str = SETTINGS["pool"]
    views: str = SETTINGS["views"]
    voxels: str = SETTINGS["voxels"]
    judge: str = SETTINGS["judge"]
    metrics: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def fingerprint(self, metric: str) -> str:
        """Eight hexadecimal digits over what must agree for two numbers of this metric."""
        return fingerprint(self.record(), metric)


SHARED = tuple(part.name for part in fields(EvalProtocol) if part.name != "metrics")


def binding(record: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """What must agree for two numbers of a metric, by field; fields of the metric itself are named ``psnr.peak``.

    A field that a record lacks is None: such a record agrees with none that has the field.
    """
    found = {name: record.get(name) for name in SHARED}
    own = record.get("metrics", {}).get(metric)
    conventions = {"": None} if own is None else own
    return found | {f"{metric}.{name}".rstrip("."): value for name, value in conventions.items()}


def fingerprint(record: Mapping[str, Any], metric: str) -> str:
    """As ``EvalProtocol.fingerprint``, of a record that was read from a file."""
    return digest(binding(record, metric))[:8]


def settings(record: Mapping[str, str]) -> dict[str, str]:
    """How a model ran, from its record."""
    return {name: str(record.get(name, usual)) for name, usual in SETTINGS.items()}


def digest(value: Any) -> str:
    """SHA-256 of plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def data_hash(lines: Iterable[str]) -> str:
    """SHA-256 of a list of items, each in one line."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode("utf-8", "backslashreplace") + b"\n")
    return found.hexdigest()


def result_row(
    task: str,
    model: str,
    identity: Mapping[str, str],
    modality: str,
    protocol: EvalProtocol | None,
    numbers: Mapping[str, tuple[str, float]],
    **rest: Any,
) -> dict[str, Any]:
    """A row as described above, complete unless ``rest`` says otherwise. numbers: metric and value, by name."""
    return {
        "task": task,
        "model": model,
        "identity": dict(identity),
        "modality": modality,
        "status": "complete",
        "why": "",
        "protocol": {} if protocol is None else protocol.record(),
        "numbers": {
            name: {"value": value, "metric": metric, "fingerprint": protocol.fingerprint(metric)}
            for name, (metric, value) in numbers.items()
            if protocol is not None
        },
        "faults": {},
        "skipped": {},
        "items": {},
        "failed": [],
    } | rest
