"""AToken as a model under test: images, videos and assets through a token file and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from atoken.errors import AtokenError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video
from atoken.io.contents import TILE
from atoken.io.token_file import TokenFile, Tokens
from atoken.loading import load
from atoken.media.views import Views
from atoken.modalities.voxels import unvoxelize
from atoken.patches import grid
from atoken.tokenizer import Tokenizer
from eval.assets import mask_of, rendered, voxel_tokens
from eval.contract import Item, Output
from eval.models.pixels import Stored, draw, how_drawn

MOST_TOKENS = 8_192  # of a batch; an item of more goes alone


class AToken:
    """A tokenizer that ``atoken.load`` finds, or one in hand. What is decoded was written to a token file and read.

    ``size`` is that file's bytes, with the pooled vector, as ``Tokens.save`` writes it; of an image without alpha. A
    video of more than one tile is encoded and decoded tile by tile, in constant memory.

    stored: how the file holds the latents of a continuous model; codes are exact. sample: draws the latents from the
    posterior with this seed instead of taking its mean; what is drawn depends on the seed and the item's key alone.
    pool: the vector of a video is that of all its tokens, or the mean of its frames' vectors (the paper's choice for
    retrieval). voxels: the vector of an asset is of at most so many, coarsened; None: of all. patches: what is compared
    of an asset are the patches of its voxels, without Gaussians and without a token file.
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
        pool: Literal["whole", "frames"] = "whole",
        voxels: int | None = None,
        patches: bool = False,
    ) -> None:
        self.tokenizer = model if isinstance(model, Tokenizer) else load(model, device=device, dtype=dtype)
        self.stored, self.sample, self.pool, self.voxels, self.patches = stored, sample, pool, voxels, patches
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
            "views": "patches of voxels" if patches else "those that were encoded",
            "voxels": "all" if voxels is None else f"at most {voxels}, coarsened",
        }

    def reconstruct(self, items: Sequence[Item]) -> list[Output]:
        """Through a token file and back; an asset is rendered on black from its views' cameras, with their mask.

        Raises: AtokenError (also for an asset without a Gaussian decoder), MediaError.
        """
        return [output for batch in _batches(items) for output in self._reconstructed(batch)]

    def _reconstructed(self, batch: Sequence[Item]) -> list[Output]:
        first = batch[0]
        if self.patches and isinstance(first.media, Views):
            return [self._patches(first, first.media)]
        with TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.atok" for number in range(len(batch))]
            for tokens, path in zip(self._tokens(batch), paths, strict=True):
                tokens.save(path, dtype=self.stored)
            if _is_long(first) and self.sample is None:
                return [self._streamed(first, paths[0])]
            read = [Tokens.load(path) for path in paths]
            media = self.tokenizer.decode_batch(read)
            sizes = [path.stat().st_size for path in paths]
        return [self._output(*four) for four in zip(batch, media, read, sizes, strict=True)]

    def _tokens(self, batch: Sequence[Item]) -> list[Tokens]:
        seen = [_without_alpha(item) for item in batch]
        if self.sample is not None:
            draws = [draw(self.sample, item.key, self.tokenizer.device) for item in batch]
            return [self.tokenizer.encode(media, generator=one) for media, one in zip(seen, draws, strict=True)]
        if isinstance(seen[0], Video) and _is_long(batch[0]):
            return [Tokens.join(self.tokenizer.encode_stream(seen[0]))]
        return self.tokenizer.encode_batch(seen)

    def _streamed(self, item: Item, path: Path) -> Output:
        assert isinstance(item.media, Video)
        with TokenFile(path) as file:
            frames = np.concatenate([piece.frames for piece in self.tokenizer.decode_stream(file.stream())])
            codes = _codes(file.read())
        return Output(item, item.media.frames, frames, size=path.stat().st_size, codes=codes)

    @torch.inference_mode()
    def _patches(self, item: Item, views: Views) -> Output:
        voxels = voxel_tokens(views, self.voxels)
        model = self.tokenizer.model
        decoded = model.decode(model.encode(voxels.to(self.tokenizer.device)).latents)
        return Output(item, unvoxelize(voxels), unvoxelize(decoded))

    def _output(self, item: Item, prediction: Image | Video | Gaussians, tokens: Tokens, size: int) -> Output:
        codes = _codes(tokens)
        if isinstance(item.media, Views):
            assert isinstance(prediction, Gaussians)
            return Output(item, item.media.rgb, rendered(prediction, item.media), mask_of(item.media), size, codes)
        if isinstance(item.media, Image):
            assert isinstance(prediction, Image)
            return Output(item, item.media.pixels[None], prediction.pixels[None], size=size, codes=codes)
        assert isinstance(prediction, Video)
        return Output(item, item.media.frames, prediction.frames, size=size, codes=codes)

    def embed(self, items: Sequence[Item]) -> list[Output]:
        """The vector of each item; of a video as ``pool`` says. Raises: AtokenError, MediaError."""
        return [output for batch in _batches(items) for output in self._embedded(batch)]

    @torch.inference_mode()
    def _embedded(self, batch: Sequence[Item]) -> list[Output]:
        first = batch[0].media
        if isinstance(first, Video) and self.pool == "frames":  # videos go alone
            vectors = [self.tokenizer.embed_frames(first)]
        elif isinstance(first, Video) and _is_long(batch[0]):
            vectors = [self.tokenizer.embed(list(self.tokenizer.encode_stream(first))[-1])]
        elif isinstance(first, Views) and self.voxels is not None:  # so do assets
            voxels = voxel_tokens(first, self.voxels).to(self.tokenizer.device)
            vectors = [*normalize(self.tokenizer.model.encode(voxels).pooled.float().cpu(), dim=-1)]
        else:
            encoded = self.tokenizer.encode_batch([_without_alpha(item) for item in batch])
            vectors = [self.tokenizer.embed(tokens) for tokens in encoded]
        return [Output(item, vector=vector.numpy()) for item, vector in zip(batch, vectors, strict=True)]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(T, D) float32 of length 1. Raises: AtokenError without a text side."""
        return self.tokenizer.embed_text(texts).numpy()


def _without_alpha(item: Item) -> Image | Video | Views:
    return Image(item.media.pixels) if isinstance(item.media, Image) else item.media


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
