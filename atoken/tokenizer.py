"""Files and arrays in, files and arrays out: the tokenizer that a user holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from atoken import checkpoint
from atoken.errors import AtokenError, CheckpointError, MediaError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video, VideoReader, from_pil, load_media
from atoken.io.contents import TILE
from atoken.io.token_checks import check_follows, check_model
from atoken.io.token_file import Tokens
from atoken.layers import PoolState
from atoken.media.clock import exact_fps
from atoken.media.scaling import smaller
from atoken.media.source import Source
from atoken.media.video import joined_alpha
from atoken.media.views import Views
from atoken.mesh import Mesh
from atoken.modalities import MODALITIES, Modality
from atoken.model import ATokenModel, Encoded
from atoken.patches import PATCH, Size
from atoken.presets import BUNDLED, PRESETS, folder_of
from atoken.text import TextTokenizer
from atoken.tokens import SparseTokens

# A path, bytes, a binary file, a PIL image, a uint8 array ([T,] H, W, 3 or 4), Image, Video, Mesh, or Views.
Media = Any


def load(
    source: str | Path = "nano",
    *,
    device: str = "auto",
    dtype: str = "auto",
    config: str | Path | None = None,
    gaussians: str | Path | None = None,
    gaussian_config: str | Path | None = None,
) -> Tokenizer:
    """Load a tokenizer: a bundled name, a folder, a published weight file, or a hub id.

    device: "auto" takes CUDA where there is one, else the CPU. dtype: "auto" is bf16 on CUDA and fp32 elsewhere; or
    "float32", "bfloat16". config: of a published ``.pt``/``.safetensors`` file, its YAML; where left out, the file of
    the same name with ``.yaml``. gaussians, gaussian_config: the same two of the published Gaussian decoder, for 3D.
    Raises: CheckpointError.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    path = folder_of(source)
    texts = None
    if path.is_file():
        model = checkpoint.load_official(path, config, gaussians, gaussian_config)
    elif path.is_dir() or (str(source).count("/") == 1 and not path.is_absolute()):
        folder = path if path.is_dir() else str(source)
        model = checkpoint.load_folder(folder, dtype=torch.float32)
        texts = TextTokenizer.load(folder, model.text_length) if model.text_length else None
    else:
        raise CheckpointError(_unknown(str(source)))
    try:
        return Tokenizer(model.to(device, _dtype(device, dtype)), path.stem if path.is_file() else path.name, texts)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"This machine has no device {device!r}; pass device='cpu'.") from error


def _unknown(source: str) -> str:
    bundled = ", ".join(sorted(folder.name for folder in BUNDLED.glob("*/")))
    if source in PRESETS:
        return f"{source} is a size without bundled weights; pass the path of a weight file. Bundled: {bundled}."
    return f"There is no model {source!r}: pass a bundled name ({bundled}), a folder, a weight file, or a hub id."


