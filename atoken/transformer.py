"""One side of the tokenizer, and what models with its encoder share. Shape letters: ``atoken/tokens.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from atoken.gaussian_decoder import OutputLayer
from atoken.image_processor import ATokenImageProcessor
from atoken.layers import (
    NORM_EPS,
    Block,
    Linear,
    PoolingHead,
    PoolState,
    Positions,
    PositionTable,
    QKNorm,
    RMSNorm,
    TileCache,
)
from atoken.tokens import SparseTokens

if TYPE_CHECKING:
    from atoken.model import ATokenConfig


class PatchLayer(Linear):
    """The encoder's input layer; of a patch of several frames, the weights of the first are ``frame_values`` wide."""

    def __init__(self, inputs: int, outputs: int, frame_values: int) -> None:
        super().__init__(inputs, outputs)
        self.frame_values = frame_values

    def forward(self, x_NP: Tensor) -> Tensor:
        """(N, P) -> (N, D); fewer values than ``inputs`` are the first ones of patches that are zero otherwise."""
        values = x_NP.shape[-1]
        return self._product(x_NP, self.weight if values == self.in_features else self.weight[:, :values].contiguous())


class ToPatch(Linear):
    """The decoder's output layer."""

    def forward(self, x_ND: Tensor, values: int | None = None) -> Tensor:
        """(N, D) -> (N, P), or the first ``values`` of each patch."""
        return self._product(x_ND, self.weight if values in (None, self.out_features) else self.weight[:values])


class Stack(nn.Module):
    """One side of the model: an input layer, the learned positions, and the blocks."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]  # set by transformers when checkpointing is enabled

    def __init__(self, config: ATokenConfig, side: str, inputs: int) -> None:
        super().__init__()
        width, heads = getattr(config, f"{side}_width"), getattr(config, f"{side}_heads")
        decoder = side == "decoder"
        self.head_width, self.rotary_base = width // heads, config.rotary_base
        self.inputs = Linear(inputs, width, bias=False) if decoder else PatchLayer(inputs, width, config.frame_values)
        self.position = PositionTable(config.position_grid, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, getattr(config, f"{side}_mlp"), decoder=decoder)
            for _ in range(getattr(config, f"{side}_layers"))
        )
        self.norm = RMSNorm(width, eps=NORM_EPS) if decoder else nn.LayerNorm(width, eps=NORM_EPS)

    def forward(
        self, tokens: SparseTokens, positions: Positions, cache: TileCache | None = None, layers: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """One tile: (N, inputs) -> (N, D), and the (N, D) after each number of blocks in ``layers``, not normalised."""
        x_ND = self.inputs(tokens.feats.to(self.inputs.weight.dtype))
        x_ND = x_ND + self.position(tokens).to(x_ND.dtype)
        hidden = {0: x_ND} if 0 in layers else {}
        for layer, block in enumerate(self.blocks):
            memory = cache.layers[layer] if cache else None
            if self.gradient_checkpointing and self.training:
                x_ND = self._gradient_checkpointing_func(block.__call__, x_ND, positions, memory)
            else:
                x_ND = block(x_ND, positions, memory)
            if layer + 1 in layers:
                hidden[layer + 1] = x_ND
        return self.norm(x_ND), [hidden[layer] for layer in layers]


class EncoderModel(PreTrainedModel):
    """What the tokenizer and the vision tower (``atoken/tower.py``) share: the encoder and its pooling head."""

    encoder: Stack
    pool: PoolingHead
    supports_gradient_checkpointing = True
    _no_split_modules = ("Block", "WindowBlock", "Siglip2EncoderLayer")
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # accepted; atoken/attention.py chooses

    def encode_tiles(
        self, tokens: SparseTokens, steps: int, *, state: PoolState | None = None, layers: Sequence[int] = ()
    ) -> tuple[SparseTokens, PoolState, list[SparseTokens]]:
        """Features (N, D), the pooling over them, and features after each number of blocks in ``layers``.

        Tiles of ``steps`` time steps do not attend to one another; results are in the order of ``tokens``.
        """
        windows = tokens.time_windows(steps)
        state = state or self.pool.start(len(tokens.lengths))
        parts: list[list[Tensor]] = []
        for _, window in windows:
            positions = Positions.of(window, self.encoder.head_width, self.encoder.rotary_base)
            features, hidden = self.encoder(window, positions, layers=layers)
            state = self.pool.update(state, window.with_feats(features))
            parts.append([features, *hidden])
        features, *hidden = (scatter(tokens, windows, part) for part in zip(*parts, strict=True))
        return features, state, hidden

    def save_pretrained(self, save_directory: str | Path, max_shard_size: str = "5GB", **options: Any) -> None:
        """As in transformers, with weights above 5 GB in several files, and with ``preprocessor_config.json``."""
        super().save_pretrained(save_directory, max_shard_size=max_shard_size, **options)
        if not (Path(save_directory) / "preprocessor_config.json").exists():
            ATokenImageProcessor().save_pretrained(save_directory)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill every parameter.

        | parameter | start |
        | --- | --- |
        | linear weights, position tables, probe | normal, ``initializer_range`` |
        | patch weights of frames 1 to 3 | zero, so that images are read as in SigLIP2 (paper section 3.2) |
        | linear biases | zero |
        | norms and QK gains | one (biases zero) |
        | output weights of the Gaussian decoder | zero, so that it starts with small Gaussians spread over a voxel |
        | logit scale, logit bias | from the config |
        """
        std = self.config.initializer_range
        match module:
            case OutputLayer():
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
            case Linear():
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if isinstance(module, PatchLayer) and not getattr(module.weight, "_is_hf_initialized", False):
                    nn.init.zeros_(module.weight[:, module.frame_values :])  # a slice has no mark of being loaded
            case nn.LayerNorm() | RMSNorm():
                nn.init.ones_(module.weight)
                if isinstance(module, nn.LayerNorm):
                    nn.init.zeros_(module.bias)
            case QKNorm():
                nn.init.ones_(module.gain_HK)
            case PositionTable():
                nn.init.normal_(module.weight, std=std)
            case PoolingHead():
                nn.init.normal_(module.probe, std=std)


def scatter(
    tokens: SparseTokens, windows: list[tuple[Tensor | slice, SparseTokens]], results: Sequence[Tensor]
) -> SparseTokens:
    """Results of the windows, back in the order of ``tokens``."""
    if len(windows) == 1:
        return tokens.with_feats(results[0])
    order = torch.cat([index for index, _ in windows if isinstance(index, Tensor)])
    # index_select with the inverse index: index_copy would keep everything it copies for the gradient.
    back = torch.empty_like(order).index_copy(0, order, torch.arange(len(order), device=order.device))
    feats = torch.cat(list(results))
    return tokens.with_feats(feats.index_select(0, back.to(feats.device)))
