"""Loss terms as pure functions; weights and sums belong to the stage (paper section 3.3).

Every term takes a step: what went in, what came out. ``Step`` is of the tokenizer, ``GaussianStep`` of its Gaussian
decoder. Shape letters: ``atoken/tokens.py``; ``L`` are the ids of a text, ``E`` is the width of the space that images
and texts share, ``M`` are Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.data.mixing import hashed
from atoken.gaussian_decoder import RESOLUTION
from atoken.gaussians import Gaussians
from atoken.metrics import vgg
from atoken.modalities.pixels import unpatchify
from atoken.model import ATokenModel, Encoded
from atoken.patches import PATCH
from atoken.pretrain.alignment import distillation, sigmoid_loss
from atoken.pretrain.crops import SurfaceTargets
from atoken.pretrain.teachers import NO_TEACHERS, Teachers, cosine_distance, image_features, siglip_images, siglip_texts
from atoken.text import TextTokenizer
from atoken.tokens import SparseTokens

GRAIN = 0.12  # voxels: the scale at which the Gaussians of a voxel just cover its piece of the surface
TEMPERATURE = 2.0  # of the distillation (paper section 3.3)
CUT = 64  # pixels of a side of what ST-LPIPS sees


@dataclass(frozen=True)
class Step:
    """One micro-batch and the networks; each result is computed once, when the first term asks for it.

    inputs: patches (N, P), P = 768 of images and voxels, 3072 of videos. captions: one for each sample, "" if it has
    none. noise: the generator with which latents are drawn from the posterior; None: its mean is decoded. seed: of the
    places that are cut out. Which networks run depends on the terms alone, never on the samples: ranks that share
    weights (ZeRO-3) must all run the same ones in the same order.
    """

    model: ATokenModel
    inputs: SparseTokens
    captions: tuple[str, ...] = ()
    teachers: Teachers = NO_TEACHERS
    texts: TextTokenizer | None = None
    noise: torch.Generator | None = None
    seed: int = 0

    @cached_property
    def encoded(self) -> Encoded:
        """The inputs, encoded."""
        return self.model.encode(self.inputs)

    @cached_property
    def decoded(self) -> SparseTokens:
        """The reconstruction, patches (N, P) as those of the inputs."""
        latents = self.encoded.latents
        if self.noise is not None and self.encoded.codes is None:  # codes are not random
            latents = latents.with_feats(self.encoded.posterior.sample(self.noise))
        return self.model.decode(latents, values=self.inputs.feats.shape[1])

    @cached_property
    def visual_BE(self) -> Tensor:  # noqa: N802 - a shape suffix
        """Pooled vectors of length 1, fp32."""
        return F.normalize(self.encoded.pooled, dim=1)

    @cached_property
    def ids_BL(self) -> Tensor:  # noqa: N802 - a shape suffix
        """The captions as ids; a missing one is all padding."""
        assert self.texts is not None  # checked by Objective
        return self.texts(self.captions).to(self.inputs.feats.device)

    @cached_property
    def captioned_B(self) -> Tensor:  # noqa: N802 - a shape suffix
        """Bool: which samples have a caption."""
        return torch.tensor([caption != "" for caption in self.captions], device=self.inputs.feats.device)

    @cached_property
    def text_BE(self) -> Tensor:  # noqa: N802 - a shape suffix
        """The captions' vectors of length 1, fp32, by the model's own text tower."""
        return F.normalize(self.model.encode_text(self.ids_BL), dim=1)

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """Reconstructions and targets as perceptual networks see them, (B, 3, 224, 224) fp32 in [-1, 1]."""
        return _images(self.decoded), _images(self.inputs)

    @cached_property
    def features(self) -> tuple[vgg.Features, vgg.Features]:
        """Features of VGG-16 of both, for LPIPS and the Gram loss; without a gradient for targets."""
        assert self.teachers.vgg is not None  # checked by Objective
        return vgg.shared_pass(self.teachers.vgg, *self.images)

    @cached_property
    def cut_features(self) -> tuple[vgg.Features, vgg.Features]:
        """Features of ST-LPIPS's AlexNet of both, for its distance and Gram loss; without a gradient for targets.

        It sees a square of each image at a random place, at its own resolution; an image is enlarged if it is smaller.
        """
        assert self.teachers.stlpips is not None  # checked by Objective
        return vgg.shared_pass(
            self.teachers.stlpips.features, _cuts(self.decoded, self.seed), _cuts(self.inputs, self.seed)
        )


@dataclass(frozen=True)
class GaussianStep:
    """M Gaussians that the decoder made of a crop, and where they belong on its surface."""

    gaussians: Gaussians
    surface: SurfaceTargets


def l1(step: Step) -> Tensor:
    """Mean absolute difference of the patch values, in [-1, 1] units."""
    return (step.decoded.feats.float() - step.inputs.feats).abs().mean()


def kl(step: Step) -> Tensor:
    """KL divergence of the posterior to the unit Gaussian: sum over channels, mean over tokens."""
    return step.encoded.posterior.kl().mean()


def lpips(step: Step) -> Tensor:
    """LPIPS of images, mean over them."""
    assert step.teachers.heads is not None  # checked by Objective
    return vgg.lpips(*step.features, step.teachers.heads).mean()


def gram(step: Step) -> Tensor:
    """Squared distance of the Gram matrices of images, mean over them."""
    return vgg.gram(*step.features).mean()


def clip(step: Step) -> Tensor:
    """1 - cosine of the CLIP features of images, mean over them (the paper names no layer and no distance)."""
    assert step.teachers.clip is not None  # checked by Objective
    prediction, target = step.images
    with torch.no_grad():
        target = image_features(step.teachers.clip, target)
    return cosine_distance(image_features(step.teachers.clip, prediction), target).mean()


def stlpips(step: Step) -> Tensor:
    """ST-LPIPS of a piece of each image, mean over images."""
    assert step.teachers.stlpips is not None  # checked by Objective
    return vgg.lpips(*step.cut_features, tuple(step.teachers.stlpips.heads)).mean()


def stlpips_gram(step: Step) -> Tensor:
    """Squared distance of the Gram matrices of ST-LPIPS's features of a piece of each image, mean over images."""
    return vgg.gram(*step.cut_features).mean()


