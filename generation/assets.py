"""What is trained to make assets: an autoencoder of occupancy, and flows of its latents and of those of voxels.

The losses are TRELLIS's (Xiang et al. 2024). Letters: ``B`` samples, ``C`` channels, ``L`` features of an image, ``E``
their width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.statistics import Sums
from atoken.store.batches import StoreBatch
from atoken.tokens import SparseTokens
from generation.flow import drawn_sigmas, mixed
from generation.objectives import DROPPED, Generation
from generation.slat import SlatFlow
from generation.structure import StructureFlow, StructureVAE, occupancy
from generation.views import AssetBatch
from generation.vision import ImageEncoder

KL = 1e-3  # weight of the divergence of structure latents from a normal distribution
NOISY = 1.0  # mean of the logits of sigma: more of the path near noise

F3 = TypeVar("F3", StructureFlow, SlatFlow)


class StructureVAEObjective(Generation[StructureVAE]):
    """Cross-entropy of cells, and the divergence of latents from a normal distribution."""

    def forward(self, batch: StoreBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, its two terms, and the intersection over union of occupied cells."""
        voxels, draws = _voxels(batch), torch.Generator().manual_seed(batch.noise % 2**63)
        occupied = occupancy(voxels, self.model.config.side)
        mean, logvar = self.model.encode(occupied)
        noise = torch.randn(mean.shape, generator=draws).to(mean)
        logits = self.model.decode(mean + (0.5 * logvar).exp() * noise).float()
        cells = F.binary_cross_entropy_with_logits(logits, occupied)
        divergence = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
        found, true = logits.detach() > 0, occupied > 0
        iou = (found & true).sum() / (found | true).sum().clamp_min(1)
        terms = {"cells": cells.detach(), "divergence": divergence.detach(), "iou": iou}
        return cells + KL * divergence, terms

    def layout(self, batch: StoreBatch) -> Hashable:
        """Samples; their grids are alike."""
        return batch.samples

    def on_meta(self, batch: StoreBatch) -> tuple[Self, StoreBatch]:
        """As of others."""
        with torch.device("meta"):
            twin = type(self)(StructureVAE.from_config(self.model.config))
        return twin, _on_meta(batch)


