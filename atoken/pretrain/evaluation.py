"""A small evaluation between training steps: the same held-out samples each time, as numbers and as one image grid.

Its numbers are for the curve of one run; how good a model is, the evaluation harness measures (``eval/``). Shape
letters: ``B`` samples, ``T`` frames, ``H`` rows and ``W`` columns of pixels, ``D`` the width of vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from atoken.cameras import Cameras
from atoken.data.synthetic.labelled import FIGURE_PROMPTS, WAYS, labelled_image
from atoken.data.synthetic.procedural import SyntheticFrames, make_image, make_video
from atoken.metrics.pixels import psnr
from atoken.metrics.ranking import share_in_top
from atoken.modalities.pixels import patchify, to_uint8, to_values, unpatchify
from atoken.modalities.views import render_views
from atoken.modalities.voxels import VALUES, unvoxelize
from atoken.model import ATokenModel
from atoken.pretrain.crops import WHOLE, Crop, crop
from atoken.text import TextTokenizer
from atoken.tokens import SparseTokens

SEED = 2_000_003  # of series that no stage trains on and no benchmark uses
IMAGES, VIDEOS, ASSETS = 32, 4, 2
SIDE, FRAMES, VOXELS, VIEWS = 128, 16, 2048, 2  # pixels of all that is shown; of a video; of a crop; of a whole asset
SHOWN = 8  # samples in a row of the image grid
GAP = 4  # pixels between its rows
HELD_OUT = "held-out/psnr"
MOST_OWN = 100  # of the user's held-out images are measured
RISING = ("psnr", "zero-shot")  # its numbers that are better high: all

Shown = tuple[np.ndarray, np.ndarray]  # originals and reconstructions, (any number, H, W, 3) uint8
Found = tuple[dict[str, float], Shown | None]


@dataclass(frozen=True)
class HeldOut:
    """Held-out samples by what is compared; none where a stage has no task of that modality."""

    images: Sequence[SyntheticFrames] = ()
    labelled: Sequence[SyntheticFrames] = ()  # images, one of each class
    videos: Sequence[SyntheticFrames] = ()
    crops: Sequence[Crop] = ()  # for the colours of voxels
    assets: Sequence[Crop] = ()  # whole ones, for what cameras see of their Gaussians
    own: Sequence[np.ndarray] = ()  # images of the user's that are held out, (1, H, W, 3) uint8

    @staticmethod
    def of(modalities: Collection[str]) -> HeldOut:
        """For the modalities of a stage's tasks. Raises: MissingExtraError (assets without the extra ``3d``)."""
        crops = ASSETS * (not {"asset", "crop"}.isdisjoint(modalities))
        return HeldOut(
            [make_image(SEED, index, SIDE, SIDE) for index in range(IMAGES * ("image" in modalities))],
            [labelled_image(SEED, index, SIDE, SIDE) for index in range(WAYS * ("image" in modalities))],
            [make_video(SEED, index, FRAMES, SIDE, SIDE) for index in range(VIDEOS * ("video" in modalities))],
            [crop(SEED, index, VOXELS) for index in range(crops)],
            [crop(SEED, index, WHOLE) for index in range(ASSETS * ("surface" in modalities))],
        )


@torch.inference_mode()
def evaluate(
    model: ATokenModel, held_out: HeldOut, texts: TextTokenizer | None
) -> tuple[dict[str, float], np.ndarray | None]:
    """Numbers by name, and an image grid (H, W, 3) uint8 of originals, each row above that of their reconstructions.

    ``image/psnr``, ``video/psnr``, ``asset/psnr`` (patches of voxels), ``gaussians/psnr`` (views of whole assets) and
    ``held-out/psnr`` (the user's images) in dB: each the mean over samples of the PSNR of each, as in the evaluation
    harness. With a text side also
    ``image/zero-shot``: the share of labelled images that are nearest to the prompt of their own class. The grid is
    None where there is nothing to show.
    """
    found = []
    if held_out.images:
        found.append(_of_frames(model, "image", held_out.images))
    if held_out.labelled and texts is not None and model.text_tower is not None:
        found.append(_zero_shot(model, held_out.labelled, texts))
    if held_out.videos:
        found.append(_of_frames(model, "video", held_out.videos))
    if held_out.crops:
        found.append(_of_voxels(model, held_out.crops))
    if held_out.assets:
        found.append(_of_gaussians(model, held_out.assets))
    if held_out.own:
        pairs = [(reconstructed(model, image[None])[0], image) for image in held_out.own]
        found.append(({HELD_OUT: _mean_psnr(*zip(*pairs, strict=True))}, None))
    numbers = {name: number for part, _ in found for name, number in part.items()}
    return numbers, _image_grid([shown for _, shown in found if shown is not None])


