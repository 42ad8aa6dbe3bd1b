"""AToken as a model: images, videos and assets through a token file and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch

from atoken.errors import AtokenError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video
from atoken.io.token_file import TokenFile
from atoken.io.tokens_record import TILE, Tokens
from atoken.media.views import Views
from atoken.modalities.pixels import grid
from atoken.tokenizer import Tokenizer, load
from eval.contract import Item, Sample
from eval.models.pixels import Stored, draw, how_drawn

MOST_TOKENS = 8_192  # of a batch; an item of more goes alone
Pool = Literal["whole", "frames"]


class AToken:
    """A tokenizer of ``atoken.load``, or one in hand. What is decoded was written to a token file and read again.

    ``size`` is that file's bytes, with the pooled vector, as ``Tokens.save`` writes it; of an image without alpha. A
    video of more than one tile is encoded and decoded tile by tile, in constant memory.

    stored: how the file holds the latents of a continuous model; codes are exact. sample: draws the latents from the
    posterior with this seed instead of taking its mean; what is drawn depends on the seed and the item's key alone.
    pool: the vector of a video is that of all its tokens, or the mean of its frames' (the paper's for retrieval).
    held_out: so many of the last views of an asset are not encoded, and only these are compared; 0: all are both.
    Raises: CheckpointError; AtokenError for ``sample`` with a discrete model.
    """

    def __init__(
        self,
        model: str | Path | Tokenizer = "nano",
        *,
        device: str = "auto",
        dtype: str = "auto",
        stored: Stored = "float32",
        sample: int | None = None,
        pool: Pool = "whole",
        held_out: int = 0,
    ) -> None:
        self.tokenizer = model if isinstance(model, Tokenizer) else load(model, device=device, dtype=dtype)
        self.stored, self.sample, self.pool, self.held_out = stored, sample, pool, held_out
        levels = self.tokenizer.model.config.fsq_levels
        if levels and sample is not None:
            raise AtokenError(f"{self.tokenizer.name} is discrete and has no posterior to draw from; leave sample out.")
        self.name = self.tokenizer.name + ("" if levels or stored == "float32" else f", {stored}")
        self.record = {
            "model": self.tokenizer.name,
            "fingerprint": self.tokenizer.fingerprint,
            "dtype": str(self.tokenizer.model.dtype).removeprefix("torch."),
            **how_drawn(sample),
            "tokens": f"codes of {len(levels)} levels a group" if levels else f"latents, stored as {stored}",
            "bytes": "whole token file, with the pooled vector",
            "pool": pool,
            "views": f"the last {held_out}, not encoded" if held_out else "those that were encoded",
        }

    def reconstruct(self, items: Sequence[Item]) -> list[Sample]:
        """Through a token file and back; an asset is drawn on black from its views' cameras, with their mask.

        Raises: AtokenError (also for an asset without a Gaussian decoder), MediaError.
        """
        return [sample for batch in _batches(items) for sample in self._reconstructed(batch)]

    def _reconstructed(self, batch: Sequence[Item]) -> list[Sample]:
        with TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.atok" for number in range(len(batch))]
            for tokens, path in zip(self._tokens(batch), paths, strict=True):
                tokens.save(path, dtype=self.stored)
            if _is_long(batch[0]) and self.sample is None:
                return [self._streamed(batch[0], paths[0])]
            read = [Tokens.load(path) for path in paths]
            media = self.tokenizer.decode_batch(read)
            sizes = [path.stat().st_size for path in paths]
        return [self._sample(*four) for four in zip(batch, media, read, sizes, strict=True)]

    def _tokens(self, batch: Sequence[Item]) -> list[Tokens]:
        seen = [self._seen(item) for item in batch]
        if self.sample is not None:
            return [
                self.tokenizer.encode(media, generator=draw(self.sample, item.key, self.tokenizer.device))
                for item, media in zip(batch, seen, strict=True)
            ]
        if isinstance(seen[0], Video) and _is_long(batch[0]):
            return [Tokens.join(self.tokenizer.encode_stream(seen[0]))]
        return self.tokenizer.encode_batch(seen)

    def _seen(self, item: Item) -> Image | Video | Views:
        """What is encoded of an item."""
        if isinstance(item.media, Views):
            return views_between(item.media, 0, len(item.media) - self.held_out, item.key)
        return Image(item.media.pixels) if isinstance(item.media, Image) else item.media

    def _streamed(self, item: Item, path: Path) -> Sample:
        assert isinstance(item.media, Video)
        with TokenFile(path) as file:
            frames = np.concatenate([piece.frames for piece in self.tokenizer.decode_stream(file.stream())])
            codes = _codes(file.read())
        return Sample(item, item.media.frames, frames, size=path.stat().st_size, codes=codes)

    def _sample(self, item: Item, prediction: Image | Video | Gaussians, tokens: Tokens, size: int) -> Sample:
        codes = _codes(tokens)
        if isinstance(item.media, Views):
            assert isinstance(prediction, Gaussians)
            first = len(item.media) - self.held_out if self.held_out else 0
            views = views_between(item.media, first, len(item.media), item.key)
            return Sample(item, views.rgb, drawn(prediction, views), mask_of(views), size, codes)
        if isinstance(item.media, Image):
            assert isinstance(prediction, Image)
            return Sample(item, item.media.pixels[None], prediction.pixels[None], size=size, codes=codes)
        assert isinstance(prediction, Video)
        return Sample(item, item.media.frames, prediction.frames, size=size, codes=codes)

    def embed(self, items: Sequence[Item]) -> list[Sample]:
        """The vector of each item; of a video as ``pool`` says. Raises: AtokenError, MediaError."""
        return [sample for batch in _batches(items) for sample in self._embedded(batch)]

    def _embedded(self, batch: Sequence[Item]) -> list[Sample]:
        first = batch[0].media
        if isinstance(first, Video) and self.pool == "frames":  # videos go alone
            vectors = [self.tokenizer.embed_frames(first)]
        elif isinstance(first, Video) and _is_long(batch[0]):
            vectors = [self.tokenizer.embed(list(self.tokenizer.encode_stream(first))[-1])]
        else:
            media = [self._seen(item) for item in batch]
            vectors = [self.tokenizer.embed(tokens) for tokens in self.tokenizer.encode_batch(media)]
        return [Sample(item, vector=vector.numpy()) for item, vector in zip(batch, vectors, strict=True)]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32 of length 1. Raises: AtokenError without a text side."""
        return self.tokenizer.embed_text(texts).numpy()


