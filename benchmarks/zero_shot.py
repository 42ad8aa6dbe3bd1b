"""Naming what no training saw: zero-shot top-1 of images, videos and assets, and retrieval against 200 captions.

``python -m benchmarks.zero_shot nano nano-d`` prints a table for each model. Every modality has 48 classes, a shape in
a colour (``atoken/data/synthetic/labelled.py``), of a seed that training never uses; every class comes
equally often. A sample is named by the prompt, "a red circle", whose vector is nearest to its own; videos also by the
mean of their frames' vectors, as ``atoken classify --pool frames`` does and the paper for retrieval.

| what | how many | size |
| --- | --- | --- |
| images | 384 | squares of 64, 80, 96, 112, 128 pixels in turn |
| videos | 192 | the same sizes; 8, 12, 16 frames in turn |
| assets | 144 | 16 views of 256x256; 64^3 voxels coarsened until at most 512 (8^3 cells) or 4096 (16^3 or 32^3) |
| captioned images | 200 | 128x128 |
| scenes | 200 | 128x128 |

Retrieval is of labelled images whose captions say what the figure lies on, "a red ring on a grey to blue gradient";
and, of what no training had, of scenes: two or three columns of figures, "a red ring left of two blue stars on a grey
gradient". Of each the first 200 of the series whose captions are all different. R@1 of captions is the share of
images whose own caption is the nearest of the 200; R@1 of images is the share of captions whose own image is. A
tie is a miss, so is a vector that is not finite. Intervals hold 95 % of the binomial distribution's weight (Wilson).
Run it with ``OMP_NUM_THREADS=1`` for one core: most of the time goes into rendering the assets.

``python -m eval run procedural-images-zero-shot`` (and its like) measures the same samples with a protocol; assets
there have all their voxels, which takes a CPU half a minute each, and are fewer.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from atoken.data.synthetic.labelled import FIGURE_PROMPTS, SOLID_PROMPTS, class_of
from atoken.errors import AtokenWarning
from atoken.modalities.pixels import patchify, to_values
from atoken.modalities.views import render_views
from atoken.modalities.voxels import voxelize
from atoken.tokenizer import Tokenizer, load
from atoken.tokens import SparseTokens
from eval.sources import synthetic
from eval.sources.entry import Listing

VOXELS = (512, 4096)  # at most, of an asset
ASSETS = 144  # three rounds of the 48 classes
AT_ONCE = 16  # samples that are encoded together


def images() -> Iterator[SparseTokens]:
    """The labelled images."""
    return (patchify(to_values(image.pixels[None])) for image in _media(synthetic.named_images(Path())))


def videos() -> Iterator[SparseTokens]:
    """The labelled videos."""
    return (patchify(to_values(video.frames)) for video in _media(synthetic.named_videos(Path())))


def assets(most: int) -> Iterator[SparseTokens]:
    """The labelled assets, coarsened to at most so many voxels."""
    for mesh in _media(synthetic.named_assets(Path(), ASSETS)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AtokenWarning)  # that it is coarsened
            yield voxelize(render_views(mesh), max_tokens=most, over="coarsen").tokens


LABELLED: Mapping[str, tuple[Callable[[], Iterator[SparseTokens]], Sequence[str]]] = {
    "images": (images, FIGURE_PROMPTS),
    "videos": (videos, FIGURE_PROMPTS),
    **{f"assets, {most} voxels": (partial(assets, most), SOLID_PROMPTS) for most in VOXELS},
}


def captioned(listing: Listing) -> dict[str, SparseTokens]:
    """Images by caption."""
    captions = [entry.captions[0] for entry in listing.entries]
    found = (patchify(to_values(image.pixels[None])) for image in _media(listing))
    return dict(zip(captions, found, strict=True))


def _media(listing: Listing) -> Iterator[Any]:
    return (entry.media() for entry in listing.entries if callable(entry.media))


@torch.inference_mode()
def vectors(tokenizer: Tokenizer, samples: Iterable[SparseTokens]) -> Tensor:
    """(V, D) unit vectors."""
    waiting, found = list(samples), []
    for first in range(0, len(waiting), AT_ONCE):
        packed = SparseTokens.pack(waiting[first : first + AT_ONCE]).to(tokenizer.device)
        found.append(normalize(tokenizer.model.encode(packed).pooled, dim=-1).cpu())
    return torch.cat(found)


def right(scores_VT: Tensor, own_V: Tensor) -> Tensor:
    """(V,) bool: whether the score of a row's own column is above every other; a tie and a NaN are not."""
    own_V1 = scores_VT.gather(1, own_V[:, None])
    others_VT = scores_VT.scatter(1, own_V[:, None], -math.inf)
    return (own_V1 > others_VT).all(1)


def interval(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, hits / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def zero_shot(tokenizer: Tokenizer, samples: Iterable[SparseTokens], prompts: Sequence[str]) -> Tensor:
    """(V,) bool: which samples are named right."""
    return _named(tokenizer, vectors(tokenizer, samples), prompts)


def by_frames(tokenizer: Tokenizer) -> Tensor:
    """(V,) bool: which of the labelled videos are named right by the mean of their frames' vectors."""
    found = [tokenizer.embed_frames(video) for video in _media(synthetic.named_videos(Path()))]
    return _named(tokenizer, torch.stack(found), FIGURE_PROMPTS)


def _named(tokenizer: Tokenizer, found_VD: Tensor, prompts: Sequence[str]) -> Tensor:
    own_V = torch.tensor([class_of(index) for index in range(len(found_VD))])
    return right(found_VD @ tokenizer.embed_text(prompts).T, own_V)


def retrieval(tokenizer: Tokenizer, found: Mapping[str, SparseTokens]) -> tuple[Tensor, Tensor]:
    """(200,) bool each: which images find their captions, and which captions their images."""
    scores = vectors(tokenizer, found.values()) @ tokenizer.embed_text(list(found)).T
    own = torch.arange(len(found))
    return right(scores, own), right(scores.T, own)


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["nano"], help="bundled names or folders, with a text side")
    tokenizers = [load(name) for name in parser.parse_args().models]
    labelled = {name: (list(make()), prompts) for name, (make, prompts) in LABELLED.items()}
    texts = {
        "captioned images": captioned(synthetic.captioned_images(Path())),
        "scenes": captioned(synthetic.scenes(Path())),
    }
    for tokenizer in tokenizers:
        rows = {f"{name}, zero-shot top-1": zero_shot(tokenizer, *one) for name, one in labelled.items()}
        rows["videos by their frames, zero-shot top-1"] = by_frames(tokenizer)
        for name, found in texts.items():
            captions, back = retrieval(tokenizer, found)
            rows |= {f"captions of {name}, R@1": captions, f"{name} of captions, R@1": back}
        _print(tokenizer.name, rows)


def _print(model: str, rows: Mapping[str, Tensor]) -> None:
    print(f"| {model} | among | samples | right | 95 % interval |\n| --- | --- | --- | --- | --- |")
    for name, hits in rows.items():
        low, high = interval(int(hits.sum()), len(hits))
        among = synthetic.TEXTS if "R@1" in name else len(FIGURE_PROMPTS)
        print(f"| {name} | {among} | {len(hits)} | {hits.float().mean():.1%} | {low:.1%} to {high:.1%} |")


if __name__ == "__main__":
    main()
