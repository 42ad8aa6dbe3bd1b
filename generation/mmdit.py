"""A transformer of two streams for images and videos from texts: MMDiT (Esser et al. 2024) with rotary positions.

Tokens of latents and of texts have weights of their own and attend to one another, each sample's together. Packed:
samples of a batch have any grids and any texts. An image is a video of one latent frame. Letters: ``B`` samples, ``N``
tokens of latents, ``M`` tokens of texts, ``D`` width, ``H`` heads, ``K`` head width, ``C`` latent channels, ``V``
values of a patch.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils.checkpoint import checkpoint

from atoken.attention import Bounds, varlen_attention
from atoken.layers import MLP, NORM_EPS, Linear, RMSNorm
from atoken.rope import rotate
from atoken.tokens import SparseTokens
from generation.blocks import BASE, SelfAttention, TimeEmbedding, modulated
from generation.text import Texts

TIME_SCALE = 1000.0


class Layout(NamedTuple):
    """Which sample each token is of, the order that puts those of a sample side by side, and their rotation.

    bounds: of samples among tokens of latents, and in that order. rotation: (2, N, 1, K/2), None for none.
    """

    image_N: Tensor
    text_M: Tensor
    order: Tensor
    bounds: Bounds
    joint_bounds: Bounds
    rotation: Tensor | None

    @staticmethod
    def of(image: SparseTokens, texts: Texts, rotation: Tensor | None) -> Layout:
        """Of tokens and their texts, on the device of the features."""
        image_N = image.sample_N.to(image.feats.device)
        numbers = torch.arange(len(image.lengths), device=image_N.device)
        text_M = torch.cat([
            numbers.repeat_interleave(
                torch.tensor(one.lengths, device=image_N.device), output_size=len(one.tokens)
            ) for one in texts
        ])  # fmt: skip
        together = map(sum, zip(image.lengths, *(one.lengths for one in texts), strict=True))
        order = torch.cat([image_N, text_M]).argsort(stable=True)
        return Layout(image_N, text_M, order, image.bounds, tuple(accumulate(together, initial=0)), rotation)


class MMDiT(ModelMixin, ConfigMixin):
    """``forward(tokens, sigma, texts)`` is the velocity, noise minus data, of latents normalised per channel.

    channels: C. patch: side of a patch of latents; V is C patch². text_widths, pooled_widths: of each text encoder, a
    pooled width of 0 where one has no pooled vectors. qk_norm: RMSNorm of queries and keys. dual: so many of the first
    blocks have a second attention, among tokens of latents alone (SD3.5).
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("JointBlock",)

    @register_to_config
    def __init__(
        self,
        *,
        channels: int = 48,
        patch: int = 1,
        width: int = 512,
        depth: int = 14,
        heads: int = 8,
        text_widths: tuple[int, ...] = (192,),
        pooled_widths: tuple[int, ...] = (192,),
        qk_norm: bool = True,
        dual: int = 0,
    ) -> None:
        super().__init__()
        values = channels * patch**2
        self.patchify = Linear(values, width)
        self.time = TimeEmbedding(width)
        pooled = sum(pooled_widths)
        self.pooled = nn.Sequential(Linear(pooled, width), nn.SiLU(), Linear(width, width)) if pooled else None
        self.texts = nn.ModuleList(Linear(one, width) for one in text_widths)
        self.blocks = nn.ModuleList(
            JointBlock(width, heads, qk_norm=qk_norm, dual=number < dual, last=number == depth - 1)
            for number in range(depth)
        )
        self.modulation = Linear(width, 2 * width)
        self.unpatchify = Linear(width, values)
        self.gradient_checkpointing = False
        self.initialise()

    def initialise(self) -> None:
        """Random weights with which a block is the identity and the output is zero, as those of DiT."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time.up, self.time.out, *(self.pooled or ())[::2]):
            nn.init.normal_(layer.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.image.modulation.weight)
            nn.init.zeros_(block.text.modulation.weight)
        for layer in (self.modulation, self.unpatchify):
            nn.init.zeros_(layer.weight)

    def forward(self, tokens: SparseTokens, sigma_B: Tensor, texts: Texts) -> Tensor:
        """(N, V) at positions (t, row, column) of patches, (B,) fp32, and B texts by each encoder -> (N, V)."""
        rotation = axes_rotation(tokens.coords, self.config.width // self.config.heads)
        layout = Layout.of(tokens, texts, rotation.to(tokens.feats.device))
        activated_BD = F.silu(self.condition(sigma_B, texts))
        image_ND = self.patchify(tokens.feats)
        text_MD = torch.cat([linear(one.tokens) for linear, one in zip(self.texts, texts, strict=True)])
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                image_ND, text_MD = checkpoint(block, image_ND, text_MD, activated_BD, layout, use_reentrant=False)
            else:
                image_ND, text_MD = block(image_ND, text_MD, activated_BD, layout)
        return self.output(image_ND, activated_BD, layout)

    def condition(self, sigma_B: Tensor, texts: Texts) -> Tensor:
        """(B, D): of the time, and of the pooled vectors where an encoder has some."""
        time_BD = self.time(TIME_SCALE * sigma_B)
        return time_BD if self.pooled is None else time_BD + self.pooled(torch.cat([one.pooled for one in texts], 1))

    def output(self, image_ND: Tensor, activated_BD: Tensor, layout: Layout) -> Tensor:
        """(N, V) of what the last block gives."""
        shift_ND, scale_ND = self.modulation(activated_BD)[layout.image_N].chunk(2, -1)
        return self.unpatchify(_normed(image_ND, shift_ND, scale_ND))

    def dense(self, x_BCTHW: Tensor, sigma_B: Tensor, texts: Texts) -> Tensor:
        """``forward`` of samples of one grid; rows and columns are multiples of the patch."""
        patch, size = self.config.patch, x_BCTHW.shape[2:]
        velocity_NV = self(packed(x_BCTHW, patch), sigma_B, texts)
        return rearrange(
            velocity_NV, "(b t h w) (p q c) -> b c t (h p) (w q)",
            t=size[0], h=size[1] // patch, w=size[2] // patch, p=patch, q=patch,
        )  # fmt: skip


class JointBlock(nn.Module):
    """Attention of both streams together, and an MLP of each, with shifts, scales and gates of the condition.

    last: the text goes no further, and has a shift and a scale alone.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, dual: bool, last: bool) -> None:
        super().__init__()
        self.image = Stream(width, heads, qk_norm=qk_norm, chunks=9 if dual else 6)
        self.text = Stream(width, heads, qk_norm=qk_norm, chunks=2 if last else 6)
        self.alone = _attention(width, heads, qk_norm) if dual else None

    def forward(self, image_ND: Tensor, text_MD: Tensor, activated_BD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """(N, D), (M, D), (B, D) -> (N, D), (M, D)."""
        of_image = self.image.modulation(activated_BD)[layout.image_N].chunk(self.image.chunks, -1)
        of_text = self.text.modulation(activated_BD)[layout.text_M].chunk(self.text.chunks, -1)
        q_NHK, k_NHK, v_NHK = self.image.attention.qkv_of(_normed(image_ND, *of_image[:2]))
        q_NHK, k_NHK = _rotated(q_NHK, k_NHK, layout)
        of_texts = self.text.attention.qkv_of(_normed(text_MD, *of_text[:2]))
        joint = [torch.cat(both)[layout.order] for both in zip((q_NHK, k_NHK, v_NHK), of_texts, strict=True)]
        seen = varlen_attention(*joint, layout.joint_bounds).flatten(1)
        seen_ND, seen_MD = torch.empty_like(seen).index_copy(0, layout.order, seen).split([len(image_ND), len(text_MD)])
        if self.alone is not None:
            alone_ND = self._alone(_normed(image_ND, *of_image[6:8]), layout)
            image_ND = torch.addcmul(image_ND, of_image[8], alone_ND)
        return self.image(image_ND, seen_ND, of_image), self.text(text_MD, seen_MD, of_text)

    def _alone(self, x_ND: Tensor, layout: Layout) -> Tensor:
        assert self.alone is not None
        q_NHK, k_NHK, v_NHK = self.alone.qkv_of(x_ND)
        return self.alone.out(varlen_attention(*_rotated(q_NHK, k_NHK, layout), v_NHK, layout.bounds).flatten(1))


class Stream(nn.Module):
    """The weights of a block for the tokens of latents, or of texts."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.modulation = Linear(width, chunks * width)
        self.attention = _attention(width, heads, qk_norm)
        self.mlp = None if chunks == 2 else MLP(width, 4 * width, bias=True)
        if self.mlp is None:
            self.attention.out = nn.Identity()

    def forward(self, x_ND: Tensor, seen_ND: Tensor, chunks: tuple[Tensor, ...]) -> Tensor:
        """(N, D) and what its tokens saw -> (N, D); a last stream of texts stays as it is."""
        if self.mlp is None:
            return x_ND
        gate1, shift2, scale2, gate2 = chunks[2:6]
        x_ND = torch.addcmul(x_ND, gate1, self.attention.out(seen_ND))
        return torch.addcmul(x_ND, gate2, self.mlp(_normed(x_ND, shift2, scale2)))


def packed(x_BCTHW: Tensor, patch: int = 1) -> SparseTokens:
    """Dense latents as tokens (N, V) of patches at (t, row, column); of a patch the channels are side by side."""
    samples, _, *size = x_BCTHW.shape
    grid = (size[0], size[1] // patch, size[2] // patch, 1)
    axes = torch.meshgrid(*(torch.arange(side, device=x_BCTHW.device) for side in grid), indexing="ij")
    coords = torch.stack([axis.flatten() for axis in axes], 1)
    feats = rearrange(x_BCTHW, "b c t (h p) (w q) -> (b t h w) (p q c)", p=patch, q=patch)
    return SparseTokens(feats, coords.repeat(samples, 1), (len(coords),) * samples)


def axes_rotation(coords: Tensor, head_width: int) -> Tensor:
    """(N, 4) positions -> (2, N, 1, K/2) fp32 for ``rotate``: two eighths of a head turn by time, three by row, column.

    Raises ValueError if the head width K is no multiple of 16.
    """
    if head_width % 16:
        raise ValueError(f"A head that turns by time, row and column is a multiple of 16 wide, not {head_width}.")
    angles = []
    for axis, pairs in enumerate((head_width // 8, head_width * 3 // 16, head_width * 3 // 16)):
        frequencies = BASE ** -(torch.arange(pairs, dtype=torch.float32, device=coords.device) / pairs)
        angles.append(coords[:, axis, None] * frequencies)
    angles_N1K = torch.cat(angles, 1)[:, None]
    return torch.stack([angles_N1K.cos(), angles_N1K.sin()])


def _rotated(q_NHK: Tensor, k_NHK: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    if layout.rotation is None:
        return q_NHK, k_NHK
    return rotate(q_NHK, layout.rotation), rotate(k_NHK, layout.rotation)


def _normed(x_ND: Tensor, shift_ND: Tensor, scale_ND: Tensor) -> Tensor:
    return modulated(F.layer_norm(x_ND, x_ND.shape[-1:], eps=NORM_EPS), shift_ND, 1 + scale_ND)


def _attention(width: int, heads: int, qk_norm: bool) -> SelfAttention:
    norms = [RMSNorm(width // heads, eps=NORM_EPS) if qk_norm else None for _ in range(2)]
    return SelfAttention(width, heads, q_norm=norms[0], k_norm=norms[1])
