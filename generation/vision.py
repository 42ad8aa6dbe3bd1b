"""What an image of a thing is to a generator: the thing alone, in the middle, on black; and features of it.

Letters: ``B`` images, ``H``, ``W`` pixels, ``S`` side of a square, ``L`` features of an image, ``E`` their width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

import atoken
from atoken.coder import Coder
from atoken.errors import AtokenError, AtokenWarning, CheckpointError
from atoken.io import Image
from atoken.model import ATokenConfig
from atoken.presets import folder_of

SIDE = 128  # of a square that a tower of AToken's sees, where nothing else is asked for
SOLID = 0.8  # of full opacity: what is more is in the middle (TRELLIS)
MARGIN = 1.2  # side of the square, in sides of the thing (TRELLIS)
EVEN, NEAR = 12, 24  # of 255: how even a plain background is at the border, and how far its pixels are from its colour


class ImageEncoder:
    """A frozen network: squares to features, which have mean 0 and deviation 1 each, as TRELLIS takes them.

    run: (B, 3, S, S) in [0, 1] to (B, L, E), before the last norm. network: of which it is. side: S. width: E.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], network: nn.Module, side: int, width: int) -> None:
        self._run, self.network = run, network.eval().requires_grad_(False)
        self.side, self.width = side, width

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, images_B3SS: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1], of any device, to (B, L, E) fp32 on the device of the network."""
        weight = next(self.network.parameters())
        with torch.autocast(weight.device.type, enabled=False):
            return F.layer_norm(self._run(images_B3SS.to(weight)).float(), (self.width,))

    def to(self, device: torch.device | str) -> ImageEncoder:
        """The same, moved."""
        self.network.to(device)
        return self


def load_image_encoder(source: str | Path, side: int | None = None) -> ImageEncoder:
    """A tower of AToken's (``nano``), DINOv2 or SigLIP2, by name, folder or hub id.

    side: of the squares; None is 128 for AToken's and what the network was trained with for others.
    Raises: CheckpointError.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    try:
        config = AutoConfig.from_pretrained(folder_of(source))
        if isinstance(config, ATokenConfig):
            return image_encoder_of(atoken.load(source), side)
        whole, processor = AutoModel.from_pretrained(source), AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{source} holds no image encoder that transformers can load: {reason}") from error
    network = getattr(whole, "vision_model", whole)
    mean, std = (torch.tensor(row)[:, None, None] for row in (processor.image_mean, processor.image_std))

    def run(x: Tensor) -> Tensor:
        found = network(pixel_values=(x - mean.to(x)) / std.to(x), output_hidden_states=True)
        return found.hidden_states[-1]

    return ImageEncoder(run, network, side or network.config.image_size, network.config.hidden_size)


def image_encoder_of(coder: Coder, side: int | None = None) -> ImageEncoder:
    """The tower of a loaded tokenizer."""
    model = coder.model

    def run(x: Tensor) -> Tensor:
        return model.encode_pixels(2 * x - 1).features.feats.unflatten(0, (len(x), -1))

    return ImageEncoder(run, model, side or SIDE, model.config.encoder_width)


def framed(image: Image, side: int) -> Tensor:
    """(3, S, S) in [0, 1]: the thing in an image, in the middle of a square, on black.

    Its alpha says what it is, or a plain background; without either the whole image is taken, with an AtokenWarning.
    Raises: AtokenError for an image of nothing.
    """
    alpha = _opacity(image)
    rows, columns = (np.flatnonzero((alpha > SOLID).any(axis)) for axis in (1, 0))
    if not len(rows):
        raise AtokenError("The image shows nothing: all of it is transparent or of one colour; give one of a thing.")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    length = max(round(MARGIN * max(bottom - top, right - left)), 1)
    first = ((top + bottom - length) // 2, (left + right - length) // 2)
    square = np.zeros((length, length, 3), np.float32)
    shown = image.pixels.astype(np.float32) / 255 * alpha[..., None]
    inside, outside = [], []
    for start, size in zip(first, alpha.shape, strict=True):
        inside.append(slice(max(start, 0), min(start + length, size)))
        outside.append(slice(inside[-1].start - start, inside[-1].stop - start))
    square[tuple(outside)] = shown[tuple(inside)]
    planes = torch.from_numpy(square).permute(2, 0, 1)[None]
    return F.interpolate(planes, (side, side), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def _opacity(image: Image) -> np.ndarray:
    """(H, W) fp32 in [0, 1], 0 in the background."""
    if image.alpha is not None and image.alpha.min() < 255:
        return image.alpha.astype(np.float32) / 255
    pixels = image.pixels.astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0)
    if np.quantile(np.abs(border - colour).max(1), 0.95) > EVEN:
        text = "The image has neither alpha nor a plain background, so that all of it is taken for the thing."
        warnings.warn(f"{text} Remove the background first if that is wrong.", AtokenWarning, stacklevel=3)
        return np.ones(pixels.shape[:2], np.float32)
    return 1 - _reached(np.abs(pixels - colour).max(2) <= NEAR).astype(np.float32)


def _reached(free: np.ndarray) -> np.ndarray:
    """(H, W) bool: which free pixels are joined to the border, along rows and columns of free ones."""
    reached = free.copy()
    reached[1:-1, 1:-1] = False
    before = -1
    while (count := int(reached.sum())) != before:
        before = count
        for turned in (False, True):
            cells, found = (free.T, reached.T) if turned else (free, reached)
            starts = np.ones(cells.shape, np.bool_)
            starts[:, 1:] = cells[:, 1:] != cells[:, :-1]
            run = np.cumsum(starts.ravel()) - 1
            found = cells & (np.bincount(run, found.ravel()) > 0)[run].reshape(cells.shape)
            reached = found.T if turned else found
    return reached


def squares(images: Sequence[Image], side: int) -> Tensor:
    """(B, 3, S, S): each as ``framed``."""
    return torch.stack([framed(image, side) for image in images])
