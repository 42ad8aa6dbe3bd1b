"""Samples of a generator, made by ``python -m generation sample`` in a process of its own.

The harness and the generators meet on disk alone: nothing of ``generation/`` is imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from atoken.errors import AtokenError
from atoken.io import Image
from eval.adm import read_samples
from eval.sources.entry import Entry

ROOT = Path(__file__).parents[2]
_PAUSE = 0.2  # seconds between two looks for the file that rank 0 writes


def samples_of(
    generator: str, folder: Path, number: int, *, labels: Sequence[str] = (), options: Sequence[str] = ()
) -> Path:
    """So many images, in ``folder/samples.npz`` as ADM's evaluation reads it; what is there is gone on with.

    generator: the folder of a pipeline, or a bundled name. labels: in turn; without any, all that it knows. options:
    further ones of the command, such as ``["--steps", "250"]``. Each of several ranks makes its share, rank 0 writes
    the file, and all wait for it. Raises: AtokenError; the reason is then on the standard error stream.
    """
    command = [sys.executable, "-m", "generation", "sample", generator, "-n", str(number), "-o", str(folder), *options]
    named = ["--labels", *labels] if labels else []
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([*command, *named], env=found, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise AtokenError(f"{generator} gave no samples; the reason is in the lines before this one.")
    samples = folder / "samples.npz"
    while not samples.is_file():
        time.sleep(_PAUSE)
    return samples


def record_of(samples: Path) -> dict[str, str]:
    """What a file of ``samples_of`` holds, by its SHA-256, and how it was asked for, but for the labels."""
    asked = json.loads((samples.parent / "asked.json").read_text())
    with samples.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settings = ", ".join(f"{name} {value}" for name, value in asked.items() if name != "labels")
    return {"samples": digest, "asked for": settings}


def entries_of(samples: Path, keys: Sequence[str]) -> list[Entry]:
    """The images of an ``.npz`` in their order, under the keys of the items that they stand for. Raises: MediaError."""
    return [Entry(key, partial(Image, pixels)) for key, pixels in zip(keys, read_samples(samples), strict=True)]


def options_of(changes: Sequence[str]) -> list[str]:
    """``KEY=VALUE`` as options of ``python -m generation sample``. Raises: AtokenError."""
    options = []
    for change in changes:
        key, sign, value = change.partition("=")
        if not sign:
            raise AtokenError(f"--set takes KEY=VALUE, such as steps=25, not {change!r}.")
        options += [f"--{key}", *value.split(",")]
    return options
