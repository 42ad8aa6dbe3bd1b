"""The tokenizer's network: packed patches to latents and back (paper sections 3.1, 3.2, 3.4).

Nothing here knows whether a token came from an image, a video or a 3D asset. Shape letters: ``atoken/tokens.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from atoken.bottleneck import FSQ, Posterior
from atoken.errors import TensorError
from atoken.gaussian_decoder import GaussianDecoder
from atoken.image_processor import ATokenImageProcessor
from atoken.layers import (
    Linear,
    PoolingHead,
    PoolState,
    Positions,
    TileCache,
)
from atoken.patches import Size, from_grid, pack_pixels, sizes_of, unpack_pixels
from atoken.summary import Summary
from atoken.tokens import SparseTokens
from atoken.transformer import EncoderModel, Stack, ToPatch, scatter


class ATokenConfig(PreTrainedConfig):
    """Sizes and switches of an ``ATokenModel``; the defaults are the released continuous model (48 channels).

    Sizes that do not fit together raise ValueError with both numbers.
    """

    model_type = "atoken"

    patch_size: tuple[int, int, int] = (4, 16, 16)  # frames, rows, columns
    channels: int = 3
    encoder_width: int = 1152
    encoder_layers: int = 27
    encoder_heads: int = 16
    encoder_mlp: int = 4304
    decoder_width: int = 1152
    decoder_layers: int = 27
    decoder_heads: int = 16
    decoder_mlp: int = 4304
    latent_channels: int = 48
    fsq_levels: tuple[int, ...] | None = None  # of one group of channels; None is the continuous model
    position_grid: int = 16  # side of the learned position table
    rope: bool = True
    rope_base: float = 10_000.0
    tile_frames: int = 16  # new frames in a tile
    cache_frames: int = 0  # frames of the previous tile that the decoder attends to
    gaussian_decoder: dict[str, int] | None = None  # sizes of a GaussianDecoder; None: the model has none
    text: dict[str, Any] | None = None  # fields of a transformers Siglip2TextConfig; None: no text side
    logit_scale_init: float = 4.8438  # logarithm of the scale of image-text similarities, as in SigLIP2
    logit_bias_init: float = -15.5625
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        frames, rows, columns = self.patch_size  # JSON gives lists
        self.patch_size = frames, rows, columns
        self.fsq_levels = None if self.fsq_levels is None else tuple(self.fsq_levels)
        self._check()
        super().__post_init__(**kwargs)

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: 4 * 16 * 16 * 3 = 3072, in the order frame, row, column, channel."""
        frames, rows, columns = self.patch_size
        return frames * rows * columns * self.channels

    @property
    def frame_values(self) -> int:
        """Numbers in one frame of a patch, which is also the patch of a voxel: 16 * 16 * 3 = 768."""
        return self.patch_values // self.patch_size[0]

    @property
    def rotary_base(self) -> float | None:
        """Base of the rotary embedding; None if it is switched off."""
        return self.rope_base if self.rope else None

    def steps(self, frames: int) -> int:
        """The number of time steps of ``frames``. Raises ValueError if they do not divide."""
        if frames % self.patch_size[0]:
            raise ValueError(f"{frames} frames are not a whole number of time steps of {self.patch_size[0]} frames.")
        return frames // self.patch_size[0]

    def _check(self) -> None:
        for side in ("encoder", "decoder"):
            width, heads = getattr(self, f"{side}_width"), getattr(self, f"{side}_heads")
            if width % heads or width // heads % 8:
                raise ValueError(
                    f"{side}_width {width} must be a multiple of 8 x {side}_heads {heads} (four rotary axes)."
                )
        if self.fsq_levels and self.latent_channels % len(self.fsq_levels):
            raise ValueError(
                f"latent_channels {self.latent_channels} must be a multiple of the {len(self.fsq_levels)} FSQ levels."
            )
        self.steps(self.tile_frames), self.steps(self.cache_frames)
        sizes = self.gaussian_decoder
        if sizes is not None and not _are_gaussian_sizes(sizes):
            raise ValueError(
                "gaussian_decoder must have width (a multiple of heads), layers, heads, mlp and, optionally, an odd "
                f"neighborhood, got {sizes}."
            )


def _are_gaussian_sizes(sizes: dict[str, int]) -> bool:
    complete = sizes.keys() - {"neighborhood"} == {"width", "layers", "heads", "mlp"} and min(sizes.values()) > 0
    return complete and sizes["width"] % sizes["heads"] == 0 and sizes.get("neighborhood", 1) % 2 == 1


