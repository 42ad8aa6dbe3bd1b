"""``ImageTo3DPipeline``: assets from images, first which voxels they fill, then the tokens of these.

Letters: ``B`` assets, ``N`` voxels of all of them, ``C`` channels, ``L`` features of an image, ``E`` their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from atoken.errors import AtokenError
from atoken.io import Image, read_image
from atoken.io.token_file import Tokens
from atoken.modalities.voxels import MAX_TOKENS
from atoken.tokens import SparseTokens
from generation.guidance import Guidance, Velocity, guided
from generation.pipelines.of_tokens import OnStepEnd, TokenPipeline, each_generator
from generation.sampling import sigma_steps
from generation.slat import SlatFlow
from generation.structure import StructureFlow, StructureVAE
from generation.vision import ImageEncoder, image_encoder_of, load_image_encoder, squares

OUTPUTS = ("gaussians", "tokens", "latent")
Combine = Literal["stochastic", "average"]
Pixels = Any  # a path, ``atoken.Image``, PIL image, or (H, W, 3) or (H, W, 4) uint8


@dataclass
class AssetOutput(BaseOutput):
    """``assets``: a list of ``Gaussians``, of ``Tokens``, or of ``SparseTokens`` of latents, not normalised."""

    assets: Any


class ImageTo3DPipeline(TokenPipeline):
    """One asset for each image, or for several images of one thing.

    vae, structure, slat: in the order of their training; a pipeline of the first ones alone is what the next training
    starts from. condition: of the images, as ``vision.load_image_encoder`` takes it, or "" for the tower of the
    tokenizer itself; condition_side: S of its squares. The rest is as in ``TokenPipeline``.
    """

    model_cpu_offload_seq = "structure->vae->slat"
    _optional_components = ["vae", "structure", "slat"]  # noqa: RUF012 - as diffusers reads it

    def __init__(
        self,
        vae: StructureVAE | None = None,
        structure: StructureFlow | None = None,
        slat: SlatFlow | None = None,
        tokenizer: str = "nano",
        fingerprint: str = "",
        latents_mean: list[float] | tuple[float, ...] = (),
        latents_std: list[float] | tuple[float, ...] = (),
        condition: str = "",
        condition_side: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, structure=structure, slat=slat)
        self.register_to_config(
            tokenizer=tokenizer, fingerprint=fingerprint, latents_mean=list(latents_mean),
            latents_std=list(latents_std), condition=condition, condition_side=condition_side,
        )  # fmt: skip
        self._encoder: ImageEncoder | None = None

    @property
    def encoder(self) -> ImageEncoder:
        """What makes conditions of images, loaded when it is first needed."""
        if self._encoder is None:
            source, side = self.config.condition, self.config.condition_side
            self._encoder = load_image_encoder(source, side) if source else image_encoder_of(self.coder, side)
        return self._encoder.to(self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        image: Pixels | Sequence[Pixels],
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 8.5,
        slat_guidance_scale: float = 4.0,
        guidance_interval: tuple[float, float] = (0.5, 1.0),
        shift: float = 3.0,
        solver: str = "euler",
        combine: Combine = "stochastic",
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "gaussians",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> AssetOutput | tuple[Any]:
        """Assets, whose front is where their training has it, with z up.

        image: one, a list of one for each asset, or a list of lists of as many images of each asset. Its alpha,
        or a plain background, says what the thing is. num_inference_steps: of each of both stages.
        guidance_scale, slat_guidance_scale: of structure and of latents, 1 is none (TRELLIS's cfg_strength and
        1). shift: of sigma (its rescale_t). combine: of several images, one a step in turn, or the mean of
        their velocities. generator: one for each asset, or one from which theirs are drawn; an asset does not
        depend on the others. output_type: ``gaussians``, ``tokens``, ``latent``. callback_on_step_end: as of
        the other pipelines, of one stage after the other, whose latents are (B, C, X, Y, Z), then (N, C).
        Raises: AtokenError.
        """
        if output_type not in OUTPUTS:
            raise AtokenError(f"There is no output type {output_type}; there are {', '.join(OUTPUTS)}.")
        if combine not in ("stochastic", "average"):
            raise AtokenError(f"Several images are combined as stochastic or average, not {combine}.")
        if None in (self.vae, self.structure, self.slat):
            raise AtokenError(
                "This pipeline is not whole: train structure-vae, structure and slat, one --start of the other."
            )
        conditions = self._conditions(image)
        generators = each_generator(generator, len(conditions[0]), "assets")
        sigmas = sigma_steps(num_inference_steps, shift)

        def flow(network: Callable[..., Tensor], noise: Tensor, scale: float) -> Tensor:
            guidance = Guidance(scale, guidance_interval)
            velocities = [guided(network, one, torch.zeros_like(one), guidance) for one in conditions]
            return self.flowed(_combined(velocities, sigmas, combine), noise, sigmas, solver, callback_on_step_end)

        voxels = self._structure(flow, generators, guidance_scale)
        latents = self._latents(flow, voxels, generators, slat_guidance_scale)
        assets = self._output(latents, output_type)
        return AssetOutput(assets) if return_dict else (assets,)

    def _conditions(self, image: Pixels | Sequence[Pixels]) -> list[Tensor]:
        """(B, L, E) of the first image of each asset, of the second, and so on."""
        assets = [one if isinstance(one, list | tuple) else [one] for one in _listed(image)]
        if not assets or min(map(len, assets)) < 1 or len({len(one) for one in assets}) != 1:
            raise AtokenError("Give at least one image, and as many images of each asset.")
        encoder = self.encoder
        return [
            encoder(squares([_image(one) for one in row], encoder.side)) for row in zip(*assets, strict=True)
        ]  # fmt: skip

    def _structure(
        self, flow: Callable[..., Tensor], generators: Sequence[torch.Generator], scale: float
    ) -> SparseTokens:
        """The voxels of each asset, in order of x, y, z, without features. Raises: AtokenError (none, too many)."""
        config, device = self.structure.config, self._execution_device
        shape = (config.channels, *(config.side,) * 3)
        noise = torch.stack([torch.randn(shape, generator=one) for one in generators]).to(device)
        latents = flow(self._dense, noise, scale)
        logits = self.vae.decode(self.vae.statistics.denormalise(latents).to(self.vae.dtype))
        cells = [(one[0] > 0).nonzero() for one in logits.cpu()]
        for number, one in enumerate(cells):
            if not 0 < len(one) <= MAX_TOKENS:
                what = f"of {len(one):,} voxels, over the limit of {MAX_TOKENS:,}" if len(one) else "empty"
                raise AtokenError(f"The structure of asset {number} came out {what}; try another seed or image.")
        coords = torch.nn.functional.pad(torch.cat(cells), (1, 0)).int().to(device)
        return SparseTokens(torch.empty(len(coords), 0, device=device), coords, tuple(map(len, cells)))

    def _dense(self, x: Tensor, sigma_B: Tensor, condition_BLE: Tensor) -> Tensor:
        return self.structure(x.to(self.structure.dtype), sigma_B, condition_BLE)

    def _latents(
        self, flow: Callable[..., Tensor], voxels: SparseTokens, generators: Sequence[torch.Generator], scale: float
    ) -> SparseTokens:
        channels, samples = self.slat.config.channels, len(voxels.lengths)
        noise = torch.cat([
            torch.randn(length, channels, generator=one)
            for length, one in zip(voxels.lengths, generators, strict=True)
        ]).to(self._execution_device)  # fmt: skip

        def network(x_NC: Tensor, sigma_N: Tensor, condition_BLE: Tensor) -> Tensor:
            times = len(condition_BLE) // samples
            packed = SparseTokens(
                x_NC.to(self.slat.dtype), voxels.coords.repeat(times, 1), voxels.lengths * times
            )  # fmt: skip
            return self.slat(packed, sigma_N[:1].expand(len(condition_BLE)), condition_BLE)

        latents = flow(network, noise, scale)
        return voxels.with_feats(self.statistics.denormalise(latents) if self.statistics else latents)

    def _output(self, latents: SparseTokens, output_type: str) -> list[Any]:
        each = latents.to("cpu").unpack()
        if output_type == "latent":
            return each
        coder, side = self.coder, self.vae.config.side
        tokens = [
            Tokens(
                modality="asset", size=(side, side), name="",
                latents=one.feats.float(), codes=None, coords=one.coords, pooled=None, model=coder.name,
                fingerprint=coder.fingerprint, levels=coder.model.config.fsq_levels,
            )
            for one in each
        ]  # fmt: skip
        return tokens if output_type == "tokens" else list(coder.decode_batch(tokens))


def _combined(velocities: Sequence[Velocity], sigmas: Sequence[float], combine: Combine) -> Velocity:
    """One velocity of several: at each sigma of the list another one, or their mean."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        if combine == "average":
            return torch.stack([one(x, sigma) for one in velocities]).mean(0)
        return velocities[sigmas.index(sigma) % len(velocities)](x, sigma)

    return velocity


def _listed(image: Any) -> Sequence[Any]:
    return image if isinstance(image, list | tuple) else [image]


def _image(image: Pixels) -> Image:
    """With alpha, if it has any. Raises: AtokenError."""
    if isinstance(image, Image):
        return image
    if isinstance(image, PIL.Image.Image):
        image = np.array(image.convert("RGBA"))
    if not isinstance(image, np.ndarray):
        return read_image(image)
    return Image(np.ascontiguousarray(image[..., :3]), image[..., 3].copy() if image.shape[-1] == 4 else None)
