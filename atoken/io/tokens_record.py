"""``Tokens``: one image, video or 3D asset as a packed list of tokens with places, and all it takes to decode it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from atoken.errors import MediaError, TokenFileError
from atoken.media.clock import check_timestamps
from atoken.modalities import MODALITIES
from atoken.modalities.pixels import PATCH

if TYPE_CHECKING:
    from atoken.io.token_toc import Item

TILE = 16  # frames of a tile, 4 steps: what the model encodes at once and what a file holds in one chunk

MAX_FRAMES = 1 << 31  # of a whole video
MAX_CHANNELS = 1 << 16  # latent channels, pooled values
MAX_CODES = 1 << 16  # different codes of one group
MAX_NAME = 255  # characters

Dtype = Literal["float32", "float16"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """An image, a video, a piece of a video, or a 3D asset, as N tokens ordered by t, x (row), y (column), z.

    Tensors are on the CPU. H and W are the original size; padding to whole patches and groups of 4 frames is implied.
    The ``size`` of an asset is the side of its voxel grid, twice.
    A piece of a video (``first_frame`` > 0, or fewer frames than the video has) starts at a whole tile of 16 frames,
    and its ``coords`` and ``timestamps`` count from the start of the video.

    Raises: TokenFileError where the fields do not fit together.
    """

    latents: Tensor  # (N, C) float32: posterior mean, or the quantised values of a discrete model
    codes: Tensor | None  # (N, G) int64 in [0, prod(levels)), None if the model has no quantiser
    coords: Tensor  # (N, 4) int32: t (groups of 4 frames), x (row), y (column), z
    modality: str  # a name of MODALITIES
    size: tuple[int, int]  # H, W in pixels; of an asset voxels
    frames: int = 1  # T, 1 for an image or an asset
    fps: Fraction | None = None
    timestamps: np.ndarray | None = None  # (T,) float64 seconds, strictly rising; None = constant rate
    alpha: np.ndarray | None = None  # (H, W) uint8, images only
    pooled: Tensor | None  # (D,) float32, not normalised; of a video in pieces only the last has it
    model: str
    fingerprint: str  # 64 hex digits: SHA-256 of the model's config and weights
    name: str  # a plain file name; separators and control characters become "_"
    levels: tuple[int, ...] | None  # FSQ levels of the dimensions of one group, None for a continuous model
    first_frame: int = 0  # of the whole video

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", plain_name(self.name))
        _check_origin(self)
        _check_frames(self)
        _check_extras(self)
        _check_tensors(self)
        _check_codes(self)
        _check_places(self)

    def save(self, path: str | Path, *, dtype: Dtype = "float32") -> None:
        """Write a token file of this one item, whole or not at all; float16 rounds the latents of a continuous model.

        Raises: TokenFileError.
        """
        from atoken.io.token_file import TokenFileWriter

        with TokenFileWriter(path) as writer:
            writer.add(self, dtype=dtype)

    @classmethod
    def load(cls, path: str | Path, *, item: int | None = None) -> Tokens:
        """Read one item of a token file; None means the only one. Raises: TokenFileError, also if there are several."""
        from atoken.io.token_file import TokenFile

        with TokenFile(path) as file:
            if item is None and len(file) > 1:
                raise TokenFileError(f"{path} holds {len(file)} items; say which with item=0 to item={len(file) - 1}.")
            return file.read(item or 0)

    @classmethod
    def join(cls, pieces: Iterable[Tokens]) -> Tokens:
        """Put the pieces of one video, given in order, together. Raises: TokenFileError if they do not follow."""
        parts = list(pieces)
        if not parts:
            raise TokenFileError("There are no pieces to join; give at least one.")
        for before, after in pairwise(parts):
            check_follows(before, after)
        stamps = [part.timestamps for part in parts if part.timestamps is not None]
        codes = [part.codes for part in parts if part.codes is not None]
        return replace(
            parts[0],
            latents=torch.cat([part.latents for part in parts]),
            codes=torch.cat(codes) if codes else None,
            coords=torch.cat([part.coords for part in parts]),
            frames=sum(part.frames for part in parts),
            timestamps=np.concatenate(stamps) if stamps else None,
            pooled=parts[-1].pooled,
        )


def check_model(made: Tokens | Item, fingerprint: str, model: str) -> None:
    """Refuse the use of tokens with another model than the one that made them. Raises: TokenFileError."""
    if fingerprint != made.fingerprint:
        raise TokenFileError(
            f"{made.name or 'These tokens'}: made by model {made.model} (fingerprint {made.fingerprint[:8]}…), "
            f"this is {model} ({fingerprint[:8]}…): load that model to use them."
        )


def full_coords(cells: tuple[int, int, int, int], first_frame: int = 0) -> np.ndarray:
    """(N, 4) int32: t, x (row), y (column), z of every cell of a grid, in the order of tokens."""
    first_step = np.array([first_frame // PATCH[0], 0, 0, 0], np.int32)
    return np.ascontiguousarray(np.indices(cells, np.int32).reshape(4, -1).T) + first_step


def plain_name(name: str) -> str:
    """Make a file name of ``name`` that is safe to print and to write to: no path, no control or broken characters."""
    plain = re.sub(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", "_", name)[:MAX_NAME]
    return "_" if plain in (".", "..") else plain


def check_follows(before: Tokens, after: Tokens) -> None:
    """Refuse ``after`` unless it is the next piece of the video that ``before`` is of. Raises: TokenFileError."""
    if not MODALITIES[before.modality].read_frames or _origin(before) != _origin(after):
        raise TokenFileError(
            "Pieces must be of one video: same size, fps, model, name, latents and kind of timestamps."
        )
    end = before.first_frame + before.frames
    if after.first_frame != end or end % TILE:
        raise TokenFileError(
            f"A piece of frames {before.first_frame} to {end} is followed by one that starts at {after.first_frame}; "
            f"pieces must follow each other, each of them but the last in whole tiles of {TILE} frames."
        )
    if before.timestamps is not None and after.timestamps is not None and after.timestamps[0] <= before.timestamps[-1]:
        raise TokenFileError("timestamps must be strictly rising from piece to piece, too.")
    if before.pooled is not None:
        raise TokenFileError(
            "A piece before the last has a pooled vector; it belongs to the whole video, give it last."
        )


def _origin(tokens: Tokens) -> tuple[object, ...]:
    groups = None if tokens.codes is None else tokens.codes.shape[1]
    made_by = (tokens.model, tokens.fingerprint, tokens.levels, groups, tokens.latents.shape[1])
    return (tokens.modality, tokens.size, tokens.fps, tokens.name, tokens.timestamps is None, *made_by)


def _check_origin(tokens: Tokens) -> None:
    if re.fullmatch("[0-9a-f]{64}", tokens.fingerprint) is None:
        raise TokenFileError("fingerprint must be the 64 lower-case hex digits of a SHA-256.")
    if tokens.model != plain_name(tokens.model):
        raise TokenFileError(f"model must be a plain name of at most {MAX_NAME} characters, got {tokens.model!r}.")


def _check_frames(tokens: Tokens) -> None:
    modality = MODALITIES.get(tokens.modality)
    if modality is None:
        raise TokenFileError(f"modality must be one of {', '.join(MODALITIES)}, got {tokens.modality!r}.")
    if len(tokens.size) != 2 or not modality.allows_size(tokens.size):
        raise TokenFileError(f"size of an item ({modality.name}) must be {modality.sizes}, got {tokens.size}.")
    if tokens.frames < 1 or not 0 <= tokens.first_frame <= MAX_FRAMES - tokens.frames or tokens.first_frame % TILE:
        raise TokenFileError(
            f"frames {tokens.frames} from first_frame {tokens.first_frame}: there must be at least one frame, "
            f"the first at a multiple of {TILE}."
        )
    timed = tokens.first_frame or tokens.fps is not None or tokens.timestamps is not None
    if not modality.read_frames and (tokens.frames != 1 or timed):
        raise TokenFileError("Only a video has more than one frame, a first_frame, fps or timestamps.")


def _check_extras(tokens: Tokens) -> None:
    if tokens.fps is not None and not (0 < tokens.fps <= 1000 and tokens.fps.denominator <= 100_000):
        raise TokenFileError(
            f"fps must be above 0, at most 1000, and a fraction of at most 100000ths, got {tokens.fps}."
        )
    if tokens.timestamps is not None:
        try:
            check_timestamps(tokens.timestamps, tokens.frames)
        except MediaError as error:
            raise TokenFileError(str(error)) from error
    alpha = tokens.alpha
    has_alpha = MODALITIES[tokens.modality].has_alpha
    if alpha is not None and (not has_alpha or alpha.shape != tuple(tokens.size) or alpha.dtype != np.uint8):
        raise TokenFileError(
            f"alpha must be uint8 of shape {tokens.size}, of an image; got {alpha.dtype} {alpha.shape}."
        )


def _check_tensors(tokens: Tokens) -> None:
    count = len(tokens.latents) if tokens.latents.ndim else 0
    _check_tensor("latents", tokens.latents, torch.float32, (count, None))
    _check_tensor("coords", tokens.coords, torch.int32, (count, 4))
    if tokens.codes is not None:
        _check_tensor("codes", tokens.codes, torch.int64, (count, None))
    if tokens.pooled is not None:
        _check_tensor("pooled", tokens.pooled, torch.float32, (None,))


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    fits = tensor.ndim == len(shape) and all(
        1 <= side <= MAX_CHANNELS if wanted is None else side == wanted
        for side, wanted in zip(tensor.shape, shape, strict=False)
    )
    if not fits or tensor.dtype != dtype or tensor.device.type != "cpu":
        wanted = str(tuple("*" if side is None else side for side in shape)).replace("'", "")
        got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        raise TokenFileError(f"{name} must be {dtype} of shape {wanted} on the CPU, got {got}.")


def _check_codes(tokens: Tokens) -> None:
    if (tokens.codes is None) != (tokens.levels is None):
        raise TokenFileError("codes and levels belong together: give both, or neither for a continuous model.")
    if tokens.codes is None or tokens.levels is None:
        return
    count = math.prod(tokens.levels)
    if min(tokens.levels, default=0) < 2 or count > MAX_CODES:
        raise TokenFileError(f"levels must be 2 or more each and at most {MAX_CODES} multiplied, got {tokens.levels}.")
    if tokens.latents.shape[1] != tokens.codes.shape[1] * len(tokens.levels):
        raise TokenFileError("latents must have one channel for each group of codes and each of its levels.")
    if ((tokens.codes < 0) | (tokens.codes >= count)).any():
        raise TokenFileError(f"codes must be from 0 to {count - 1}.")


def _check_places(tokens: Tokens) -> None:
    extents = MODALITIES[tokens.modality].cells(tokens.size, tokens.frames)
    t, x, y, z = tokens.coords.numpy().T.astype(np.int64)
    t = t - tokens.first_frame // PATCH[0]
    places = np.stack([t, x, y, z])
    if ((places < 0) | (places >= np.array(extents)[:, None])).any():
        shape = "{} steps, {} rows, {} columns and {} layers".format(*extents)
        raise TokenFileError(f"coords must lie in the grid of {shape}.")
    _, rows, columns, layers = extents
    if (np.diff(((t * rows + x) * columns + y) * layers + z) <= 0).any():
        raise TokenFileError("coords must be ordered by t, x (row), y (column), z, each place once.")