def _codes(tokens: Tokens) -> np.ndarray | None:
    return None if tokens.codes is None else tokens.codes.numpy()


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Images in batches of at most ``MOST_TOKENS``; videos and assets, whose sizes differ most, alone."""
    batch: list[Item] = []
    tokens = 0
    for item in items:
        count = int(np.prod(grid(1, *item.media.pixels.shape[:2]))) if isinstance(item.media, Image) else MOST_TOKENS
        if batch and tokens + count > MOST_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += count
    if batch:
        yield batch


def _is_long(item: Item) -> bool:
    return isinstance(item.media, Video) and len(item.media.frames) > TILE


# ------------------------------------------------------------------------------------------------------------- views


def views_between(views: Views, start: int, stop: int, key: str) -> Views:
    """Views ``start`` to ``stop`` of an asset. Raises: AtokenError where there are none."""
    if not 0 <= start < stop <= len(views):
        raise AtokenError(f"{key} has {len(views)} views, too few to hold some out; see it from more cameras.")
    part = slice(start, stop)
    return Views(views.rgb[part], views.depth[part], views.cameras[part], views.pixel_offset)


@torch.inference_mode()
def drawn(gaussians: Gaussians, views: Views) -> np.ndarray:
    """(V, H, W, 3) uint8: Gaussians on black, from the cameras and at the size of ``views``."""
    pixels = np.empty_like(views.rgb)
    for view in range(len(views)):  # one at a time: memory
        rgb = gaussians.render(views.cameras[view : view + 1], views.rgb.shape[1:3])[0]
        pixels[view] = rgb.mul(255).round_().clamp_(0, 255).to(torch.uint8).cpu().numpy()
    return pixels


def mask_of(views: Views) -> np.ndarray:
    """(V, H, W) bool: pixels of ``rgb`` that show a surface, by the depth nearest to their centre."""
    height, width = views.rgb.shape[1:3]
    rows, columns = (
        np.clip(np.ceil((np.arange(side) + 0.5) / side * there - views.pixel_offset - 0.5), 0, there - 1).astype(int)
        for side, there in zip((height, width), views.depth.shape[1:], strict=True)
    )
    return views.mask[:, rows[:, None], columns]
