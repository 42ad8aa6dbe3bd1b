"""A small evaluation between steps of training: the same held-out samples each time, as numbers and as one image.

Its numbers are for the curve of one run; what a model is worth, larger benchmarks say. Letters: ``B`` samples, ``V``
views, ``T`` frames, ``H`` rows and ``W`` columns of pixels, ``D`` the width of vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from atoken.data.synthetic.labelled import FIGURE_PROMPTS, WAYS, labelled_image
from atoken.data.synthetic.procedural import Sample, make_image, make_video
from atoken.metrics.pixels import psnr
from atoken.metrics.ranking import share_in_top
from atoken.modalities.pixels import patchify, to_uint8, to_values, unpatchify
from atoken.modalities.voxels import VALUES, unvoxelize
from atoken.model import ATokenModel
from atoken.pretrain.parts import WINDOW, Images, Part, images, part
from atoken.rasterize import rasterize
from atoken.text import TextTokenizer
from atoken.tokens import SparseTokens

SEED = 2_000_003  # of series that no stage trains on and no benchmark uses
IMAGES, VIDEOS, PARTS = 32, 4, 2
SIDE, FRAMES, VOXELS, VIEWS = 128, 16, 2048, 2  # pixels of an image and of a video; of a video; of a part; of a part
SHOWN = 8  # in a line of the sheet
GAP = 4  # pixels between lines

Shown = tuple[np.ndarray, np.ndarray]  # originals and reconstructions, (any number, H, W, 3) uint8
Found = tuple[dict[str, float], Shown | None]


@dataclass(frozen=True)
class HeldOut:
    """Samples by what is compared; none where a stage has no task of that modality."""

    images: Sequence[Sample] = ()
    named: Sequence[Sample] = ()  # labelled images, one of each class, to be named
    videos: Sequence[Sample] = ()
    parts: Sequence[Part] = ()  # for the colours of voxels
    views: Sequence[tuple[Part, Images]] = ()  # for what cameras see of Gaussians

    @staticmethod
    def of(media: Collection[str]) -> HeldOut:
        """For the media of a stage's tasks. Raises: MissingExtraError without the extra ``3d``, where parts need it."""
        of_voxels, of_gaussians = (
            not {*names}.isdisjoint(media) for names in (("asset", "part"), ("surface", "views"))
        )
        made = [part(SEED, index, VOXELS) for index in range(PARTS * (of_voxels or of_gaussians))]
        return HeldOut(
            [make_image(SEED, index, SIDE, SIDE) for index in range(IMAGES * ("image" in media))],
            [labelled_image(SEED, index, SIDE, SIDE) for index in range(WAYS * ("image" in media))],
            [make_video(SEED, index, FRAMES, SIDE, SIDE) for index in range(VIDEOS * ("video" in media))],
            made if of_voxels else (),
            [(one, images(one, SEED, index, VIEWS)) for index, one in enumerate(made) if of_gaussians],
        )


@torch.inference_mode()
def evaluate(
    model: ATokenModel, held_out: HeldOut, texts: TextTokenizer | None
) -> tuple[dict[str, float], np.ndarray | None]:
    """``image/psnr``, ``video/psnr``, ``asset/psnr`` (patches of voxels), ``gaussians/psnr`` (images of them), in dB.

    Each is that of the mean squared error over all samples. With a text side also ``image/zero-shot``: the share of
    labelled images that are named right out of all classes. The second is a sheet (H, W, 3) uint8 of originals, each
    line above that of reconstructions; None where nothing can be shown.
    """
    found = []
    if held_out.images:
        found.append(_of_images(model, held_out.images))
    if held_out.named and texts is not None and model.text_tower is not None:
        found.append(_of_names(model, held_out.named, texts))
    if held_out.videos:
        found.append(_of_videos(model, held_out.videos))
    if held_out.parts:
        found.append(_of_voxels(model, held_out.parts))
    if held_out.views:
        found.append(_of_gaussians(model, held_out.views))
    numbers = {name: number for part, _ in found for name, number in part.items()}
    return numbers, _sheet([shown for _, shown in found if shown is not None])