def _dtype(device: str, dtype: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    if dtype not in known:
        raise CheckpointError(f"dtype must be auto, float32 or bfloat16, got {dtype!r}.")
    return known[dtype]


class Tokenizer:
    """A model and its name. Results are the same alone and in a batch, and the same twice.

    texts: the text tokenizer of a model with a text side. Raises: CheckpointError for a model whose tiles do not divide
    those of a token file.
    """

    def __init__(self, model: ATokenModel, name: str, texts: TextTokenizer | None = None) -> None:
        if TILE % model.config.tile_frames:
            raise CheckpointError(
                f"Tiles of {model.config.tile_frames} frames do not divide the {TILE} of a token file."
            )
        self.model = model.eval()
        self.name = name
        self.texts = texts

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

    @torch.inference_mode()
    def encode_batch(
        self,
        batch: Sequence[Media],
        *,
        generator: torch.Generator | None = None,
        coarsen: bool = False,
        max_side: int | None = None,
    ) -> list[Tokens]:
        """Turn images, videos and assets of any sizes into tokens in one pass; the same numbers as one by one."""
        if not batch:
            return []
        samples = [_sample(smaller(as_media(one), max_side), coarsen=coarsen) for one in batch]
        names = [Path(one).name if isinstance(one, str | Path) else "" for one in batch]
        encoded = self.model.encode(SparseTokens.pack([sample for sample, _ in samples]).to(self.device))
        described = [fields | {"name": name} for (_, fields), name in zip(samples, names, strict=True)]
        return self._tokens(encoded, described, generator=generator)

    def _tokens(
        self,
        encoded: Encoded,
        described: Sequence[dict[str, Any]],
        *,
        generator: torch.Generator | None = None,
        first_frame: int = 0,
    ) -> list[Tokens]:
        """Tokens of each sample, on the CPU, with the fields that say what it is."""
        if generator is not None and encoded.codes is not None:
            raise AtokenError("A discrete model has no posterior to draw from; leave the generator out.")
        latents = encoded.latents.feats if generator is None else encoded.posterior.sample(generator)
        lengths = encoded.latents.lengths
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

    @torch.inference_mode()
    def decode_batch(self, batch: Sequence[Tokens]) -> list[Image | Video | Gaussians]:
        """Decode many at once; the same results as one by one."""
        if not batch:
            return []
        for tokens in batch:
            self._check(tokens)
        packed = SparseTokens.pack([tokens.packed for tokens in batch]).to(self.device)
        patches = self.model.decode(packed).unpack()
        return [self._unpatchified(tokens, part) for tokens, part in zip(batch, patches, strict=True)]

    def _unpatchified(self, tokens: Tokens, patches: SparseTokens) -> Any:
        return MODALITIES[tokens.modality].unpatchify(self.model, tokens, patches)

    def _check(self, tokens: Tokens) -> None:
        check_model(tokens, self.fingerprint, self.name)
        if refusal := MODALITIES[tokens.modality].refusal(self.model, tokens):
            raise AtokenError(f"Model {self.name} cannot decode {tokens.name or tokens.modality}: {refusal}")

    def encode_stream(
        self,
        frames: Source | Video | VideoReader | Iterable[np.ndarray],
        *,
        fps: Fraction | float | None = None,
        max_side: int | None = None,
    ) -> Iterator[Tokens]:
        """Encode a video of any length tile by tile, in constant memory; ``Tokens.join`` of the pieces is the whole.

        frames: a video, an open ``VideoReader``, a path, bytes, a binary file, or frames (H, W, 3) uint8 one by one,
        or (H, W, 4) with alpha, with ``fps``. max_side: as in ``encode``. Yields a piece for each 16 frames; only the
        last carries the pooled vector. Raises: MediaError.
        """
        if isinstance(frames, str | Path | bytes) or hasattr(frames, "read"):
            with VideoReader(cast(Source, frames)) as reader:
                yield from self.encode_stream(reader, fps=fps, max_side=max_side)
            return
        name = frames.path.name if isinstance(frames, VideoReader) and frames.path else ""
        state, first = None, 0
        for tile, following in pairwise(chain(_tiles(frames, fps), [None])):
            assert tile is not None
            tokens, state = self._encode_tile(smaller(tile, max_side), state, first, name)
            yield replace(tokens, pooled=None) if following else tokens
            first += len(tile.frames)
        if state is None:
            raise MediaError("The video has no frames; there is nothing to encode.")

    @torch.inference_mode()
    def _encode_tile(self, tile: Video, state: PoolState | None, first: int, name: str) -> tuple[Tokens, PoolState]:
        patches, fields = _sample(tile)
        encoded = self.model.encode(patches.to(self.device), pool_state=state)
        return self._tokens(encoded, [fields | {"name": name}], first_frame=first)[0], encoded.pool_state

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

    def embed(self, media: Media | Tokens) -> Tensor:
        """(D,) fp32 unit vector of an image, a video, an asset, or tokens (whose stored vector is used, no pixel read).

        Raises: as ``encode``; AtokenError for a piece of a video.
        """
        pooled = (media if isinstance(media, Tokens) else self.encode(media)).pooled
        if pooled is None:
            raise AtokenError("These tokens are a piece of a video without its pooled vector; pass the whole video.")
        return normalize(pooled, dim=-1)

    def embed_frames(self, frames: Video | VideoReader, *, max_side: int | None = None) -> Tensor:
        """(D,) fp32 unit vector of a video: the mean of its frames' vectors, each frame seen as an image.

        An alternative to ``embed`` of the whole video, which the paper uses for retrieval. Constant memory. max_side:
        as in ``encode``. Raises: MediaError (no frames).
        """
        total, count = torch.zeros(self.model.config.encoder_width), 0
        for tile in _tiles(frames, None):
            images = [Image(frame) for frame in tile.frames]
            vectors = [self.embed(tokens) for tokens in self.encode_batch(images, max_side=max_side)]
            total, count = total + torch.stack(vectors).sum(0), count + len(vectors)
        if not count:
            raise MediaError("The video has no frames; there is nothing to embed.")
        return normalize(total, dim=-1)

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(T, D) fp32 unit vectors of texts, in the space of ``embed``. Raises: AtokenError without a text side."""
        if self.texts is None:
            raise AtokenError(
                f"Model {self.name} has no text side; add one with --text of atoken convert, or take another model."
            )
        return normalize(self.model.encode_text(self.texts(texts).to(self.device)), dim=-1).cpu()

    def logits(self, media_VD: Tensor, texts_BD: Tensor) -> Tensor:
        """(V, B): similarities of unit vectors of media and of texts, with the model's scale and bias as in SigLIP2.

        The sigmoid of one is the probability that the two belong together.
        """
        scale, bias = self.model.logit_scale.float().exp().cpu(), self.model.logit_bias.float().cpu()
        return (media_VD @ texts_BD.T * scale + bias).detach()


def as_media(media: Media) -> Image | Video | Mesh | Views:
    """Whatever ``encode`` takes, as one of four types. Raises: MediaError."""
    if _modality_of(media):
        return media
    if isinstance(media, str | Path | bytes) or hasattr(media, "read"):
        return load_media(media)
    if isinstance(media, np.ndarray):
        return _from_array(media)
    if hasattr(media, "getbands"):  # a PIL image, without importing Pillow for those who have none in hand
        return from_pil(media)
    raise MediaError(
        f"Cannot encode a {type(media).__name__}; pass a path, bytes, a PIL image, or a uint8 array (H, W, 3)."
    )


def _modality_of(media: Media) -> Modality | None:
    return next((modality for modality in MODALITIES.values() if isinstance(media, modality.types)), None)


def _sample(media: Image | Video | Mesh | Views, *, coarsen: bool = False) -> tuple[SparseTokens, dict[str, Any]]:
    """One sample of patches on the CPU, and the fields of ``Tokens`` that say what it is of."""
    modality = _modality_of(media)
    assert modality is not None  # as_media gives no other types
    patches, described = modality.patchify(media, coarsen)
    return patches, {"modality": modality.name, **described}


def _from_array(array: np.ndarray) -> Image | Video:
    if array.ndim == 4:
        return _video(array)
    if array.ndim == 3 and array.shape[-1] == 4:
        return Image(array[..., :3], np.ascontiguousarray(array[..., 3]))
    return Image(array)


def _tiles(frames: Video | VideoReader | Iterable[np.ndarray], fps: Fraction | float | None) -> Iterator[Video]:
    """Videos of at most one tile, in order, from any source of frames."""
    if isinstance(frames, Video):
        for first in range(0, len(frames.frames), TILE):
            stamps = None if frames.timestamps is None else frames.timestamps[first : first + TILE]
            alpha = None if frames.alpha is None else frames.alpha[first : first + TILE]
            yield Video(frames.frames[first : first + TILE], frames.fps, stamps, alpha)
        return
    if isinstance(frames, VideoReader):
        rate = frames.info.fps if fps is None else exact_fps(fps)
        start = None
        while tile := list(islice(frames, TILE)):
            times = np.array([frame.seconds for frame in tile])
            start = times[0] if start is None else start
            shape = (1, frames.info.height, frames.info.width)
            alpha = joined_alpha([frame.alpha for frame in tile], [shape] * len(tile))
            yield Video(np.stack([frame.pixels for frame in tile]), rate, times - start, alpha)
        return
    plain = iter(frames)
    while pixels := list(islice(plain, TILE)):
        yield _video(np.stack(pixels), exact_fps(24 if fps is None else fps))


def _video(array: np.ndarray, fps: Fraction = Fraction(24)) -> Video:
    """A video of frames (T, H, W, 3), or 4 with alpha."""
    alpha = np.ascontiguousarray(array[..., 3]) if array.shape[-1] == 4 else None
    return Video(array[..., :3] if array.shape[-1] == 4 else array, fps, alpha=alpha)