class AssetFlowObjective(Generation[F3]):
    """Mean square of velocities, of assets with an image of each.

    encoder: frozen, and no part of what is trained or saved. An image is dropped as often as a label is.
    """

    def __init__(self, model: F3, encoder: Callable[[Tensor], Tensor]) -> None:
        super().__init__(model)
        self._encoders = (encoder,)  # not among the modules of the objective

    def forward(self, batch: StoreBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss."""
        assert isinstance(batch, AssetBatch)
        draws = torch.Generator().manual_seed(batch.noise % 2**63)
        device = _voxels(batch).feats.device
        sigma_B = drawn_sigmas(batch.samples, draws, mean=NOISY).to(device)
        kept_B = (torch.rand(batch.samples, generator=draws) >= DROPPED).to(device)
        (encoder,) = self._encoders
        encoder = encoder.to(device) if isinstance(encoder, ImageEncoder) else encoder
        condition_BLE = encoder(batch.images.float() / 255) * kept_B[:, None, None]
        loss = self.loss(batch, sigma_B, condition_BLE, draws)
        return loss, {"square": loss.detach()}

    @abstractmethod
    def loss(self, batch: StoreBatch, sigma_B: Tensor, condition_BLE: Tensor, draws: torch.Generator) -> Tensor:
        """Mean square of velocities at these sigmas, in fp32."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Of the transformer."""
        return list(self.model.trunk.blocks)

    def counting(self, batch: StoreBatch) -> Callable[[Tensor], Tensor]:
        """An encoder to count with, whose features take no memory."""
        assert isinstance(batch, AssetBatch)
        _, length, width = self._encoders[0](batch.images[:1].float() / 255).shape
        return partial(_empty, length=length, width=width)


class StructureObjective(AssetFlowObjective[StructureFlow]):
    """Of the latents of occupancy, by a frozen autoencoder, which is no part of what is trained or saved."""

    def __init__(self, model: StructureFlow, encoder: Callable[[Tensor], Tensor], vae: StructureVAE) -> None:
        super().__init__(model, encoder)
        self._vaes = (vae.eval().requires_grad_(False),)

    def loss(self, batch: StoreBatch, sigma_B: Tensor, condition_BLE: Tensor, draws: torch.Generator) -> Tensor:
        """Of dense latents."""
        data = self._latents(_voxels(batch))
        noise = torch.randn(data.shape, generator=draws).to(data)
        return _square(self.model(mixed(data, noise, sigma_B), sigma_B, condition_BLE), data, noise)

    @torch.no_grad()
    def _latents(self, voxels: SparseTokens) -> Tensor:
        device, (vae,) = voxels.feats.device, self._vaes
        if device.type == "meta":
            return torch.empty(len(voxels.lengths), vae.config.latents, *(vae.latents_side,) * 3, device=device)
        with torch.autocast(device.type, enabled=False):
            mean, _ = vae.to(device).encode(occupancy(voxels, vae.config.side))
        return vae.statistics.normalise(mean)

    def layout(self, batch: StoreBatch) -> Hashable:
        """Samples; their grids are alike."""
        return batch.samples

    def on_meta(self, batch: StoreBatch) -> tuple[Self, StoreBatch]:
        """As of others, without the work of the image encoder."""
        with torch.device("meta"):
            model = StructureFlow.from_config(self.model.config)
        return type(self)(model, self.counting(batch), self._vaes[0]), _on_meta(batch)


class SlatObjective(AssetFlowObjective[SlatFlow]):
    """Of the latents of voxels, normalised by channel."""

    def loss(self, batch: StoreBatch, sigma_B: Tensor, condition_BLE: Tensor, draws: torch.Generator) -> Tensor:
        """Of packed latents; an asset counts as its voxels do."""
        voxels = _voxels(batch)
        noise = torch.randn(voxels.feats.shape, generator=draws).to(voxels.feats)
        point = mixed(voxels.feats, noise, sigma_B[voxels.sample_N.to(sigma_B.device)])
        return _square(self.model(voxels.with_feats(point), sigma_B, condition_BLE), voxels.feats, noise)

    def work(self, batch: StoreBatch) -> Hashable:
        """Voxels of the samples: how many neighbours they have is taken to be alike."""
        return tuple(sorted(_voxels(batch).lengths))

    def on_meta(self, batch: StoreBatch) -> tuple[Self, StoreBatch]:
        """As of others, without the work of the image encoder."""
        with torch.device("meta"):
            model = SlatFlow.from_config(self.model.config)
        return type(self)(model, self.counting(batch)), _on_meta(batch)


def structure_statistics(vae: StructureVAE, occupied: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of the latents of grids (1, 1, S, S, S)."""
    sums = Sums(vae.config.latents)
    with torch.no_grad():
        for grid in occupied:
            mean, _ = vae.encode(grid)
            sums.add(mean.flatten(2).transpose(1, 2).flatten(0, 1))
    found = sums.statistics()
    return found.mean, found.std


def _square(velocity: Tensor, data: Tensor, noise: Tensor) -> Tensor:
    return F.mse_loss(velocity.float(), (noise - data).float())


def _voxels(batch: StoreBatch) -> SparseTokens:
    assert isinstance(batch.latents, SparseTokens)
    return batch.latents


def _on_meta(batch: StoreBatch) -> StoreBatch:
    """Coordinates stay on the host."""
    there = batch.to("cpu")
    voxels = _voxels(there)
    return replace(there, latents=voxels.with_feats(voxels.feats.to("meta")))


def _empty(images: Tensor, length: int, width: int) -> Tensor:
    return torch.empty(len(images), length, width, device="meta")
