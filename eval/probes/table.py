"""Every probe of a tokenizer on procedural images, with chance and plain pixels for comparison."""

from __future__ import annotations

from typing import Any

from atoken.tokenizer import Tokenizer
from eval.code import code_version
from eval.models.tokenizer import AToken
from eval.probes.dense import pixels_of, segmentation_probe, tokens_of
from eval.probes.figures import masked_images
from eval.probes.pooled import SEED, labelled_items, probe_vectors, vectors_of

EACH, SIDE = 8, 128  # labelled images of each of the 48 classes; pixels of their sides
LEARNED, TESTED = 96, 48  # images of figures with masks
READ = ("figure", "shape", "colour")


def probed(tokenizer: Tokenizer) -> dict[str, Any]:
    """The numbers of ``probe_vectors`` and of ``segmentation_probe`` by its input, and how they were measured."""
    model = AToken(tokenizer)
    dense = {"features": tokens_of(tokenizer, "features"), "latents": tokens_of(tokenizer, "latents")}
    return {
        "model": model.name,
        "record": dict(model.record),
        "protocol": {
            "data": f"labelled and masked procedural images, seed {SEED}, {SIDE}x{SIDE}",
            "items": f"{EACH} of each class; {LEARNED} learned and {TESTED} tested with masks",
            "code": code_version(),
        },
        "pooled": probe_vectors(*vectors_of(model, labelled_items(EACH, SIDE))),
        "dense": {
            name: segmentation_probe(read, masked_images(SEED, LEARNED, SIDE), masked_images(SEED + 1, TESTED, SIDE))
            for name, read in {**dense, "pixels": pixels_of}.items()
        },
    }


def markdown(found: dict[str, Any]) -> str:
    """Two tables: accuracy on images, and intersection over union of pixels."""
    pooled, dense = found["pooled"], found["dense"]
    shares = [f"{pooled[name]:.1%}" for name in ("knn", "linear", "ridge", "chance")]
    lines = ["| pooled vectors | k-NN | logistic | ridge | chance |", "|" + " --- |" * 5]
    lines += [f"| {found['model']}, {pooled['classes']:.0f} classes | {' | '.join(shares)} |", ""]
    lines += [f"| mIoU | {' | '.join(dense)} | chance | ceiling |", "|" + " --- |" * (len(dense) + 3)]
    for name in READ:
        numbers = [one[f"{name}/miou"] for one in dense.values()]
        numbers += [dense["features"][f"{name}/{bound}"] for bound in ("chance", "ceiling")]
        lines.append(f"| {name} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    return "\n".join(lines)
