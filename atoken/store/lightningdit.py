"""Tokens of images as LightningDiT trains on them: safetensors files, and the mean and deviation of each channel.

A file holds ``latents`` and ``latents_flip`` (B, C, H', W') float32 and ``labels`` (B,) int64; ``latents_stats.pt`` is
a dictionary of ``mean`` and ``std`` (1, C, 1, 1), saved by torch. What its reader does not look at, the header of a
file states under ``atoken``: key, label, captions and size of each image, so that a store can be made of it again.
Source: ``ImgLatentDataset`` and ``extract_features.py`` of https://github.com/hustvl/LightningDiT.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from atoken.atomic import atomic_path
from atoken.errors import AtokenError, StoreError
from atoken.io.token_file import Tokens
from atoken.modalities import IMAGE
from atoken.statistics import LatentStatistics
from atoken.store.exchange import Labelled

if TYPE_CHECKING:
    from atoken.store.reader import TokenStore
    from atoken.tokenizer import Tokenizer

STATISTICS = "latents_stats.pt"
ABOUT = "atoken"
PLAIN, FLIPPED, LABELS = "latents", "latents_flip", "labels"


class Image(Struct, frozen=True):
    """What is known of an image of a file."""

    key: str
    label: str
    captions: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


class About(Struct, frozen=True):
    """What the header of a file states; the fingerprint is that of the model that made the latents."""

    fingerprint: str
    images: tuple[Image, ...]


def fitting(store: TokenStore) -> tuple[TokenStore, dict[str, int]]:
    """The rows of a store that this form can hold, and how many are left out, by what they are.

    Raises: StoreError where no training could use them (several grids, no labels, no mirrored images).
    """
    images = store.where(modality=IMAGE.name)
    kept = images.where(draw=0)
    left_out = {"videos and assets": len(store) - len(images), "further draws": len(images) - len(kept)}
    grids = {one.cells[1:3] for one in kept.alike()[0]}
    if len(grids) != 1:
        found = " and ".join(f"{rows}x{columns}" for rows, columns in sorted(grids)[:2]) or "no image"
        raise StoreError(f"LightningDiT takes images of one size, {store.name} has grids of {found}: use --crop.")
    if (kept.label_ids < 0).any():
        raise StoreError(f"LightningDiT needs a label of each image, and {store.name} has images without one.")
    if len(kept.where(flipped=True)) * 2 != len(kept):
        raise StoreError(f"LightningDiT needs each image mirrored as well; make {store.name} with --flip.")
    return kept, {what: count for what, count in left_out.items() if count}


def write(store: TokenStore, columns: Mapping[str, Any], first: int, target: Path) -> None:
    """Write a view of images, each with its mirrored one, atomically; all are in memory.

    columns: of the view, by name. first: number of its first row. Raises: StoreError, TokenFileError.
    """
    flipped = columns["flipped"].to_numpy()
    keys, labels, captions, heights, widths = (
        columns[name].filter(~flipped).to_pylist() for name in ("key", "label", "captions", "height", "width")
    )
    if keys != columns["key"].filter(flipped).to_pylist():
        raise StoreError(f"The mirrored images of {store.name} from row {first} on are not in the order of the images.")
    images = map(Image, keys, labels, map(tuple, captions), zip(heights, widths, strict=True))
    about = About(store.fingerprint, tuple(images))
    arrays = {
        name: store.grids(chosen, normalised=False) for name, chosen in {PLAIN: ~flipped, FLIPPED: flipped}.items()
    }
    arrays[LABELS] = torch.from_numpy(store.label_ids[~flipped].astype(np.int64))
    with atomic_path(target, StoreError) as temporary:
        try:
            save_file(arrays, temporary, metadata={ABOUT: msgspec.json.encode(about).decode()})
        except SafetensorError as error:  # its own class for a full disk
            raise StoreError(f"Cannot write {target}: {error}.") from error


def write_statistics(statistics: LatentStatistics, target: Path) -> None:
    """Mean and deviation by which its reader normalises. Raises: StoreError."""
    rows = {name: torch.tensor(getattr(statistics, name))[None, :, None, None] for name in ("mean", "std")}
    file = io.BytesIO()  # to a path, torch would write its name into the file
    torch.save(rows, file)
    with atomic_path(target, StoreError) as temporary:
        temporary.write_bytes(file.getvalue())


def read(path: Path, tokenizer: Tokenizer) -> Iterator[Labelled]:
    """Each image and its mirrored one, of this package or of LightningDiT's own extraction with ``tokenizer``.

    Without what this package states, a key is the name of the file and a number, a label the number of its class, and
    a size that of whole patches. Raises: StoreError.
    """
    try:
        with safe_open(path, framework="pt") as file:
            images = _images(path, file.metadata() or {}, file.get_tensor(LABELS), tokenizer)
            slices = [file.get_slice(name) for name in (PLAIN, FLIPPED)]
            if any(len(one.get_shape()) != 4 or one.get_shape()[0] != len(images) for one in slices):
                raise StoreError(f"{PLAIN} and {FLIPPED} must be (B, C, H, W), and {LABELS} (B,)")
            for number, image in enumerate(images):
                for flipped, latents in enumerate(slices):
                    yield Labelled(
                        image.key, image.label, image.captions, bool(flipped), 0,
                        _tokens(latents[number], tokenizer, image),
                    )  # fmt: skip
    except (AtokenError, SafetensorError, OSError, ValueError, msgspec.DecodeError) as error:
        raise StoreError(f"{path} holds no latents of LightningDiT: {str(error).rstrip('.')}.") from error


def _tokens(latents: Tensor, tokenizer: Tokenizer, image: Image) -> Tokens:
    return replace(Tokens.from_latents(latents.float(), like=tokenizer, size=image.size), name=image.key)


def _images(path: Path, metadata: Mapping[str, str], labels: Tensor, tokenizer: Tokenizer) -> tuple[Image, ...]:
    """What the header states of each image, or what follows from its number. Raises: StoreError, DecodeError."""
    if ABOUT not in metadata:
        return tuple(Image(f"{path.stem}/{number}", str(label)) for number, label in enumerate(labels.tolist()))
    about = msgspec.json.decode(metadata[ABOUT], type=About)
    if about.fingerprint != tokenizer.fingerprint:
        made, given = about.fingerprint[:12], tokenizer.fingerprint[:12]
        raise StoreError(f"its model is {made}, that of {tokenizer.name} is {given}")
    if len(about.images) != len(labels):
        raise StoreError(f"it describes {len(about.images)} images and has {len(labels)} labels")
    return about.images
