"""A small evaluation between steps of training: the same held-out samples each time, as numbers and as one picture.

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

from atoken.data.labelled import FIGURE_PROMPTS, WAYS, labelled_picture
from atoken.data.procedural import Sample, clip, picture
from atoken.metrics import psnr
from atoken.modalities.pixels import patchify, to_uint8, to_values, unpatchify
from atoken.modalities.voxels import VALUES, unvoxelize
from atoken.model import ATokenModel
from atoken.rasterize import rasterize
from atoken.text import TextTokenizer
from atoken.tokens import SparseTokens
from atoken.train.parts import WINDOW, Part, Pictures, part, pictures

SEED = 2_000_003  # of series that no stage trains on and no benchmark uses
PICTURES, CLIPS, PARTS = 32, 4, 2
SIDE, FRAMES, VOXELS, VIEWS = 128, 16, 2048, 2  # pixels of a picture and of a clip; of a clip; of a part; of a part
SHOWN = 8  # in a line of the sheet
GAP = 4  # pixels between lines

Shown = tuple[np.ndarray, np.ndarray]  # originals and reconstructions, (any number, H, W, 3) uint8
Found = tuple[dict[str, float], Shown | None]


@dataclass(frozen=True)
class HeldOut:
    """Samples by what is compared; none where a stage has no task of that medium."""

    pictures: Sequence[Sample] = ()
    named: Sequence[Sample] = ()  # labelled pictures, one of each class, to be named
    clips: Sequence[Sample] = ()
    parts: Sequence[Part] = ()  # for the colours of voxels
    views: Sequence[tuple[Part, Pictures]] = ()  # for what cameras see of Gaussians

    @staticmethod
    def of(media: Collection[str]) -> HeldOut:
        """For the media of a stage's tasks. Raises: MissingExtraError without the extra ``3d``, where parts need it."""
        of_voxels, of_gaussians = (
            not {*names}.isdisjoint(media) for names in (("asset", "part"), ("surface", "views"))
        )
        made = [part(SEED, index, VOXELS) for index in range(PARTS * (of_voxels or of_gaussians))]
        return HeldOut(
            [picture(SEED, index, SIDE, SIDE) for index in range(PICTURES * ("image" in media))],
            [labelled_picture(SEED, index, SIDE, SIDE) for index in range(WAYS * ("image" in media))],
            [clip(SEED, index, FRAMES, SIDE, SIDE) for index in range(CLIPS * ("clip" in media))],
            made if of_voxels else (),
            [(one, pictures(one, SEED, index, VIEWS)) for index, one in enumerate(made) if of_gaussians],
        )


@torch.inference_mode()
def evaluate(
    model: ATokenModel, held_out: HeldOut, texts: TextTokenizer | None
) -> tuple[dict[str, float], np.ndarray | None]:
    """``image/psnr``, ``clip/psnr``, ``asset/psnr`` (patches of voxels), ``gaussians/psnr`` (pictures of them), in dB.

    Each is that of the mean squared error over all samples. With a text side also ``image/zero-shot``: the share of
    labelled pictures that are named right out of all classes. The second is a sheet (H, W, 3) uint8 of originals, each
    line above that of reconstructions; None where nothing can be shown.
    """
    found = []
    if held_out.pictures:
        found.append(_of_pictures(model, held_out.pictures))
    if held_out.named and texts is not None and model.text_tower is not None:
        found.append(_of_names(model, held_out.named, texts))
    if held_out.clips:
        found.append(_of_clips(model, held_out.clips))
    if held_out.parts:
        found.append(_of_voxels(model, held_out.parts))
    if held_out.views:
        found.append(_of_gaussians(model, held_out.views))
    numbers = {name: number for part, _ in found for name, number in part.items()}
    return numbers, _sheet([shown for _, shown in found if shown is not None])


def _of_pictures(model: ATokenModel, samples: Sequence[Sample]) -> Found:
    originals = np.stack([sample.frames for sample in samples])
    ours = reconstructed(model, originals)
    return {"image/psnr": psnr(ours, originals)}, (originals[:, 0], ours[:, 0])


def _of_names(model: ATokenModel, samples: Sequence[Sample], texts: TextTokenizer) -> Found:
    packed = SparseTokens.pack([patchify(to_values(sample.frames)) for sample in samples])
    prompts = model.encode_text(texts(FIGURE_PROMPTS).to(model.device))
    return {"image/zero-shot": top_1(model.encode(packed.to(model.device)).pooled, prompts)}, None


def _of_clips(model: ATokenModel, samples: Sequence[Sample]) -> Found:
    originals = np.stack([sample.frames for sample in samples])
    ours = reconstructed(model, originals)
    return {"clip/psnr": psnr(ours, originals)}, (originals[:, FRAMES // 2], ours[:, FRAMES // 2])


def _of_voxels(model: ATokenModel, parts: Sequence[Part]) -> Found:
    voxels = SparseTokens.pack([one.tokens for one in parts])
    _, decoded = model(voxels.to(model.device))
    return {"asset/psnr": psnr(unvoxelize(decoded), unvoxelize(voxels))}, None


def _of_gaussians(model: ATokenModel, views: Sequence[tuple[Part, Pictures]]) -> Found:
    seen = [_seen(model, of.tokens, pictured) for of, pictured in views]
    theirs, ours, counts = (np.concatenate(arrays) for arrays in zip(*seen, strict=True))
    shown = theirs * counts[..., None], ours * counts[..., None]
    return {"gaussians/psnr": psnr(ours[counts], theirs[counts])}, shown


def reconstructed(model: ATokenModel, frames_BTHW3: np.ndarray) -> np.ndarray:
    """What comes back of pictures (T = 1) or clips of one size, as they came."""
    packed = SparseTokens.pack([patchify(to_values(frames)) for frames in frames_BTHW3])
    _, decoded = model(packed.to(model.device))
    size = frames_BTHW3.shape[1:4]
    return np.stack([to_uint8(unpatchify(sample, *size)) for sample in decoded.unpack()])


def top_1(pictures_BD: Tensor, texts_BD: Tensor) -> float:
    """Share of pictures that are nearer to the text of the same row than to any other.

    Ties, and what is not finite, are misses.
    """
    cosines = normalize(pictures_BD, dim=-1) @ normalize(texts_BD, dim=-1).T
    others = cosines.masked_fill(torch.eye(len(cosines), dtype=torch.bool, device=cosines.device), -torch.inf)
    return (cosines.diagonal() > others.amax(1)).float().mean().item()


def _seen(model: ATokenModel, voxels: SparseTokens, views: Pictures) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views and what cameras see there of the Gaussians, (V, H, W, 3) uint8, and which pixels count, (V, H, W)."""
    assert model.gaussian_decoder is not None  # the stage's preset has one
    (gaussians,) = model.gaussian_decoder(voxels.with_feats(voxels.feats[:, :VALUES]).to(model.device))
    drawn = rasterize(gaussians.splats, views.cameras.to(model.device), (WINDOW, WINDOW)).rgb
    theirs, ours = (to_uint8(rgb.float().mul(2).sub(1)) for rgb in (views.rgb, drawn))
    return theirs, ours, views.counts.numpy()


def _sheet(shown: Sequence[Shown]) -> np.ndarray | None:
    lines = [np.concatenate(list(side[:SHOWN]), axis=1) for pair in shown for side in pair]
    width = max((line.shape[1] for line in lines), default=0)
    padded = [np.pad(line, ((0, GAP), (0, width - line.shape[1]), (0, 0))) for line in lines]
    return np.concatenate(padded) if padded else None
