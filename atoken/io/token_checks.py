"""What tokens must fulfil: their arrays fit their description, pieces follow each other, the model is the one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from atoken.errors import MediaError, TokenFileError
from atoken.io.contents import MAX_CHANNELS, TILE
from atoken.media.clock import check_timestamps
from atoken.modalities import MODALITIES, Modality
from atoken.patches import PATCH

if TYPE_CHECKING:
    from atoken.io.token_file import Tokens


def check_arrays(tokens: Tokens) -> None:
    """Refuse arrays that do not fit each other or the description of the tokens. Raises: TokenFileError."""
    _check_extras(tokens, MODALITIES[tokens.modality])
    _check_tensors(tokens)
    _check_codes(tokens)
    extents = MODALITIES[tokens.modality].cells(tokens.size, tokens.frames)
    check_positions(tokens.coords.numpy(), extents, tokens.first_frame // PATCH[0])


class OfModel(Protocol):
    """Tokens, an item of a file, a store: whatever one model made."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint."""


def check_model(tokens: OfModel, fingerprint: str, model: str) -> None:
    """Refuse the use of tokens with another model than the one that made them. Raises: TokenFileError."""
    if fingerprint != tokens.fingerprint:
        raise TokenFileError(
            f"{tokens.name or 'These tokens'}: made by model {tokens.model} (fingerprint {tokens.fingerprint[:8]}…), "
            f"this is {model} ({fingerprint[:8]}…): load that model to use them."
        )


def check_follows(before: Tokens, after: Tokens) -> None:
    """Refuse ``after`` unless it is the next piece of the video that ``before`` is of. Raises: TokenFileError."""
    if not MODALITIES[before.modality].read_frames or _origin(before) != _origin(after):
        raise TokenFileError(
            "Pieces must be of one video: same size, fps, model, name, latents, and all with timestamps or none."
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


def _check_extras(tokens: Tokens, modality: Modality) -> None:
    if tokens.timestamps is not None:
        if not modality.read_frames:
            raise TokenFileError("Only a video has timestamps.")
        try:
            check_timestamps(tokens.timestamps, tokens.frames)
        except MediaError as error:
            raise TokenFileError(str(error)) from error
    alpha, shape = tokens.alpha, (tokens.frames, *tokens.size) if modality.read_frames else tuple(tokens.size)
    if alpha is not None and (not modality.has_alpha or alpha.shape != shape or alpha.dtype != np.uint8):
        raise TokenFileError(
            f"alpha must be uint8 of shape {shape}, of an image or a video; got {alpha.dtype} {alpha.shape}."
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
    if tokens.latents.shape[1] != tokens.codes.shape[1] * len(tokens.levels):
        raise TokenFileError("latents must have one channel for each group of codes and each of its levels.")
    if ((tokens.codes < 0) | (tokens.codes >= count)).any():
        raise TokenFileError(f"codes must be from 0 to {count - 1}.")


def check_positions(coords: np.ndarray, extents: tuple[int, int, int, int], first_step: int = 0) -> None:
    """Refuse positions (..., N, 4) outside a grid of so many steps, rows, columns and layers, or out of order.

    Raises: TokenFileError.
    """
    positions = coords.astype(np.int64) - np.array([first_step, 0, 0, 0])
    if ((positions < 0) | (positions >= np.array(extents))).any():
        shape = "{} steps, {} rows, {} columns and {} layers".format(*extents)
        raise TokenFileError(f"coords must lie in the grid of {shape}.")
    t, x, y, z = np.moveaxis(positions, -1, 0)
    _, rows, columns, layers = extents
    if (np.diff(((t * rows + x) * columns + y) * layers + z) <= 0).any():
        raise TokenFileError("coords must be ordered by t, x (row), y (column), z, each position once.")
