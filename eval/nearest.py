"""Whether a generator copies: the nearest training image of each sample, beside those of images that nobody trained on.

Letters: ``N`` images, ``R`` rows of a store, ``D`` the numbers of an image's latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atoken.errors import AtokenError
from atoken.io import Image
from atoken.report.page import Block, Figures, write
from atoken.store.reader import TokenStore
from atoken.tokenizer import Tokenizer
from eval.contract import Dataset
from eval.prepare import evenly
from eval.report.findings import side_by_side

SHOWN = 16  # samples on the page
BATCH = 16  # images that are encoded at once
CHUNK = 1024  # rows of a store that are compared at once
RARE = 0.01  # of images that nobody trained on, so many lie nearer to a training image than a copy is taken to


@dataclass(frozen=True)
class Nearest:
    """Of each image the nearest row: by its latents, and by its vector. distances and cosines: to these (N,)."""

    by_latents: np.ndarray
    distances: np.ndarray
    by_vector: np.ndarray
    cosines: np.ndarray


def nearest(images: Dataset, store: TokenStore, tokenizer: Tokenizer) -> Nearest:
    """Compare images with all rows of a store, which must have one grid.

    A distance is the root of the mean squared difference of normalised latents: 1.4 between independent ones.
    Raises: AtokenError (no rows, several grids, another tokenizer).
    """
    if not len(store):
        raise AtokenError(f"{store.name} has no rows to compare images with.")
    store.check(tokenizer)
    latents_ND, vectors_ND = _encoded(images, store, tokenizer)
    least_N, row_N = torch.full((len(images),), torch.inf), torch.zeros(len(images), dtype=torch.long)
    most_N, like_N = torch.full_like(least_N, -torch.inf), row_N.clone()
    for first in range(0, len(store), CHUNK):
        rows = range(first, min(first + CHUNK, len(store)))
        found_N, which_N = torch.cdist(latents_ND, store.grids(rows).flatten(1)).min(1)
        row_N = torch.where(found_N < least_N, which_N + first, row_N)
        least_N = torch.minimum(found_N, least_N)
        found_N, which_N = (vectors_ND @ store.vectors(rows).T).max(1)
        like_N = torch.where(found_N > most_N, which_N + first, like_N)
        most_N = torch.maximum(found_N, most_N)
    distances_N = least_N / latents_ND.shape[1] ** 0.5
    return Nearest(row_N.numpy(), distances_N.numpy(), like_N.numpy(), most_N.numpy())


def _encoded(images: Dataset, store: TokenStore, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Normalised latents (N, D) and vectors of images."""
    latents, vectors = [], []
    for first in range(0, len(images), BATCH):
        some = [images[index].media for index in range(first, min(first + BATCH, len(images)))]
        for tokens in tokenizer.encode_batch(some):
            latents.append(store.statistics.normalise(tokens.latents).T.flatten())  # channels first, as grids
            vectors.append(tokenizer.embed(tokens))
    return torch.stack(latents), torch.stack(vectors)


def copying(samples: Nearest, held_out: Nearest) -> dict[str, float]:
    """Medians of both, and the share of samples that are "nearer than new images".

    These are nearer to a training image than all but ``RARE`` of the held-out images. A generator that copies nothing
    has that share as well.
    """
    near = np.quantile(held_out.distances, RARE, method="inverted_cdf")
    return {
        "distance to the nearest training image": float(np.median(samples.distances)),
        "the same of held-out images": float(np.median(held_out.distances)),
        "cosine to the nearest training image": float(np.median(samples.cosines)),
        "cosine of held-out images": float(np.median(held_out.cosines)),
        "nearer than new images": float((samples.distances < near).mean()),
    }


def write_page(
    path: Path, images: Dataset, labels: Sequence[str], found: Nearest, store: TokenStore, tokenizer: Tokenizer
) -> None:
    """A page of ``SHOWN`` samples, evenly over all, each with the nearest training images beside it."""
    known = store.column("label")
    figures = []
    for index in evenly(len(images), min(SHOWN, len(images))):
        rows = [int(by[index]) for by in (found.by_latents, found.by_vector)]
        near, like = (tokenizer.decode(store[row]) for row in rows)
        words = (
            f"the sample; the nearest training image by latents, at {found.distances[index]:.3f} "
            f"({known[rows[0]]}); the nearest by vector, of cosine {found.cosines[index]:.3f} ({known[rows[1]]})"
        )
        shown = [one.pixels for one in (images[index].media, near, like) if isinstance(one, Image)]
        figures.append(side_by_side(labels[index], words, *shown))
    blocks: list[Block] = [
        f"Samples beside the training images that are nearest to them, which are shown as decoded from the tokens of "
        f"{store.name}.",
        Figures("Samples, and the nearest training images", figures),
    ]
    write(path, "Nearest training images", {"": blocks})
