"""Images from classes, position after position in random order: MAR's trunk (Li et al. 2024) with TokenBridge's head.

Letters: ``B`` samples, ``L`` positions, ``V`` tokens of a position, ``K`` levels of a token, ``C`` values that the
tokens of a position stand for, ``E`` width of the encoder, ``F`` of the decoder, ``M`` masked positions of all samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.layers import NORM_EPS, Linear
from generation.blocks import ExactMLP, Places, SelfAttention, at_places
from generation.channel_head import ChannelHead
from generation.digits import CodeValues, ScalarValues

CHUNK = 128  # positions whose logits are computed at once on a CPU, whose cache holds no more: 30 % less time a step


class MaskedAR(ModelMixin, ConfigMixin):
    """The trunk sees the visible positions and gives a feature for each; the head turns it into tokens.

    side: of the grid. encoder_size, decoder_size, head_size: width, depth, heads. tokens, levels: V and K. fsq_levels:
    of AToken-D's codes; None for TokenBridge's scalars, whose table is scaled by ``scalar_scale``. buffer: places that
    the class takes. classes: label ``classes`` is the null condition. order: in which the head takes the tokens of a
    position; None as they are. step_at_start, shared: as in ``ChannelHead``.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        *,
        side: int = 16,
        encoder_size: Sequence[int] = (1024, 16, 16),
        decoder_size: Sequence[int] = (1024, 16, 16),
        head_size: Sequence[int] = (1024, 4, 8),
        tokens: int = 8,
        levels: int = 4096,
        fsq_levels: Sequence[int] | None = (4, 4, 4, 4, 4, 4),
        buffer: int = 64,
        classes: int = 1000,
        order: Sequence[int] | None = None,
        scalar_scale: float = 5 / 3,
        dropout: float = 0.1,
        step_at_start: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__()
        values = tokens if fsq_levels is None else tokens * len(fsq_levels)
        self.digits = ScalarValues(levels, scalar_scale) if fsq_levels is None else CodeValues(tuple(fsq_levels))
        self.labels = nn.Embedding(classes, encoder_size[0])
        self.null = nn.Parameter(torch.zeros(1, encoder_size[0]))
        self.embed = Linear(values, encoder_size[0])
        self.embed_norm = nn.LayerNorm(encoder_size[0], eps=NORM_EPS)
        self.encoder = Trunk(*encoder_size, buffer + side * side, dropout)
        self.bridge = Linear(encoder_size[0], decoder_size[0])
        self.mask = nn.Parameter(torch.zeros(1, 1, decoder_size[0]))
        self.decoder = Trunk(*decoder_size, buffer + side * side, dropout)
        self.places = nn.Parameter(torch.zeros(1, side * side, decoder_size[0]))
        self.channels = ChannelHead(
            decoder_size[0], *head_size, tokens, levels, dropout=dropout, step_at_start=step_at_start, shared=shared
        )  # fmt: skip
        self.initialise()

    def initialise(self) -> None:
        """Random weights (of products by Glorot and Bengio 2010, as in MAR); a block of the head is the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for table in (self.null, self.mask, self.places, self.encoder.positions, self.decoder.positions,
                      self.channels.positions, self.channels.steps):  # fmt: skip
            nn.init.normal_(table, std=0.02)
        for layer in (*(block.modulation for block in self.channels.blocks), self.channels.modulation):
            nn.init.zeros_(layer.weight)

    def conditions(self, labels_B: Tensor) -> Tensor:
        """(B,) int64 -> (B, E): the vector of each class, or the null vector."""
        return torch.cat([self.labels.weight, self.null])[labels_B]

    def features(self, tokens_BLV: Tensor, masked_BL: Tensor, labels_B: Tensor, wanted_BL: Tensor) -> Tensor:
        """What is known of wanted positions, (B, W, F): class, visible tokens, and where the masked ones are.

        Tokens of masked positions do not matter. Equally many positions of each sample are masked, and wanted.
        """
        buffer = masked_BL.new_zeros(len(labels_B), self.config.buffer)
        kept, wanted = (
            torch.cat(pair, 1).nonzero(as_tuple=True) for pair in ((~buffer, ~masked_BL), (buffer, wanted_BL))
        )
        values_BLC = self.digits.values(tokens_BLV).to(self.embed.weight)
        class_BSE = self.conditions(labels_B)[:, None].expand(*buffer.shape, -1)
        x_BSE = torch.cat([class_BSE, self.embed(values_BLC)], 1)
        x_BSE = self.embed_norm(x_BSE + self.encoder.positions)
        seen_BSF = self.bridge(self.encoder(at_places(x_BSE, kept)))
        x_BSF = self.mask.to(seen_BSF.dtype).expand(*x_BSE.shape[:2], -1).clone()
        x_BSF[kept] = seen_BSF.flatten(0, 1)
        places_BWF = at_places(self.places.expand(*wanted_BL.shape, -1), wanted_BL.nonzero(as_tuple=True))
        return self.decoder(x_BSF + self.decoder.positions, wanted) + places_BWF

    def loss(self, tokens_BLV: Tensor, masked_BL: Tensor, labels_B: Tensor) -> Tensor:
        """Cross-entropy of the tokens of masked positions, the mean over them."""
        features_MF = self.features(tokens_BLV, masked_BL, labels_B, masked_BL).flatten(0, 1)
        tokens_MV = self.in_order(tokens_BLV[masked_BL]).to(features_MF.device)
        most = CHUNK if features_MF.device.type == "cpu" else len(features_MF)
        sums = [
            F.cross_entropy(self.channels(some, right).flatten(0, 1).float(), right.flatten(), reduction="sum")
            for some, right in zip(features_MF.split(most), tokens_MV.split(most), strict=True)
        ]
        return torch.stack(sums).sum() / tokens_MV.numel()

    def logits(self, tokens_BLV: Tensor, masked_BL: Tensor, labels_B: Tensor) -> Tensor:
        """(M, V, K) of the masked positions, sample after sample, tokens in the order of the head."""
        features_BWF = self.features(tokens_BLV, masked_BL, labels_B, masked_BL)
        return self.channels(features_BWF.flatten(0, 1), self.in_order(tokens_BLV[masked_BL]))

    def in_order(self, tokens: Tensor) -> Tensor:
        """(..., V) in the order of the head."""
        return tokens if self.config.order is None else tokens[..., list(self.config.order)]

    def out_of_order(self, tokens: Tensor) -> Tensor:
        """The inverse of ``in_order``."""
        if self.config.order is None:
            return tokens
        return tokens[..., torch.tensor(list(self.config.order)).argsort().to(tokens.device)]


class Trunk(nn.Module):
    """Positions, blocks and a last norm of MAR's encoder or decoder; who calls it adds the positions."""

    def __init__(self, width: int, depth: int, heads: int, places: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, places, width))
        self.blocks = nn.ModuleList(TrunkBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x_BLD: Tensor, wanted: Places | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, W, D) of the wanted ones, which is less work in the last block."""
        *before, last = self.blocks
        for block in before:
            x_BLD = block(x_BLD)
        return self.norm(last(x_BLD, wanted))


class TrunkBlock(nn.Module):
    """Pre-norm attention among all positions, and MLP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = ExactMLP(width, 4 * width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, wanted: Places | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, W, D) of the wanted ones."""
        seen_BLD = self.attention(self.norm1(x_BLD), wanted=wanted)
        x_BLD = (x_BLD if wanted is None else at_places(x_BLD, wanted)) + self.dropout(seen_BLD)
        return x_BLD + self.mlp(self.norm2(x_BLD))


def masked_first(orders_BL: Tensor, count: int) -> Tensor:
    """(B, L) bool: the first ``count`` positions of each order are masked."""
    masked_BL = torch.zeros_like(orders_BL, dtype=torch.bool)
    return masked_BL.scatter(1, orders_BL[:, :count], True)


def masked_counts(positions: int, iterations: int) -> list[int]:
    """How many positions are masked after each iteration, the last of them 0: a quarter of a cosine (MaskGIT).

    Each iteration decides at least one position; there are fewer iterations where there are fewer positions.
    """
    counts = [positions]
    for number in range(1, iterations):
        ahead = math.floor(positions * math.cos(math.pi / 2 * number / iterations))
        if counts[-1] == 1:
            break
        counts.append(max(1, min(counts[-1] - 1, ahead)))
    return [*counts[1:], 0]