def _of_images(model: ATokenModel, samples: Sequence[Sample]) -> Found:
    originals = np.stack([sample.frames for sample in samples])
    prediction = reconstructed(model, originals)
    return {"image/psnr": psnr(prediction, originals)}, (originals[:, 0], prediction[:, 0])


def _of_names(model: ATokenModel, samples: Sequence[Sample], texts: TextTokenizer) -> Found:
    packed = SparseTokens.pack([patchify(to_values(sample.frames)) for sample in samples])
    prompts = model.encode_text(texts(FIGURE_PROMPTS).to(model.device))
    return {"image/zero-shot": top_1(model.encode(packed.to(model.device)).pooled, prompts)}, None


def _of_videos(model: ATokenModel, samples: Sequence[Sample]) -> Found:
    originals = np.stack([sample.frames for sample in samples])
    prediction = reconstructed(model, originals)
    return {"video/psnr": psnr(prediction, originals)}, (originals[:, FRAMES // 2], prediction[:, FRAMES // 2])


def _of_voxels(model: ATokenModel, parts: Sequence[Part]) -> Found:
    voxels = SparseTokens.pack([one.tokens for one in parts])
    _, decoded = model(voxels.to(model.device))
    return {"asset/psnr": psnr(unvoxelize(decoded), unvoxelize(voxels))}, None


def _of_gaussians(model: ATokenModel, views: Sequence[tuple[Part, Images]]) -> Found:
    seen = [_seen(model, of.tokens, pictured) for of, pictured in views]
    target, prediction, counts = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
    shown = target * counts[..., None], prediction * counts[..., None]
    return {"gaussians/psnr": psnr(prediction[counts], target[counts])}, shown


def reconstructed(model: ATokenModel, frames_BTHW3: np.ndarray) -> np.ndarray:
    """What comes back of images (T = 1) or videos of one size, as they came."""
    packed = SparseTokens.pack([patchify(to_values(frames)) for frames in frames_BTHW3])
    _, decoded = model(packed.to(model.device))
    size = frames_BTHW3.shape[1:4]
    return np.stack([to_uint8(unpatchify(sample, *size)) for sample in decoded.unpack()])


def top_1(images_BD: Tensor, texts_BD: Tensor) -> float:
    """Share of images that are nearer to the text of the same row than to any other.

    Ties, and what is not finite, are misses.
    """
    cosines = normalize(images_BD, dim=-1) @ normalize(texts_BD, dim=-1).T
    return share_in_top(cosines.cpu().numpy(), np.eye(len(cosines), dtype=bool))


def _seen(model: ATokenModel, voxels: SparseTokens, views: Images) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views and what cameras see there of the Gaussians, (V, H, W, 3) uint8, and which pixels count, (V, H, W)."""
    assert model.gaussian_decoder is not None  # the stage's preset has one
    (gaussians,) = model.gaussian_decoder(voxels.with_feats(voxels.feats[:, :VALUES]).to(model.device))
    drawn = rasterize(gaussians.splats, views.cameras.to(model.device), (WINDOW, WINDOW)).rgb
    target, prediction = (to_uint8(rgb.float().mul(2).sub(1)) for rgb in (views.rgb, drawn))
    return target, prediction, views.counts.numpy()


def _sheet(shown: Sequence[Shown]) -> np.ndarray | None:
    lines = [np.concatenate(list(side[:SHOWN]), axis=1) for pair in shown for side in pair]
    width = max((line.shape[1] for line in lines), default=0)
    padded = [np.pad(line, ((0, GAP), (0, width - line.shape[1]), (0, 0))) for line in lines]
    return np.concatenate(padded) if padded else None
