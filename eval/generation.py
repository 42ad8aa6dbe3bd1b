"""How good a generator is, from its samples on disk: gFID, sFID, Inception Score, precision and recall (paper 5.2).

These are names of numbers of the published Inception alone; those of another network carry its name. Samples are 8-bit
images, as the generator's own code rounded them: nothing of them is resized, cropped or rounded here, and a network's
own resizing is in the record, as is whether labels are balanced over classes, where files tell.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm import tqdm

from atoken.data.sources.sample import files_below, printable
from atoken.errors import AtokenError, MediaError
from atoken.io import Image
from atoken.loading import load
from atoken.media.image import read_image
from atoken.metrics.frechet import Gaussian
from atoken.modalities import IMAGE
from eval.adm import holds, read_labels, read_samples, read_statistics
from eval.atoken_features import ATokenFeatures
from eval.code import code_version
from eval.contract import Item, Output, State
from eval.metrics.classes import ClassAccuracy
from eval.metrics.distribution import InceptionScore, PrecisionRecall
from eval.metrics.features import FeatureMetric, Frechet, Measure
from eval.metrics.moments import gaussian
from eval.networks import EfficientNetLite0, Inception, Network, TorchScriptNetwork
from eval.prepare import Preparation
from eval.protocol import EvalProtocol, result_row, settings
from eval.sources.folders import IMAGENET, class_folders, labels_of_folders

NAME = "generation"
AS_IT_IS = Preparation()
LOSSLESS = frozenset({".png", ".bmp", ".tif", ".tiff", ".npz"})
NO_SPATIAL = "the network has no spatial features"
NO_PROBABILITIES = "the network gives no class probabilities"
NO_SPATIAL_MOMENTS = "the reference's statistics have none of spatial features (mu_s, sigma_s)"
NO_IMAGES = "the reference is statistics without images"


def generated(
    samples: Path, reference: Path, networks: Sequence[Network], *, task: str = NAME, model: str = "",
    identity: Mapping[str, str] = MappingProxyType({}), skipped: Mapping[str, str] = MappingProxyType({}),
    full: int = 0, prepare: Preparation = AS_IT_IS,
) -> dict[str, Any]:  # fmt: skip
    """A row as ``eval/protocol.py`` describes it, of all numbers of some networks.

    model, identity: whose samples they are, where more is known than the name of their file. skipped: what else cannot
    be had, and why. full: how many samples the task asks for. prepare: of a reference that is a folder.
    Raises: AtokenError where no network gives numbers.
    """
    numbers: dict[str, tuple[str, float]] = {}
    records: dict[str, dict[str, str]] = {}
    left_out = dict(skipped)
    for network in networks:
        try:
            with tqdm(desc=network.name, unit=" images", delay=1, disable=None, leave=False) as bar:
                found = evaluate_generation(samples, reference, network, prepare=prepare, progress=bar.update)
        except AtokenError as error:
            if network is networks[-1] and not records:
                raise
            left_out[network.name] = str(error)
            continue
        numbers |= {name: (network.name, value) for name, value in found["numbers"].items()}
        records[network.name], left_out = found["record"], left_out | found["left_out"]
    first = next(iter(records.values()))
    items = int(first["samples items"])
    protocol = EvalProtocol(
        task=task, data=first.get("reference sha256") or first["statistics sha256"], items=items, templates="none",
        code=code_version(), metrics=records, **prepare.record(), **settings({}),
    )  # fmt: skip
    full = full or items
    partial = {"status": "partial", "why": f"{items:,} samples were measured, and {task} asks for {full:,}."}
    return result_row(
        task, model or samples.stem, {"samples": samples.name, **identity}, "image", protocol, numbers,
        skipped=left_out, items={"planned": items, "measured": items, "full": full},
        **(partial if items != full else {}),
    )  # fmt: skip


def network_of(name: str, weights: str | None, device: str, *, trust: bool) -> Network:
    """Of "inception", "efficientnet-lite0", "nano", or FILE@SHA256, a TorchScript file. Raises: AtokenError."""
    if name == "inception":
        return Inception(weights, device)
    if name == "efficientnet-lite0":
        return EfficientNetLite0(weights, device)
    if name == "nano":
        return ATokenFeatures(load("nano", device="cpu", dtype="float32"))
    path, at, checksum = name.rpartition("@")
    if not at:
        known = "inception, efficientnet-lite0, nano, or FILE@SHA256 of a TorchScript file"
        raise AtokenError(f"There is no network {name!r}; take {known}.")
    return TorchScriptNetwork(path, checksum, trust=trust, device=device)


def evaluate_generation(
    samples: Path,
    reference: Path,
    network: Network,
    *,
    score: InceptionScore = InceptionScore(),  # noqa: B008 - frozen
    crowd: PrecisionRecall = PrecisionRecall(),  # noqa: B008 - frozen
    batch: int = 64,
    prepare: Preparation = AS_IT_IS,
    progress: Callable[[int], object] = lambda images: None,
) -> dict[str, Any]:
    """Every number that network and reference allow, in constant memory but for the features of precision and recall.

    samples: a folder of images, or an ADM ``.npz`` (``arr_0``). reference: one of these, or an ADM ``.npz`` of
    statistics; of a file with both, the distances are to its statistics and precision and recall are to its images,
    as in ADM's evaluator. prepare: of the images of a folder of reference. progress: called with the number of images
    after each batch.
    Returns "numbers" by name; "left_out": of numbers that cannot be had, why; "record": for the protocol.
    Raises: AtokenError, also where a number is not finite.
    """
    arrays = set() if reference.is_dir() else holds(reference)
    # Files of others do not say which network their moments are of: it is the published one.
    theirs = "weights" in arrays or not isinstance(network, EfficientNetLite0 | ATokenFeatures)
    given = read_statistics(reference, network.checksum) if "mu" in arrays and theirs else {}
    images = not given or "arr_0" in arrays
    gfid, sfid, left_out = "gfid", "sfid", dict[str, str]()
    accuracy: list[Measure] = []
    if not isinstance(network, Inception):
        of = f" ({network.name})"
        gfid, sfid = f"Fréchet{of}", f"spatial Fréchet{of}"
        score, crowd = replace(score, name=f"class score{of}"), replace(crowd, of=of)
    if isinstance(network, EfficientNetLite0):
        named = f"classifier accuracy ({network.name})"
        try:
            accuracy = [ClassAccuracy(named, _known_classes(samples))]
        except MediaError as error:
            left_out[named] = str(error)
    measures: list[Measure] = [Frechet(gfid, reference=given.get("pooled")), *accuracy]
    if "spatial" not in network.kinds:
        left_out[sfid] = NO_SPATIAL
    elif given and "spatial" not in given:
        left_out[sfid] = NO_SPATIAL_MOMENTS
    else:
        measures.append(Frechet(sfid, "spatial", given.get("spatial")))
    if "probabilities" in network.kinds:
        measures.append(score)
    else:
        left_out[score.name] = NO_PROBABILITIES
    if images:
        measures.append(crowd)
    else:
        left_out |= {f"{name}{crowd.of}": NO_IMAGES for name in ("precision", "recall")}
    metric = FeatureMetric(NAME, network, measures)
    state = metric.start()
    seen = {"samples": _fold(metric, state, "prediction", images_of(samples), batch, progress)}
    if images:
        seen["reference"] = _fold(metric, state, "target", images_of(reference, prepare), batch, progress)
    numbers = metric.finish(state)
    if broken := [name for name, number in numbers.items() if not isfinite(number)]:
        raise AtokenError(
            f"{', '.join(broken)} of {seen['samples'].items} samples is not finite: check that there are more than "
            f"{crowd.neighbour} images on each side, and the network."
        )
    record = metric.record | _described(seen, given) | {"samples labels": _balance(samples)}
    return {"numbers": numbers, "left_out": left_out, "record": record}


def _known_classes(samples: Path) -> dict[str, int]:
    """ImageNet's classes by key, of samples in a folder for each, or in a file with labels. Raises: MediaError."""
    if samples.is_dir():
        return {entry.key: entry.label or 0 for entry in class_folders(samples, IMAGENET).entries}
    labels, names = read_labels(samples)
    names = names or tuple(map(str, range(max(labels, default=0) + 1)))
    known, _ = labels_of_folders(names, IMAGENET)
    return {f"{index}.npz": known[names[label]] for index, label in enumerate(labels)}


