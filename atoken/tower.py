"""``ATokenVisionModel``: encoder and pooling head alone, with the habits of transformers' vision towers.

It is SigLIP2's interface (Tschannen et al. 2025) on the paper's encoder: pixels or padded patches in, hidden states
and a pooled vector out, so that it is the ``vision_config`` of ``LlavaForConditionalGeneration``. Importing this module
makes ``AutoConfig``, ``AutoModel`` and ``AutoImageProcessor`` know the tower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from atoken.errors import MediaError, TensorError
from atoken.image_processor import ATokenImageProcessor
from atoken.io import Image, Video
from atoken.io.inputs import Media, as_media
from atoken.layers import PoolingHead
from atoken.modalities.pixels import to_values
from atoken.model import ATokenConfig, ATokenModel
from atoken.patches import grid, grid_coords, pack_pixels
from atoken.presets import folder_of
from atoken.tokens import SparseTokens
from atoken.transformer import EncoderModel, Stack

PASS_TOKENS = 1 << 14  # tokens that ``encode_media`` encodes together, unless a single sample has more
VideoMode = Literal["tubelet", "frame", "timed_frame"]


class ATokenVisionConfig(PreTrainedConfig):
    """Sizes of an ``ATokenVisionModel`` in transformers' words; the defaults are those of the released models.

    ``image_size`` is a nominal size: images of any size are encoded. Raises ValueError as ``ATokenConfig`` does.
    """

    model_type = "atoken_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1152
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    intermediate_size: int = 4304
    num_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 4
    image_size: int = 256
    position_grid: int = 16
    rope: bool = True
    rope_base: float = 10_000.0
    tile_frames: int = 16
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.sizes()  # which checks them
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, config: ATokenConfig) -> Self:
        """The configuration of the encoder in a tokenizer."""
        same = ("position_grid", "rope", "rope_base", "tile_frames", "initializer_range", "dtype")
        return cls(
            hidden_size=config.encoder_width,
            num_hidden_layers=config.encoder_layers,
            num_attention_heads=config.encoder_heads,
            intermediate_size=config.encoder_mlp,
            num_channels=config.channels,
            patch_size=config.patch_size[1],
            temporal_patch_size=config.patch_size[0],
            image_size=config.position_grid * config.patch_size[1],
            **{name: getattr(config, name) for name in same},
        )

    def sizes(self) -> ATokenConfig:
        """A tokenizer's configuration with this encoder."""
        return ATokenConfig(
            patch_size=(self.temporal_patch_size, self.patch_size, self.patch_size),
            channels=self.num_channels,
            encoder_width=self.hidden_size,
            encoder_layers=self.num_hidden_layers,
            encoder_heads=self.num_attention_heads,
            encoder_mlp=self.intermediate_size,
            position_grid=self.position_grid,
            rope=self.rope,
            rope_base=self.rope_base,
            tile_frames=self.tile_frames,
        )

    @property
    def frame_values(self) -> int:
        """Numbers in one frame of a patch: 16 * 16 * 3 = 768."""
        return self.num_channels * self.patch_size**2

    @classmethod
    def get_config_dict(cls, source: str | Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; of a tokenizer (a folder, a hub id, a bundled name) that of its encoder."""
        fields, rest = super().get_config_dict(folder_of(source), **options)
        if fields.get("model_type") == ATokenConfig.model_type:
            fields = cls.of(ATokenConfig(**fields)).to_dict()
        return fields, rest


class ATokenVisionModel(EncoderModel):
    """The encoder and the pooling head of a tokenizer.

    ``from_pretrained`` takes a folder or hub id of a tower or of a tokenizer, and the bundled names; ``from_atoken``
    takes a loaded tokenizer, as of official weights.
    """

    config_class = ATokenVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    _keys_to_ignore_on_load_unexpected = (r"^(decoder|to_latent|to_patch|logit_|gaussian_decoder|text_tower)",)

    def __init__(self, config: ATokenVisionConfig) -> None:
        super().__init__(config)
        sizes = config.sizes()
        self.steps = sizes.steps(sizes.tile_frames)
        self.encoder = Stack(sizes, "encoder", sizes.patch_values)
        self.pool = PoolingHead(sizes.encoder_width, sizes.encoder_heads, sizes.encoder_mlp)
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: str | Path, *inputs: Any, **options: Any) -> Self:
        """As in transformers; a bundled name such as "nano" is a source, too."""
        return super().from_pretrained(folder_of(source), *inputs, **options)

    @classmethod
    def from_atoken(cls, model: ATokenModel) -> Self:
        """The tower of a tokenizer, with which it shares its weights."""
        with torch.device("meta"):
            tower = cls(ATokenVisionConfig.of(model.config))
        tower.encoder, tower.pool = model.encoder, model.pool
        return tower.train(model.training)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The layer that reads patches."""
        return self.encoder.inputs

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        spatial_shapes: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | int | Sequence[int] | None = None,
    ) -> BaseModelOutputWithPooling:
        """``last_hidden_state`` (B, L, D), ``pooler_output`` (B, D) and, where asked for, ``hidden_states``.

        pixel_values: images (B, 3, H, W) or videos (B, 3, T, H, W) in [-1, 1] of any size, L being the number of
        patches in the order t, row, column; or SigLIP2's padded patches (B, L, 768) of images, with spatial_shapes
        (B, 2), the rows and columns of patches of each, and pixel_attention_mask (B, L). Padding comes out as zeros.
        output_hidden_states: True for all layers + 1 (the first is the embedding, the last is before the final norm),
        or the index or indices of those that are needed, the others being None.
        Raises: TensorError for tensors of another shape or range.
        """
        if pixel_values.ndim == 3:
            tokens, index = self._from_patches(pixel_values, spatial_shapes, pixel_attention_mask)
            shape = pixel_values.shape[:2]
        else:
            tokens, index = pack_pixels(pixel_values), None
            shape = torch.Size([len(tokens.lengths), tokens.lengths[0]])
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers = self._layers(wanted)
        features, state, hidden = self.encode_tiles(tokens.to(self.device), self.steps, layers=layers)
        last, *at_layers = (_padded(part.feats, index, shape) for part in (features, *hidden))
        kept = dict(zip(layers, at_layers, strict=True))
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=self.pool.finish(state).to(last.dtype),
            hidden_states=tuple(map(kept.get, range(self.config.num_hidden_layers + 1))) if layers else None,
        )

    def _layers(self, wanted: bool | int | Sequence[int]) -> list[int]:
        """Numbers of blocks, from what ``output_hidden_states`` may be. Raises: IndexError."""
        count = self.config.num_hidden_layers + 1
        if isinstance(wanted, bool):
            return list(range(count)) if wanted else []
        return sorted({range(count)[layer] for layer in ([wanted] if isinstance(wanted, int) else wanted)})

    def _from_patches(self, x: Tensor, shapes: Tensor | None, mask: Tensor | None) -> tuple[SparseTokens, Tensor]:
        """Padded patches of images as packed tokens, and their places in the flattened (B * L)."""
        values = self.config.frame_values
        if shapes is None or shapes.shape != (len(x), 2) or x.shape[2] != values:
            raise TensorError(
                f"pixel_values of shape {tuple(x.shape)} are no padded patches; those are (B, L, {values}) with "
                "spatial_shapes (B, 2). Pixels are (B, 3, H, W) or (B, 3, T, H, W)."
            )
        grids = [(int(rows), int(columns)) for rows, columns in shapes.tolist()]
        lengths = tuple(rows * columns for rows, columns in grids)
        real = torch.arange(x.shape[1], device=x.device) < torch.tensor(lengths, device=x.device)[:, None]
        if max(lengths) > x.shape[1] or (mask is not None and not torch.equal(mask.to(x.device).bool(), real)):
            raise TensorError(
                f"spatial_shapes {grids} do not fit pixel_values of {x.shape[1]} patches and pixel_attention_mask, "
                "which marks the first rows x columns patches of each image."
            )
        index = real.flatten().nonzero()[:, 0]
        later = (self.config.temporal_patch_size - 1) * values
        feats = F.pad(x.flatten(0, 1)[index], (0, later))
        coords = torch.cat([grid_coords(1, *one) for one in grids]).to(x.device)
        return SparseTokens(feats, coords, lengths), index

    def encode_media(
        self, media: Sequence[Media | Tensor], *, layer: int | None = None, video_mode: VideoMode = "tubelet"
    ) -> tuple[list[Tensor], list[tuple[int, int, int]]]:
        """Features (N, D) of each image or video at its own resolution, and its grid (t, h, w), with N = t * h * w.

        media: whatever ``Tokenizer.encode`` takes, or tensors (3, H, W) or (3, T, H, W) in [-1, 1], of any sizes.
        Sides are padded to whole patches by edge pixels. ``features.unflatten(0, size)`` is the grid.
        layer: an index into the layers + 1 hidden states, before the final norm; None is the last one after it.
        video_mode: how frames become time steps.

        - "tubelet": 4 frames are one step; tiles of 16 frames do not see each other (``ATokenModel.encode``).
        - "frame": each frame is encoded alone, as an image.
        - "timed_frame": each frame is a step, and all frames see each other. The video is not cut, so time grows with
          the square of its tokens, and memory with their number: about 70 KB a token for so400m in fp32.

        Gradients flow unless they are switched off. Raises: MediaError, TensorError, IndexError (no such layer).
        """
        if video_mode not in get_args(VideoMode):
            raise ValueError(f"video_mode must be one of {', '.join(get_args(VideoMode))}, got {video_mode!r}.")
        sizes: list[tuple[int, int, int]] = []
        samples = _samples(media, video_mode, sizes)
        rest = iter(self.encode_samples(samples, layer=layer, timed=video_mode == "timed_frame"))
        counts = [size[0] if video_mode == "frame" else 1 for size in sizes]
        return [torch.cat(list(islice(rest, count))) for count in counts], sizes

    def encode_samples(
        self, samples: Iterable[SparseTokens], *, layer: int | None = None, timed: bool = False
    ) -> list[Tensor]:
        """Features (N, D) of each sample of patches: an image, a video, a frame or an asset.

        layer: as in ``encode_media``. timed: all steps of a sample see each other, rather than tiles of 16 frames.
        """
        layers = [] if layer is None else self._layers(layer)
        parts: list[Tensor] = []
        for batch in _passes(samples):
            packed = SparseTokens.pack(batch).to(self.device)
            steps = int(packed.coords[:, 0].max()) + 1 if timed else self.steps
            features, _, hidden = self.encode_tiles(packed, steps, layers=layers)
            parts += [part.feats for part in (hidden[0] if hidden else features).unpack()]
        return parts