def _of_frames(model: ATokenModel, modality: str, samples: Sequence[SyntheticFrames]) -> Found:
    originals = np.stack([sample.frames for sample in samples])
    prediction, middle = reconstructed(model, originals), originals.shape[1] // 2
    return {f"{modality}/psnr": _mean_psnr(prediction, originals)}, (originals[:, middle], prediction[:, middle])


def _zero_shot(model: ATokenModel, samples: Sequence[SyntheticFrames], texts: TextTokenizer) -> Found:
    packed = SparseTokens.pack([patchify(to_values(sample.frames)) for sample in samples])
    prompts = model.encode_text(texts(FIGURE_PROMPTS).to(model.device))
    return {"image/zero-shot": top_1(model.encode(packed.to(model.device)).pooled, prompts)}, None


def _of_voxels(model: ATokenModel, crops: Sequence[Crop]) -> Found:
    voxels = SparseTokens.pack([one.tokens for one in crops])
    _, decoded = model(voxels.to(model.device))
    return {"asset/psnr": _mean_psnr(*(map(unvoxelize, tokens.unpack()) for tokens in (decoded, voxels)))}, None


def _of_gaussians(model: ATokenModel, assets: Sequence[Crop]) -> Found:
    assert model.gaussian_decoder is not None  # the stage's preset has one
    cameras, targets, predictions = Cameras.turntable(VIEWS), [], []
    for asset in assets:
        voxels = asset.tokens.with_feats(asset.tokens.feats[:, :VALUES]).to(model.device)
        (gaussians,) = model.gaussian_decoder(voxels)
        predictions.append(to_uint8(gaussians.render(cameras.to(model.device), SIDE).float().mul(2).sub(1)))
        targets.append(render_views(asset.mesh, cameras, SIDE).rgb)
    shown = np.concatenate(targets), np.concatenate(predictions)
    return {"gaussians/psnr": _mean_psnr(predictions, targets)}, shown


def reconstructed(model: ATokenModel, frames_BTHW3: np.ndarray) -> np.ndarray:
    """What the model reconstructs of images (T = 1) or videos of one size: uint8 of the same shape."""
    packed = SparseTokens.pack([patchify(to_values(frames)) for frames in frames_BTHW3])
    _, decoded = model(packed.to(model.device))
    size = frames_BTHW3.shape[1:4]
    return np.stack([to_uint8(unpatchify(sample, *size)) for sample in decoded.unpack()])


def top_1(images_BD: Tensor, texts_BD: Tensor) -> float:
    """Share of images that are nearer to the text of the same row than to any other.

    Ties, and what is not finite, are misses.
    """
    cosines = normalize(images_BD, dim=-1) @ normalize(texts_BD, dim=-1).T
    return share_in_top(cosines.float().cpu().numpy(), np.eye(len(cosines), dtype=bool))


def _mean_psnr(predictions: Iterable[np.ndarray], targets: Iterable[np.ndarray]) -> float:
    return fmean(psnr(prediction, target) for prediction, target in zip(predictions, targets, strict=True))


def _image_grid(shown: Sequence[Shown]) -> np.ndarray | None:
    rows = [np.concatenate(list(side[:SHOWN]), axis=1) for pair in shown for side in pair]
    width = max((row.shape[1] for row in rows), default=0)
    padded = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return np.concatenate(padded) if padded else None