def semantics(step: Step) -> Tensor:
    """Divergence of images' similarities to the captions of all ranks from those of SigLIP2, mean over images.

    Texts are encoded by SigLIP2's frozen text tower. An image without a caption counts, but adds no text.
    """
    siglip = step.teachers.siglip
    assert siglip is not None  # checked by Objective
    teacher_BE, text_BE = siglip_images(siglip, step.inputs), siglip_texts(siglip, step.ids_BL)
    return distillation(
        step.visual_BE, teacher_BE, text_BE[step.captioned_B], siglip.logit_scale, temperature=TEMPERATURE
    )


def alignment(step: Step) -> Tensor:
    """The pairwise sigmoid loss of samples and captions of all ranks, mean over samples that have a caption."""
    return sigmoid_loss(
        step.visual_BE, step.text_BE, step.model.logit_scale, step.model.logit_bias, captioned_B=step.captioned_B
    )


def label_alignment(step: Step) -> Tensor:
    """As ``alignment``, but samples with the same caption match each other's: captions made of labels repeat."""
    # 62 bits: signed integers hold them.
    labels_B = torch.tensor([hashed(*caption.encode()) >> 2 for caption in step.captions], device=step.ids_BL.device)
    return sigmoid_loss(
        step.visual_BE, step.text_BE, step.model.logit_scale, step.model.logit_bias, captioned_B=step.captioned_B,
        labels_B=labels_B,
    )  # fmt: skip


def _images(tokens: SparseTokens) -> Tensor:
    """(B, 3, 224, 224) fp32 of images of any sizes; the aspect is not kept."""
    return torch.cat([vgg.resized(image_13HW) for image_13HW in _each(tokens)])


def _cuts(tokens: SparseTokens, seed: int) -> Tensor:
    """(B, 3, CUT, CUT) fp32, a piece of each image; the places depend on the seed and the sizes."""
    places, found = np.random.default_rng(seed), []
    for image_13HW in _each(tokens):
        top, left = (int(places.integers(max(size - CUT, 0) + 1)) for size in image_13HW.shape[2:])
        found.append(vgg.resized(image_13HW[:, :, top : top + CUT, left : left + CUT], CUT))
    return torch.cat(found)


def _each(tokens: SparseTokens) -> list[Tensor]:
    """(1, 3, H, W) of each image, on its full grid."""
    sizes = ((tokens.reduce_coords("amax")[:, 1:3] + 1) * PATCH[1]).tolist()
    return [
        unpatchify(sample, 1, *size).permute(0, 3, 1, 2) for sample, size in zip(tokens.unpack(), sizes, strict=True)
    ]


def position(step: GaussianStep) -> Tensor:
    """Mean city-block distance of the Gaussians from the surface, in voxels, of those that can reach it."""
    far_M = (step.gaussians.means - step.surface.points).abs().sum(-1) * RESOLUTION
    return _mean(far_M[step.surface.within & step.surface.counts])


def color(step: GaussianStep) -> Tensor:
    """Mean absolute difference of the colours from those of the surface, in 0..1, of those that can reach it."""
    return _mean((step.gaussians.colors - step.surface.colors).abs()[step.surface.within & step.surface.counts])


def size(step: GaussianStep) -> Tensor:
    """Mean absolute difference of the scales from ``GRAIN``, in voxels."""
    return _mean((step.gaussians.scales * RESOLUTION - GRAIN).abs()[step.surface.counts])


def opacity(step: GaussianStep) -> Tensor:
    """Cross-entropy of opacities with whether the Gaussian can reach the surface, mean over Gaussians."""
    right_M = step.gaussians.opacities.where(step.surface.within, 1 - step.gaussians.opacities)
    return _mean(-right_M.clamp_min(1e-6).log()[step.surface.counts])


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of nothing."""
    return values.mean() if len(values) else values.sum()