def _padded(feats: Tensor, index: Tensor | None, shape: torch.Size) -> Tensor:
    """(N, D) -> (B, L, D); ``index``: places of the N in (B * L), None if they fill it."""
    if index is not None:
        feats = feats.new_zeros(shape.numel(), feats.shape[1]).index_copy(0, index.to(feats.device), feats)
    return feats.unflatten(0, shape)


def _samples(
    media: Iterable[Media | Tensor], mode: VideoMode, sizes: list[tuple[int, int, int]]
) -> Iterator[SparseTokens]:
    """Samples of patches, one by one; the grid of each of ``media`` is appended to ``sizes``."""
    for one in media:
        x = one if isinstance(one, Tensor) else _values(as_media(one))
        if x.ndim not in (3, 4):
            raise TensorError(f"A tensor among media must be (3, H, W) or (3, T, H, W), got {tuple(x.shape)}.")
        x = x[:, None] if x.ndim == 3 else x
        frames = [x] if mode == "tubelet" else x.split(1, dim=1)
        samples = (pack_pixels(part[None]) for part in frames)
        steps, rows, columns = grid(*x.shape[1:])
        sizes.append((steps if mode == "tubelet" else len(frames), rows, columns))
        yield from [_timed(samples)] if mode == "timed_frame" else samples


