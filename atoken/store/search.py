"""What of a store is nearest to a text, an image, a video or an asset, and a page of it, decoded from tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoken.cameras import Cameras
from atoken.errors import StoreError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video
from atoken.io.contents import TILE
from atoken.io.token_file import Tokens
from atoken.media.scaling import smaller
from atoken.modalities import MODALITIES
from atoken.patches import PATCH
from atoken.report import page
from atoken.store import vectors
from atoken.store.reader import TokenStore
from atoken.store.vectors import MANY, Vectors
from atoken.tokenizer import Tokenizer

SIDE = 256  # pixels of a thumbnail, at most
MOST_TOKENS = 16_384  # that are decoded at once


@dataclass(frozen=True)
class Hit:
    """A row of a store that was found. probability: that it and the text belong together; None for other queries."""

    row: int
    key: str
    cosine: float
    probability: float | None
    modality: str
    label: str | None
    captions: tuple[str, ...]


def opened(store: TokenStore) -> Vectors:
    """The index of a store, or, of one with few items that has none, its vectors.

    Raises: StoreError (an index that is missing, damaged, or of other contents), MissingExtraError.
    """
    if found := vectors.load(Path(store.name)):
        return found
    rows = rows_of(store)
    if len(rows) >= MANY:
        raise StoreError(f"{store.name} holds {len(rows):,} items and has no index yet; run atoken index {store.name}.")
    return Vectors(store.vectors(rows).numpy(), rows)


def rows_of(store: TokenStore) -> np.ndarray:
    """A row for each key, without its flips and further draws."""
    return store.where(flipped=False, draw=0).rows


def texts_of(store: TokenStore, count: int) -> list[str]:
    """Different captions of a store, or labels where it has none, at most ``count``, from all over it."""
    some = store[np.linspace(0, len(store) - 1, min(len(store), 20 * count)).astype(int)]
    captions = some.column("captions").combine_chunks().flatten()
    texts = (captions if len(captions) else some.column("label").drop_null()).unique()
    return texts.take(np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)).to_pylist()


def found(
    store: TokenStore, index: Vectors, query_D: Tensor, top: int, tokenizer: Tokenizer | None = None, **equal: Any
) -> list[Hit]:
    """The ``top`` items nearest to a unit vector, nearest first; flips and draws of an item are not shown beside it.

    tokenizer: of a text, for probabilities. equal: values of columns, such as modality and label, as ``where`` takes
    them; items with them are compared one by one. Raises: StoreError.
    """
    among = store.where(**equal).rows if equal else None
    rows, cosines = index.nearest(query_D.numpy(), top, among, "items" if tokenizer is None else "texts")
    chances: list[float | None] = [None] * len(rows)
    if tokenizer is not None:
        chances = tokenizer.logits(torch.from_numpy(cosines)[:, None], torch.ones(1, 1))[:, 0].sigmoid().tolist()
    columns = [store.column(name).take(rows).to_pylist() for name in ("key", "modality", "label", "captions")]
    return [
        Hit(int(row), key, float(cosine), chance, modality, label, tuple(captions))
        for row, cosine, chance, key, modality, label, captions in zip(rows, cosines, chances, *columns, strict=True)
    ]


def write_page(
    target: Path, title: str, words: str, hits: Sequence[Hit], store: TokenStore, tokenizer: Tokenizer
) -> None:
    """Write an HTML page of what was found, decoded from its tokens.

    What the model cannot decode, such as an asset without a Gaussian decoder, is counted. Raises: ReportError, and what
    reading a store raises.
    """
    items = [(hit, store[hit.row]) for hit in hits]
    shown = [(hit, tokens) for hit, tokens in items if not MODALITIES[hit.modality].refusal(tokenizer.model, tokens)]
    images = thumbnails(tokenizer, [tokens for _, tokens in shown])
    figures = [page.Figure(hit.key, data, _words(hit)) for (hit, _), data in zip(shown, images, strict=True)]
    if len(shown) < len(items):
        words += f"; {len(items) - len(shown)} others that {tokenizer.name} cannot decode are not shown"
    page.write(target, title, {"": [words, *page.fitting((("", figure) for figure in figures), page.IMAGES)]})


def _words(hit: Hit) -> str:
    chance = "" if hit.probability is None else f"{hit.probability:.1%}"
    parts = f"cosine {hit.cosine:.4f}", chance, hit.modality, hit.label, *hit.captions[:1]
    return ", ".join(filter(None, parts))


def thumbnails(tokenizer: Tokenizer, items: Sequence[Tokens], side: int = SIDE) -> list[bytes]:
    """PNG images of at most ``side`` pixels a side: an image, the middle of the first 16 frames of a video, or a view.

    All are decoded at once, or as many at a time as have ``MOST_TOKENS`` tokens.
    """
    batches: list[list[Tokens]] = [[]]
    for tokens in map(_first_tile, items):
        if batches[-1] and sum(len(one.latents) for one in [*batches[-1], tokens]) > MOST_TOKENS:
            batches.append([])
        batches[-1].append(tokens)
    return [_png(media, side) for batch in batches for media in tokenizer.decode_batch(batch)]


def _first_tile(tokens: Tokens) -> Tokens:
    if tokens.frames <= TILE:
        return tokens
    count = int((tokens.coords[:, 0] < TILE // PATCH[0]).sum())  # they are ordered by time
    return replace(
        tokens, latents=tokens.latents[:count], coords=tokens.coords[:count], frames=TILE, pooled=None,
        codes=None if tokens.codes is None else tokens.codes[:count],
        timestamps=None if tokens.timestamps is None else tokens.timestamps[:TILE],
        alpha=None if tokens.alpha is None else tokens.alpha[:TILE],
    )  # fmt: skip


def _png(media: Image | Video | Gaussians, side: int) -> bytes:
    if isinstance(media, Video):
        middle = len(media.frames) // 2
        media = Image(media.frames[middle], None if media.alpha is None else media.alpha[middle])
    elif isinstance(media, Gaussians):
        media = media.image_grid(Cameras.turntable(1), side)
    file = BytesIO()
    smaller(media, side).save(file, format="png")
    return file.getvalue()
