"""Samples of a generator, made by ``python -m generation sample`` in a process of its own.

The harness and the generators meet on disk alone: nothing of ``generation/`` is imported here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from atoken.errors import AtokenError
from atoken.io import Image
from eval.adm import read_samples
from eval.sources.entry import Entry

ROOT = Path(__file__).parents[2]


def samples_of(
    generator: str, folder: Path, number: int, *, labels: Sequence[str] = (), options: Sequence[str] = ()
) -> Path:
    """So many images, in ``folder/samples.npz`` as ADM's evaluation reads it; what is there is gone on with.

    generator: the folder of a pipeline, or a bundled name. labels: in turn; without any, all that it knows. options:
    further ones of the command, such as ``["--steps", "250"]``. Each of several ranks makes its share, and the file is
    whole when this returns on rank 0. Raises: AtokenError; the reason is then on the standard error stream.
    """
    command = [sys.executable, "-m", "generation", "sample", generator, "-n", str(number), "-o", str(folder), *options]
    named = ["--labels", *labels] if labels else []
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([*command, *named], env=found, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise AtokenError(f"{generator} gave no samples; the reason is in the lines before this one.")
    return folder / "samples.npz"


def entries_of(samples: Path, keys: Sequence[str]) -> list[Entry]:
    """The images of an ``.npz`` in their order, under the keys of the items that they stand for. Raises: MediaError."""
    return [Entry(key, partial(Image, pixels)) for key, pixels in zip(keys, read_samples(samples), strict=True)]