def _timed(frames: Iterable[SparseTokens]) -> SparseTokens:
    """Frames as one sample, each at its own time step."""
    packed = SparseTokens.pack(list(frames))
    packed.coords[:, 0] = packed.sample_N
    return SparseTokens(packed.feats, packed.coords, (len(packed.feats),))


def _values(media: Any) -> Tensor:
    """(3, T, H, W) in [-1, 1]. Raises: MediaError for a 3D asset."""
    if not isinstance(media, Image | Video):
        raise MediaError("A 3D asset has no grid of tokens; use ATokenModel.encode for its features.")
    frames = media.pixels[None] if isinstance(media, Image) else media.frames
    return to_values(frames).movedim(-1, 0)


def _passes(samples: Iterable[SparseTokens]) -> Iterator[list[SparseTokens]]:
    """Samples in order, ``PASS_TOKENS`` at a time; patches of one frame and of four are apart."""
    batch: list[SparseTokens] = []
    total = 0
    for sample in samples:
        full = total + sample.lengths[0] > PASS_TOKENS
        if batch and (full or sample.feats.shape[1] != batch[0].feats.shape[1]):
            yield batch
            batch, total = [], 0
        batch.append(sample)
        total += sample.lengths[0]
    if batch:
        yield batch


AutoConfig.register(ATokenVisionConfig.model_type, ATokenVisionConfig)
AutoModel.register(ATokenVisionConfig, ATokenVisionModel)
AutoImageProcessor.register(ATokenVisionConfig, image_processor_classes={"pil": ATokenImageProcessor})