def _balance(samples: Path) -> str:
    """Whether each class has equally many samples, which distances depend on."""
    if samples.is_dir() or "arr_1" not in holds(samples):
        return "not told"
    counts = Counter(read_labels(samples)[0])
    return "equally many of each" if len({*counts.values()}) == 1 else "not equally many of each"


def image_statistics(images: Path, network: Network, *, batch: int = 64) -> dict[str, Gaussian]:
    """The moments of a folder or an ADM ``.npz`` of images, for ``eval.adm.write_statistics``: a reference to keep.

    Raises: AtokenError.
    """
    measures = {kind: Frechet(kind, kind) for kind in ("pooled", "spatial") if kind in network.kinds}
    metric = FeatureMetric("statistics", network, list(measures.values()))
    state = metric.start()
    _fold(metric, state, "target", images_of(images), batch, lambda images: None)
    return {kind: gaussian(state, f"{kind}.target") for kind in measures}


@dataclass
class _Images:
    """The images of a side, for the record."""

    items: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    lossy: set[str] = field(default_factory=set)
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, suffix: str, pixels: np.ndarray) -> None:
        """Count one image."""
        height, width = pixels.shape[:2]
        self.items += 1
        self.sizes[f"{width}x{height}"] += 1
        self.lossy |= {suffix} - LOSSLESS
        self.digest.update(f"{height} {width} ".encode() + pixels.tobytes())

    def described(self, side: str) -> dict[str, str]:
        """For the protocol; more than three sizes by their number."""
        shown = ", ".join(sorted(self.sizes)) if len(self.sizes) <= 3 else f"{len(self.sizes)} sizes"
        kept = f"lossy files: {', '.join(sorted(self.lossy))}" if self.lossy else "lossless files"
        return {f"{side} items": str(self.items), f"{side} size": shown, f"{side} pixels": f"8 bits, {kept}"}


