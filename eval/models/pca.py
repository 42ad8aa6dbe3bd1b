"""Principal components of patches: a linear tokenizer of as many dimensions. ``P``: values of a patch.

The components are fitted on procedural media that are held apart from what is measured, or, as an upper bound, on the
very images that are measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from copy import copy

import numpy as np
import torch
from einops import rearrange

from atoken.data.synthetic.procedural import make_image, make_video
from atoken.errors import AtokenError
from atoken.metrics.pca import leading
from atoken.patches import PATCH
from eval.contract import Dataset, Item, Output
from eval.models.pixels import Block, PixelModel, Stored, cut, frames_of, how_drawn, padded, rounded

COMPONENTS = 48  # latent channels of nano
FITTED_SEED = 20_260_917  # of procedural media that neither training nor a task uses
IMAGES, VIDEOS, SIDE = 128, 64, 256  # what is fitted on: 32,768 patches, and as many of videos of 8 frames
OF_EACH = 400  # random patches of each image that is measured
_FRAMES, _PATCHES = "(t a) (h b) (w c) d", "(t h w) (a b c d)"


class PCA(PixelModel):
    """The mean and the first principal components of patches of ``block``: frames, rows, columns.

    Sides that are not multiples are padded by their edge and cut again. ``size`` is the plain bytes of the coefficients
    as ``stored`` floats, to which they are rounded, without header; the mean and the components, which all items share,
    are not counted.

    fitted: (T, H, W, 3) uint8 each, of which whole patches are taken. where: describes these in the record.
    Raises: AtokenError where there are fewer patches than components.
    """

    def __init__(
        self, fitted: Iterable[np.ndarray], where: str, components: int = COMPONENTS, block: Block = (1, *PATCH[1:])
    ) -> None:
        self.block = block
        count, digest, self.mean_P, covariance = _moments(fitted, block)
        if not 1 <= components <= min(count, len(self.mean_P)):
            raise AtokenError(f"{components} components need as many patches and values, got {count}.")
        self.basis_CP = leading(torch.from_numpy(covariance), components)[0].T.numpy()
        self.stored: Stored = "float32"
        self.name = f"PCA, {components} numbers a patch"
        self.record = {
            "model": f"{components} principal components of patches of {' x '.join(map(str, block))} pixels",
            "fingerprint": f"fitted on {where}: {count:,} patches, SHA-256 {digest}",
            "dtype": "float32",
            **how_drawn(None),
            "bytes": "coefficients as float32, without header; components not counted",
        }

    def stored_as(self, stored: Stored) -> PCA:
        """The same components, with other floats than float32."""
        if stored == self.stored:
            return self
        other = copy(self)
        other.stored, other.name = stored, f"{self.name}, {stored}"
        other.record = self.record | {"bytes": self.record["bytes"].replace("float32", stored)}
        return other

    @classmethod
    def of_images(cls, components: int = COMPONENTS) -> PCA:
        """Fitted on patches of 16x16 pixels of procedural images."""
        drawn = (make_image(FITTED_SEED, index, SIDE, SIDE).frames for index in range(IMAGES))
        return cls(drawn, f"{IMAGES} procedural images of series {FITTED_SEED}, {SIDE}x{SIDE}", components)

    @classmethod
    def of_videos(cls, components: int = COMPONENTS) -> PCA:
        """Fitted on patches of 4 frames of 16x16 pixels of procedural videos."""
        drawn = (make_video(FITTED_SEED, index, 2 * PATCH[0], SIDE, SIDE).frames for index in range(VIDEOS))
        where = f"{VIDEOS} procedural videos of series {FITTED_SEED}, {2 * PATCH[0]} frames of {SIDE}x{SIDE}"
        return cls(drawn, where, components, PATCH)

    @classmethod
    def of_items(cls, items: Dataset, task: str, components: int = COMPONENTS) -> PCA:
        """Fitted on random patches of the very images of a task: as good as linear codes get there.

        Raises: MediaError.
        """
        fitted = random_patches(frames_of(items[number], "PCA") for number in range(len(items)))
        found = cls(fitted, f"{OF_EACH} patches of each image of {task}", components)
        found.name = found.name.replace("PCA", f"PCA of {task}")
        return found

    def _output(self, item: Item) -> Output:
        frames = frames_of(item, self.name)
        whole = padded(frames, self.block)
        coefficients = (patches(whole, self.block).astype(np.float64) - self.mean_P) @ self.basis_CP.T
        kept, size = rounded(torch.from_numpy(coefficients).float(), self.stored)
        values = kept.numpy().astype(np.float64) @ self.basis_CP + self.mean_P
        prediction = joined(np.clip(np.rint(values), 0, 255).astype(np.uint8), whole.shape, self.block)
        return Output(item, frames, cut(prediction, frames, self.name), size=size)


def random_patches(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """``OF_EACH`` patches (1, 16, 16, 3) of each image (1, H, W, 3), always the same ones."""
    rng = np.random.default_rng(0)
    for frames in images:
        rows, columns = (rng.integers(0, side - PATCH[1] + 1, OF_EACH) for side in frames.shape[1:3])
        yield from (frames[:, r : r + PATCH[1], c : c + PATCH[2]] for r, c in zip(rows, columns, strict=True))


def patches(frames: np.ndarray, block: Block) -> np.ndarray:
    """(N, P): the whole blocks of frames (T, H, W, 3) by frame, row, column; the values of a patch likewise."""
    whole = frames[tuple(slice(size // side * side) for size, side in zip(frames.shape, block, strict=False))]
    return rearrange(whole, f"{_FRAMES} -> {_PATCHES}", **dict(zip("abc", block, strict=True)))


def joined(values_NP: np.ndarray, shape: tuple[int, ...], block: Block) -> np.ndarray:
    """Frames of ``shape`` from their patches: the inverse of ``patches``."""
    sizes = dict(zip("abc", block, strict=True)) | {"h": shape[1] // block[1], "w": shape[2] // block[2]}
    return rearrange(values_NP, f"{_PATCHES} -> {_FRAMES}", d=3, **sizes)


def _moments(fitted: Iterable[np.ndarray], block: Block) -> tuple[int, str, np.ndarray, np.ndarray]:
    """Number of patches, SHA-256 of the media, mean (P,) and scatter (P, P) of their patches, in constant memory.

    Values of 8 bits have sums below 2^53, so that fp64 adds them exactly, in whatever order.
    """
    width = 3 * int(np.prod(block))
    digest, count, total, squares = hashlib.sha256(), 0, np.zeros(width), np.zeros((width, width))
    for frames in fitted:
        digest.update(str(frames.shape).encode() + np.ascontiguousarray(frames).tobytes())
        values = patches(frames, block).astype(np.float64)
        count, total, squares = count + len(values), total + values.sum(0), squares + values.T @ values
    mean = total / max(count, 1)
    return count, digest.hexdigest(), mean, squares - count * np.outer(mean, mean)
