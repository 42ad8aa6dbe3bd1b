"""The paper's tables 11 and 12: generators of ImageNet's classes at 256x256, by 50,000 samples each.

    ROOT/imagenet-adm/VIRTUAL_imagenet256_labeled.npz   ADM's reference: moments of the training set, 10,000 images

The paper names code for each and changes its input alone, so what it leaves open is as in that code. Table 11, by
LightningDiT: random labels, 249 steps of Euler's method, shifted towards noise, no guidance in the first eighth of the
path. Table 12, by TokenBridge-L: 50 samples of each class, 256 iterations, linear guidance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atoken.errors import AtokenError
from eval.generation import AS_IT_IS, generated, images_of
from eval.networks import Network
from eval.prepare import Preparation
from eval.sources.generated import options_of, record_of, samples_of

SAMPLES = 50_000
REFERENCE = "imagenet-adm/VIRTUAL_imagenet256_labeled.npz"
NETWORKS = ("inception", "efficientnet-lite0")
# Options of ``python -m generation sample``, and the bundled model that shows the command.
SAMPLING: Mapping[str, Sequence[str]] = {
    "table11": [
        "--random", "--solver", "euler", "--steps", "249", "--shift", str(1 / 0.3), "--interval", "0", "0.875",
        "--guidance", "1.65",
    ],
    "table12": ["--steps", "256", "--temperature", "0.96", "--guidance", "3.1"],
}  # fmt: skip
CLASSES = {"table11": "DiT", "table12": "MaskedAR"}
BUNDLED = {"table11": "dit-nano", "table12": "tokenbridge-nano"}


def reference_of(given: str | None, root: Path) -> Path:
    """That of the paper below the data's root, or another one. Raises: AtokenError where it is missing."""
    path = root / REFERENCE if given is None else Path(given)
    if not path.exists():
        raise AtokenError(
            f"There is no {path}; put ADM's reference batch there (docs/data.md), or name a folder of images or "
            "another .npz with --reference."
        )
    return path


def table_samples(
    table: str, given: str, folder: Path, number: int, changes: Sequence[str], device: str
) -> tuple[Path, dict[str, str]]:
    """Samples and how they were made: those of a generator, made in ``folder`` as the table has them; or given ones.

    given: a pipeline's folder or bundled name; or a folder or ``.npz`` of samples. changes: ``KEY=VALUE``, of options
    of sampling. Raises: AtokenError.
    """
    path = Path(given)
    if path.suffix == ".npz" or (path.is_dir() and not (path / "model_index.json").is_file()):
        if changes:
            raise AtokenError(f"{given} holds samples that are made already; leave --set out.")
        inside = path / "samples.npz"
        return (inside, record_of(inside)) if inside.is_file() else (path, {})
    _check_kind(table, path / "model_index.json")
    options = [*SAMPLING[table], *options_of(changes), "--device", device]
    path = samples_of(given, folder / "samples", number, options=options)
    return path, record_of(path)


def _check_kind(table: str, index: Path) -> None:
    """Raises: AtokenError where a pipeline is of the kind of the other table."""
    kind = json.loads(index.read_text())["transformer"][1] if index.is_file() else CLASSES[table]
    if kind != CLASSES[table]:
        raise AtokenError(f"{table} is of a {CLASSES[table]}, and {index.parent} is a {kind}; take the other table.")


def table_row(
    table: str, model: str, samples: Path, identity: Mapping[str, str], reference: Path, networks: Sequence[Network],
    skipped: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """The row of a table, as ``eval.generation.generated``; images of a folder of reference are cut as ADM does.

    Raises: AtokenError.
    """
    side = next(images_of(samples))[1].shape[0]
    return generated(
        samples, reference, networks, task=table, model=model, identity=identity, skipped=skipped, full=SAMPLES,
        prepare=Preparation("adm", side) if reference.is_dir() else AS_IT_IS,
    )  # fmt: skip