@dataclass(frozen=True, repr=False)
class Encoded(Summary):
    """The result of ``ATokenModel.encode``."""

    latents: SparseTokens  # (N, C) fp32: posterior mean, or the quantised values of a discrete model
    posterior: Posterior  # mean and logvar (N, C) fp32
    codes: Tensor | None  # (N, G) int64; None without a quantiser
    features: SparseTokens  # (N, D) before the bottleneck: what a language model or a probe reads
    pooled: Tensor  # (B, D) fp32, not normalised; zeros for an empty sample
    pool_state: PoolState  # of ``pooled``; pass it to the next call to pool over further tiles


class ATokenModel(EncoderModel):
    """Encoder, bottleneck, pooling head and decoder over packed tokens.

    ``gaussian_decoder`` turns the decoded patches of voxels into Gaussians (``atoken/gaussian_decoder.py``), and
    ``text_tower`` texts into vectors (transformers' ``Siglip2TextModel``); each is None in a model without it.
    """

    config_class = ATokenConfig
    base_model_prefix = "atoken"

    def __init__(self, config: ATokenConfig) -> None:
        super().__init__(config)
        self.encoder = Stack(config, "encoder", config.patch_values)
        self.pool = PoolingHead(config.encoder_width, config.encoder_heads, config.encoder_mlp)
        self.to_latent = Linear(config.encoder_width, 2 * config.latent_channels, bias=False)
        self.decoder = Stack(config, "decoder", config.latent_channels)
        self.to_patch = ToPatch(config.decoder_width, config.patch_values, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(()))
        self.quantiser = FSQ(config.fsq_levels) if config.fsq_levels else None
        sizes = config.gaussian_decoder
        self.gaussian_decoder = None if sizes is None else GaussianDecoder(config.frame_values, **sizes)
        text = config.text
        self.text_tower = None if text is None else _text_tower(text, config.encoder_width)
        self.post_init()

    def encode(
        self, tokens: SparseTokens, *, tile_frames: int | None = None, pool_state: PoolState | None = None
    ) -> Encoded:
        """Patches (N, 3072) in [-1, 1] to latents, codes, features and pooled vectors.

        Patches (N, 768) are those of one frame, of images and voxels: the further frames count as zero, at no cost.
        Tiles of ``tile_frames`` frames, counted from the first step of each sample, do not attend to one another. The
        pooled vector is over all tiles, with ``pool_state`` also over those of earlier calls.
        Raises ValueError for a tile that is not a whole number of time steps, TensorError for other tensors.
        """
        _check_packed(tokens, (self.config.patch_values, self.config.frame_values), "encode_pixels")
        steps = self.config.steps(tile_frames or self.config.tile_frames)
        features, state, _ = self.encode_tiles(tokens, steps, state=pool_state)
        return self._bottleneck(features, state)

    def _bottleneck(self, features: SparseTokens, state: PoolState) -> Encoded:
        mean, logvar = self.to_latent(features.feats).float().chunk(2, dim=-1)
        latents, codes = mean, None
        if self.quantiser:
            latents = self.quantiser.quantise(mean)
            codes = self.quantiser.to_codes(latents)
        posterior, pooled = Posterior(mean, logvar), self.pool.finish(state)
        return Encoded(features.with_feats(latents), posterior, codes, features, pooled, state)

    def decode(
        self,
        latents: SparseTokens,
        *,
        tile_frames: int | None = None,
        cache_frames: int | None = None,
        cache: TileCache | None = None,
        values: int | None = None,
    ) -> SparseTokens:
        """Latents (N, C) to patches (N, 3072), nominally in [-1, 1].

        tile_frames: new frames of a tile. cache_frames: frames of the previous tile to which a tile attends, through
        their cached keys and values. cache: a ``tile_cache`` that earlier calls have filled, to continue their videos.
        values: of each patch only so many, from the first on; 768 are one frame.
        Raises ValueError for frames that are not a whole number of time steps, TensorError for other tensors.
        """
        self.check_latents(latents)
        steps = self.config.steps(tile_frames or self.config.tile_frames)
        cache = cache or self.tile_cache(cache_frames)
        windows = latents.time_windows(steps)
        return scatter(latents, windows, [self._decode_tile(window, steps, cache, values) for _, window in windows])

    def encode_pixels(self, x: Tensor | Sequence[Tensor]) -> Encoded:
        """``encode`` of images (B, 3, H, W) or videos (B, 3, T, H, W) in [-1, 1], or a list without B of mixed sizes.

        Any device and float dtype; results are on the model's device. Gradients flow unless they are switched off.
        Raises: TensorError.
        """
        return self.encode(pack_pixels(x).to(self.device))

    def decode_latents(
        self, latents: SparseTokens | Tensor | Sequence[Tensor], *, sizes: Size | Sequence[Size] | None = None
    ) -> Tensor | list[Tensor]:
        """``decode`` to images (B, 3, H, W) or videos (B, 3, T, H, W), nominally in [-1, 1]; a list if sizes differ.

        latents: ``Encoded.latents``, or dense grids (B, C, H, W) or (B, C, T, H, W), or a list of them without B.
        sizes: (H, W) or (T, H, W) in pixels, one for all samples (``x.shape[2:]``) or one for each; where left out,
        whole patches, and a single time step is an image unless it came as (B, C, 1, H, W).
        Gradients flow unless they are switched off. Raises: TensorError.
        """
        packed = latents if isinstance(latents, SparseTokens) else from_grid(latents)
        each = sizes_of(packed, sizes, images=isinstance(latents, SparseTokens) or latents[0].ndim == 3)
        return unpack_pixels(self.decode(packed.to(self.device)), each)

    def check_latents(self, latents: SparseTokens) -> None:
        """Refuse what is not packed latents of this model. Raises: TensorError."""
        _check_packed(latents, (self.config.latent_channels,), "decode_latents")

    def tile_cache(self, cache_frames: int | None = None) -> TileCache | None:
        """An empty cache for ``decode``; None if the decoder attends to no earlier frames."""
        frames = self.config.cache_frames if cache_frames is None else cache_frames
        return TileCache(self.config.steps(frames), len(self.decoder.blocks)) if frames else None

    def _decode_tile(self, tile: SparseTokens, steps: int, cache: TileCache | None, values: int | None) -> Tensor:
        width, base = self.decoder.head_width, self.decoder.rotary_base
        positions = Positions.of(tile, width, base) if cache is None else cache.enter(tile, steps, width, base)
        features, _ = self.decoder(tile, positions, cache)
        return self.to_patch(features, values)

    def encode_text(self, ids: Tensor) -> Tensor:
        """``TextTokenizer`` ids (T, L) to (T, D) fp32, not normalised, comparable with ``Encoded.pooled``.

        Raises ValueError for a model without a text side.
        """
        if self.text_tower is None:
            raise ValueError("This model has no text side.")
        return self.text_tower(ids).pooler_output.float()

    @property
    def text_length(self) -> int:
        """The number of tokens of a text that the text side reads (L); 0 without a text side."""
        default = 64  # of transformers
        return 0 if self.config.text is None else int(self.config.text.get("max_position_embeddings", default))

    def forward(self, tokens: SparseTokens) -> tuple[Encoded, SparseTokens]:
        """Encode and decode, as a training step does."""
        encoded = self.encode(tokens)
        return encoded, self.decode(encoded.latents)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ATokenModel):
            nn.init.constant_(module.logit_scale, self.config.logit_scale_init)
            nn.init.constant_(module.logit_bias, self.config.logit_bias_init)


def _check_packed(tokens: SparseTokens, widths: tuple[int, ...], of_dense: str) -> None:
    values = tokens.feats.shape[1] if isinstance(tokens, SparseTokens) else f"a {type(tokens).__name__}"
    if values not in widths:
        wanted = " or ".join(map(str, widths))
        raise TensorError(
            f"SparseTokens of {wanted} values a token are needed, got {values}; see {of_dense} for grids."
        )


def _text_tower(fields: dict[str, Any], width: int) -> PreTrainedModel:
    """SigLIP2's text tower. Raises ValueError if its vectors are not as wide as those of the pooling head."""
    from transformers import Siglip2TextConfig, Siglip2TextModel

    config = Siglip2TextConfig(**fields)
    if config.projection_size != width:
        raise ValueError(f"The text tower's projection_size {config.projection_size} is not the encoder's {width}.")
    return Siglip2TextModel(config)


AutoConfig.register(ATokenConfig.model_type, ATokenConfig)
AutoModel.register(ATokenConfig, ATokenModel)
AutoImageProcessor.register(ATokenConfig, image_processor_classes={"pil": ATokenImageProcessor})