def _fold(
    metric: FeatureMetric, state: State, side: str, images: Iterator[tuple[str, np.ndarray]], batch: int,
    progress: Callable[[int], object],
) -> _Images:  # fmt: skip
    """Fold the images of one side of an output, "prediction" or "target"."""
    seen = _Images()
    while some := list(islice(images, batch)):
        outputs = []
        for name, pixels in some:
            seen.add(Path(name).suffix.lower(), pixels)
            target, prediction = (pixels[None] if side == one else None for one in ("target", "prediction"))
            outputs.append(Output(Item(name, Image(pixels)), target, prediction))
        metric.add(state, outputs)
        progress(len(some))
    return seen


def images_of(path: Path, prepare: Preparation = AS_IT_IS) -> Iterator[tuple[str, np.ndarray]]:
    """Name and pixels of each image, sorted by name and prepared, or in the order of the array. Raises: MediaError."""
    if not path.is_dir():
        yield from ((f"{index}.npz", pixels) for index, pixels in enumerate(read_samples(path)))
        return
    for name in files_below(path, IMAGE.suffixes):
        image = read_image(path / name)
        if image.alpha is not None and image.alpha.min() < 255:
            raise MediaError(f"{path / name} has transparent pixels, and samples have three colours: flatten it.")
        yield printable(name), prepare.pixels(image.pixels)


def _described(seen: Mapping[str, _Images], given: Mapping[str, Gaussian]) -> dict[str, str]:
    """The record of both sides; of a reference also its SHA-256, over moments or pixels: it must be the same one."""
    record = {"order": "by name, or as in the file"}
    for side, one in seen.items():
        record |= one.described(side)
    if given:
        digest = hashlib.sha256()
        for kind in sorted(given):
            digest.update(given[kind].mean_D.tobytes() + given[kind].covariance_DD.tobytes())
        items = given["pooled"].items
        record["statistics sha256"] = digest.hexdigest()
        record["statistics items"] = "unknown" if items is None else str(items)
    if "reference" in seen:
        record["reference sha256"] = seen["reference"].digest.hexdigest()
    return record
