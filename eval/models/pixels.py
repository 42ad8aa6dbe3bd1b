"""What models under test share: pixels padded to whole blocks and back, what is stored, random draws by item."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from atoken.errors import AtokenError
from atoken.io import Image, Video
from eval.contract import Item, Output

Block = tuple[int, int, int]  # frames, rows, columns
Stored = Literal["float32", "float16"]  # of the numbers that stand for an item
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of networks


class PixelModel(ABC):
    """A model under test that takes images and videos one by one, and has no vectors."""

    name: str

    @abstractmethod
    def _output(self, item: Item) -> Output:
        """What comes back of one item. Raises: AtokenError."""

    def reconstruct(self, items: Sequence[Item]) -> list[Output]:
        """Encode and decode. Raises: AtokenError for an asset, and for what else the model cannot take."""
        return [self._output(item) for item in items]

    def embed(self, items: Sequence[Item]) -> list[Output]:
        """Raises: AtokenError."""
        raise AtokenError(f"{self.name} has no vectors of media; take a tokenizer for this task.")

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Raises: AtokenError."""
        raise AtokenError(f"{self.name} has no vectors of texts; take a tokenizer for this task.")


def frames_of(item: Item, model: str) -> np.ndarray:
    """(T, H, W, 3) uint8 of an image or a video. Raises: AtokenError for an asset."""
    if isinstance(item.media, Image):
        return item.media.pixels[None]
    if isinstance(item.media, Video):
        return item.media.frames
    raise AtokenError(f"{model} cannot take {item.key}, a 3D asset; give it images or videos.")


def padded(frames: np.ndarray, block: Block, *, first_alone: bool = False) -> np.ndarray:
    """Frames (T, H, W, 3) with their last frame, row and column repeated up to whole blocks.

    first_alone: blocks of frames start at the second one, as in causal video models: T becomes 1 + k block[0].
    """
    alone = int(first_alone)
    sizes = (frames.shape[0] - alone, *frames.shape[1:3])
    more = [(0, -size % side) for size, side in zip(sizes, block, strict=True)]
    return np.pad(frames, (*more, (0, 0)), mode="edge") if any(end for _, end in more) else frames


def cut(frames: np.ndarray, like: np.ndarray, model: str) -> np.ndarray:
    """``frames`` without what was padded, of the shape of ``like``. Raises: AtokenError where they are smaller."""
    count, height, width, _ = like.shape
    kept = frames[:count, :height, :width]
    if kept.shape != like.shape:
        raise AtokenError(
            f"{model} gave {frames.shape[0]} frames of {frames.shape[2]}x{frames.shape[1]} back for {count} of "
            f"{width}x{height}; its block differs from the one stated."
        )
    return np.ascontiguousarray(kept)


def rounded(latents: Tensor, stored: Stored) -> tuple[Tensor, int]:
    """Latents as they come out of a file of ``stored`` numbers, in their own dtype, and the bytes of these numbers.

    The bytes are the plain numbers, without a header or an entropy coder. Raises: AtokenError where one is not finite.
    """
    narrow = latents.to(getattr(torch, stored))
    if not narrow.isfinite().all():
        raise AtokenError(
            f"Some latents are not finite as {stored}; look for the fault in the model, or store float32."
        )
    return narrow.to(latents.dtype), narrow.numel() * narrow.element_size()


def draw(seed: int, key: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one item: the same in any order, in any batch and on any rank of one kind of device."""
    digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


def how_drawn(sample: int | None) -> dict[str, str]:
    """The fields ``latents`` and ``seed`` of a model's record."""
    return {"latents": "mean", "seed": "none"} if sample is None else {"latents": "sample", "seed": str(sample)}


@contextmanager
def failing(model: str, values: Tensor) -> Iterator[None]:
    """Turn what a foreign network raises on ``values`` into one sentence, an AtokenError."""
    try:
        yield
    except AtokenError:
        raise
    except Exception as error:  # a network may raise any type
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
        raise AtokenError(f"{model} failed on {values.dtype} of shape {tuple(values.shape)}: {reason}.") from error


def checksum(*paths: Path) -> str:
    """SHA-256 of files, one after the other, in constant memory. Raises: AtokenError for one that cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        except OSError as error:
            raise AtokenError(f"Cannot read {path}: {error.strerror}.") from error
    return digest.hexdigest()
