"""Media to tokens and back: files, arrays and tensors, whole, in batches, and videos tile by tile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoken import checkpoint
from atoken.bottleneck import Posterior
from atoken.errors import AtokenError, CheckpointError, MediaError
from atoken.gaussians import Gaussians
from atoken.io import Image, Mesh, Video, Views
from atoken.io.contents import TILE
from atoken.io.inputs import Frames, Media, as_media, file_name, modality_of, tiles
from atoken.io.token_checks import check_follows, check_model
from atoken.io.token_file import Tokens
from atoken.layers import PoolState
from atoken.media.scaling import smaller
from atoken.media.source import error_prefix
from atoken.modalities import MODALITIES
from atoken.model import ATokenModel, Encoded
from atoken.patches import PATCH, Size
from atoken.tokens import SparseTokens


class Coder:
    """A model and its name. Results are the same alone and in a batch, and the same twice.

    Raises: CheckpointError for a model whose tiles do not divide those of a token file.
    """

    def __init__(self, model: ATokenModel, name: str) -> None:
        if TILE % model.config.tile_frames:
            raise CheckpointError(
                f"Tiles of {model.config.tile_frames} frames do not divide the {TILE} of a token file."
            )
        self.model = model.eval()
        self.name = name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of configuration and weights, which token files state."""
        return checkpoint.fingerprint(self.model)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    def encode(
        self,
        media: Media,
        *,
        generator: torch.Generator | None = None,
        coarsen: bool = False,
        max_side: int | None = None,
    ) -> Tokens:
        """Turn one image, video or 3D asset into tokens.

        generator: draws the latents from the posterior instead of taking its mean (continuous models). coarsen: pack
        an asset of too many voxels at a lower resolution, with an AtokenWarning, instead of refusing it. max_side:
        scale a larger image or video down to this many pixels; it then comes back at that size.
        Raises: MediaError, one sentence, for what cannot be read or is too large.
        """
        return self.encode_batch([media], generator=generator, coarsen=coarsen, max_side=max_side)[0]

    def encode_batch(
        self,
        batch: Sequence[Media],
        *,
        generator: torch.Generator | None = None,
        coarsen: bool = False,
        max_side: int | None = None,
    ) -> list[Tokens]:
        """Turn images, videos and assets of any sizes into tokens in one pass; the same numbers as one by one."""
        if not isinstance(batch, list | tuple):
            raise AtokenError(f"encode_batch takes a list, got a {type(batch).__name__}; one input goes into encode.")
        if not batch:
            return []
        _check_generator(generator)
        samples = []
        for index, one in enumerate(batch):
            with error_prefix(str(one) if isinstance(one, str | Path) else f"Input {index}" if len(batch) > 1 else ""):
                samples.append(_sample(smaller(as_media(one), max_side), coarsen=coarsen))
        with torch.inference_mode():
            encoded = self.model.encode(self._packed([sample for sample, _ in samples]))
        described = [fields | {"name": file_name(one)} for (_, fields), one in zip(samples, batch, strict=True)]
        return self._tokens(encoded, described, generator=generator)

    def encode_draws(
        self, batch: Sequence[Media], names: Sequence[str], draws: Sequence[Sequence[torch.Generator]] = ()
    ) -> list[tuple[Tokens, ...]]:
        """As ``encode_batch``, of media with names: the tokens of each, or in one pass draws from its posterior.

        draws: a row for each draw, with a generator for each of the media, so that each has noise of its own.
        """
        samples = [_sample(as_media(one)) for one in batch]
        with torch.inference_mode():
            encoded = self.model.encode(self._packed([sample for sample, _ in samples]))
        described = [fields | {"name": name} for (_, fields), name in zip(samples, names, strict=True)]
        rows = [self._tokens(encoded, described, generator=generators) for generators in draws]
        rows = rows or [self._tokens(encoded, described)]
        return list(zip(*rows, strict=True))

    def _packed(self, samples: Sequence[SparseTokens]) -> SparseTokens:
        """Samples as one batch on the device, whose patches all have as many values as those of a video.

        The model would take the patches of one frame as they are, but its product over fewer values rounds differently.
        """
        lengths = tuple(length for sample in samples for length in sample.lengths)
        shape = sum(lengths), self.model.config.patch_values
        if self.device.type == "cpu":
            feats = torch.from_numpy(np.zeros(shape, np.float32))  # takes no memory before it is written or read
        else:
            feats = torch.zeros(shape, device=self.device)
        for part, sample in zip(feats.split(lengths), samples, strict=True):
            part[:, : sample.feats.shape[1]] = sample.feats
        return SparseTokens(feats, torch.cat([sample.coords for sample in samples]).to(self.device), lengths)

    def _tokens(
        self,
        encoded: Encoded,
        described: Sequence[dict[str, Any]],
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        first_frame: int = 0,
    ) -> list[Tokens]:
        """Tokens of each sample, with the fields that say what it is; copies on the CPU, which one can train on.

        generator: of the whole batch, or one for each sample.
        """
        if generator is not None and encoded.codes is not None:
            raise AtokenError("A discrete model has no posterior to draw from; leave the generator out.")
        posterior, lengths = encoded.posterior, encoded.latents.lengths
        latents = encoded.latents.feats
        if isinstance(generator, torch.Generator):
            latents = posterior.sample(generator)
        elif generator is not None:
            each = zip(posterior.mean.split(lengths), posterior.logvar.split(lengths), generator, strict=True)
            latents = torch.cat([Posterior(mean, logvar).sample(own) for mean, logvar, own in each])
        parts = zip(
            described,
            latents.float().cpu().split(lengths),
            [None] * len(lengths) if encoded.codes is None else encoded.codes.cpu().split(lengths),
            encoded.latents.coords.int().cpu().split(lengths),
            encoded.pooled.float().cpu(),
            strict=True,
        )
        first_step = torch.tensor([first_frame // PATCH[0], 0, 0, 0], dtype=torch.int32)
        return [
            Tokens(
                **fields,
                latents=latents.clone(),
                codes=None if codes is None else codes.clone(),
                coords=coords + first_step,
                pooled=pooled.clone(),
                model=self.name,
                fingerprint=self.fingerprint,
                levels=self.model.config.fsq_levels,
                first_frame=first_frame,
            )
            for fields, latents, codes, coords, pooled in parts
        ]

    def decode(self, tokens: Tokens) -> Image | Video | Gaussians:
        """Turn tokens back into an image or video of the original size and rate, or an asset into Gaussians.

        Raises: TokenFileError for tokens of another model; AtokenError if the model cannot decode the modality.
        """
        return self.decode_batch([tokens])[0]

    def decode_batch(self, batch: Sequence[Tokens]) -> list[Image | Video | Gaussians]:
        """Decode many at once; the same results as one by one."""
        if not isinstance(batch, list | tuple):
            raise AtokenError(f"decode_batch takes a list, got a {type(batch).__name__}; one item goes into decode.")
        if not batch:
            return []
        for tokens in batch:
            self._check(tokens)
        packed = SparseTokens.pack([tokens.packed for tokens in batch]).to(self.device)
        with torch.inference_mode():
            patches = self.model.decode(packed)
        return [self._unpatchified(tokens, part) for tokens, part in zip(batch, patches.unpack(), strict=True)]

    def _unpatchified(self, tokens: Tokens, patches: SparseTokens) -> Any:
        return MODALITIES[tokens.modality].unpatchify(self.model, tokens, patches)

    def _check(self, tokens: Tokens) -> None:
        if not isinstance(tokens, Tokens):
            raise AtokenError(
                f"Tokens are needed, got a {type(tokens).__name__}; read a file with atoken.Tokens.load, and decode "
                "tensors with decode_latents."
            )
        check_model(tokens, self.fingerprint, self.name)
        if refusal := MODALITIES[tokens.modality].refusal(self.model, tokens):
            raise AtokenError(f"Model {self.name} cannot decode {tokens.name or tokens.modality}: {refusal}")

    def encode_stream(
        self, frames: Frames, *, fps: Fraction | float | None = None, max_side: int | None = None
    ) -> Iterator[Tokens]:
        """Encode a video of any length tile by tile, in constant memory; ``Tokens.join`` of the pieces is the whole.

        frames: a video, an open ``VideoReader``, a path, bytes, a binary file, or frames (H, W, 3) uint8 one by one,
        or (H, W, 4) with alpha, with ``fps``. max_side: as in ``encode``. Yields a piece for each 16 frames; only the
        last carries the pooled vector. Raises: MediaError.
        """
        return self.encode_tiles((smaller(tile, max_side) for tile in tiles(frames, fps)), name=file_name(frames))

    def encode_tiles(
        self, tiles: Iterable[Video], *, name: str = "", generator: torch.Generator | None = None
    ) -> Iterator[Tokens]:
        """As ``encode_stream``, of a video that comes as tiles of 16 frames, the last of fewer."""
        state, first = None, 0
        for tile, following in pairwise(chain(tiles, [None])):
            assert tile is not None
            tokens, state = self._encode_tile(tile, state, first, name, generator)
            yield replace(tokens, pooled=None) if following else tokens
            first += len(tile.frames)
        if state is None:
            raise MediaError("The video has no frames; there is nothing to encode.")

    def _encode_tile(
        self, tile: Video, state: PoolState | None, first: int, name: str, generator: torch.Generator | None
    ) -> tuple[Tokens, PoolState]:
        patches, fields = _sample(tile)
        with torch.inference_mode():
            encoded = self.model.encode(self._packed([patches]), pool_state=state)
        described = [fields | {"name": name}]
        return self._tokens(encoded, described, generator=generator, first_frame=first)[0], encoded.pool_state

    def decode_stream(self, pieces: Iterable[Tokens]) -> Iterator[Video]:
        """Decode the pieces of one video, in order, in constant memory; the frames joined are the whole video's.

        Yields one video for each piece. Raises: TokenFileError for tokens of another model, or out of order.
        """
        cache, before = self.model.tile_cache(), None
        for piece in pieces:
            if before is None:
                self._check(piece)
            else:
                check_follows(before, piece)
            with torch.inference_mode():
                patches = self.model.decode(piece.packed.to(self.device), cache=cache)
            yield self._unpatchified(piece, patches)
            before = piece

    def encode_pixels(self, x: Tensor | Sequence[Tensor]) -> Encoded:
        """Encode tensors: ``ATokenModel.encode_pixels``, for people who hold pixels, differentiable."""
        return self.model.encode_pixels(x)

    def decode_latents(
        self, latents: SparseTokens | Tensor | Sequence[Tensor], *, sizes: Size | Sequence[Size] | None = None
    ) -> Tensor | list[Tensor]:
        """Decode latents to tensors: ``ATokenModel.decode_latents``, differentiable."""
        return self.model.decode_latents(latents, sizes=sizes)


def _sample(media: Image | Video | Mesh | Views, *, coarsen: bool = False) -> tuple[SparseTokens, dict[str, Any]]:
    """One sample of patches on the CPU, and the fields of ``Tokens`` that say what it is of."""
    modality = modality_of(media)
    assert modality is not None  # as_media gives no other types
    patches, described = modality.patchify(media, coarsen)
    return patches, {"modality": modality.name, **described}


def _check_generator(generator: object) -> None:
    if not isinstance(generator, torch.Generator | None):
        raise AtokenError(f"generator must be torch.Generator().manual_seed(0) or None, got {generator!r}.")
