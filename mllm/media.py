"""Media of a conversation as inputs of the model: read, sampled, resized, cut into patches, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoken.errors import AtokenError, MediaError
from atoken.image_processor import ATokenImageProcessor
from atoken.io import VideoReader, load_media
from atoken.io.inputs import as_media, modality_of
from atoken.io.token_file import Tokens
from atoken.mesh import Mesh
from atoken.modalities.asset import VoxelPatches
from atoken.modalities.views import render_views
from atoken.modalities.voxels import VALUES, voxelize, voxels
from atoken.patches import PATCH, grid, pack_pixels
from atoken.tokens import SparseTokens
from mllm.conversation import MediaItem
from mllm.inputs import MediaInputs
from mllm.slowfast import SlowFast, cubes, even_indices, layout_of


def read_item(item: MediaItem, settings: SlowFast, images: ATokenImageProcessor) -> MediaInputs:
    """Prepare a media item, made first if its source is a function; ``MediaInputs`` stay as they are.

    Raises: AtokenError (another modality than was said, an unknown option, no frames, unreadable media).
    """
    item = replace(item, source=item.source()) if callable(item.source) else item
    if isinstance(item.source, MediaInputs):
        _check_modality(item.source, item.source.modality, item.modality)
        return item.source
    if isinstance(item.source, Tokens):
        raise AtokenError(
            "Tokens hold latents, and the language model reads features of the tower; pass the media, or what "
            "encode_media of the model made of them."
        )
    if isinstance(item.source, str) and "://" in item.source:
        raise AtokenError(f"{item.source} is an address; download it and pass the file.")
    count = frames_asked(item, settings)
    match item.modality:
        case "image":
            pixels = _resized([_opened(item.source, "image").pixels], images, settings.image_pixels)
            return _of_frames("image", pixels, settings)
        case "video":
            frames = video_frames(item.source, count)
            return _of_frames("video", _resized(frames, images, settings.video_pixels), settings)
    return _of_asset(item.source, settings)


def frames_asked(item: MediaItem, settings: SlowFast) -> int:
    """How many frames the options ask for, at most. Raises: AtokenError (another option, no whole number from 1 on)."""
    allowed = {"frames"} if item.modality == "video" else set()
    if unknown := item.options.keys() - allowed:
        raise AtokenError(f"There is no option {', '.join(sorted(unknown))} of a media item ({item.modality}).")
    count = item.options.get("frames", settings.frames)
    if not isinstance(count, int) or count < 1:
        raise AtokenError(f"frames must be a whole number from 1 on, got {count!r}.")
    return count


def video_frames(source: Any, count: int) -> Iterator[np.ndarray]:
    """At most ``count`` evenly spaced frames (H, W, 3) of a video, or of a list of frames. Raises: AtokenError."""
    if isinstance(source, str | Path | bytes):
        yield from _read_frames(source, count)
    elif isinstance(source, list | tuple):
        yield from (_opened(source[index], "image").pixels for index in frame_indices(len(source), count))
    else:
        if getattr(source, "ndim", None) == 4:
            frame_indices(len(source), count)
        frames = _opened(source, "video").frames
        yield from (frames[index] for index in frame_indices(len(frames), count))


def _read_frames(source: Any, count: int) -> Iterator[np.ndarray]:
    """Those frames of a file, one in memory at a time; a file that does not declare how many it has is read twice."""
    with VideoReader(source) as reader:
        total = reader.expected_frames
        total = sum(1 for _ in reader) if total is None else total
    wanted = {*frame_indices(total, count)}
    with VideoReader(source, frames=(0, max(wanted) + 1)) as reader:
        yield from (frame.pixels for number, frame in enumerate(reader) if number in wanted)


def frame_indices(total: int, count: int) -> list[int]:
    """As ``even_indices``. Raises: MediaError (there is none)."""
    if not total:
        raise MediaError("The video has no frames; there is nothing to see.")
    return even_indices(total, count)


def _opened(source: Any, modality: str) -> Any:
    """An Image, Video, Mesh or Views. Raises: AtokenError for one of another modality than was said."""
    path = isinstance(source, str | Path | bytes)
    media = load_media(source, first_frame=modality == "image") if path else as_media(source)
    found = modality_of(media)
    assert found is not None
    _check_modality(source, found.name, modality)
    return media


def _check_modality(source: Any, found: str, given: str) -> None:
    if found != given:
        name = source if isinstance(source, str | Path) else f"A {type(source).__name__}"
        raise AtokenError(f"{name} is of the modality {found}, and was given as {given}.")


def _resized(frames: Iterable[np.ndarray], images: ATokenImageProcessor, most: int) -> Tensor:
    """(T, 3, H, W) in [-1, 1], of frames (H, W, 3) of one size. Raises: MediaError for others."""
    sizes, pixels = set(), []
    for frame in frames:
        sizes.add(frame.shape)
        pixels += images([frame], max_pixels=most, min_pixels=min(images.min_pixels, most))["pixel_values"]
    if len(sizes) > 1:
        raise MediaError("The frames of a video must have one size.")
    return torch.from_numpy(np.stack(pixels))


def _of_frames(modality: str, pixels: Tensor, settings: SlowFast) -> MediaInputs:
    _, rows, columns = grid(1, *pixels.shape[2:])
    size = (settings.steps(len(pixels)), rows, columns)
    if modality == "video" and settings.video_mode == "tubelet":
        patches = pack_pixels(pixels.movedim(0, 1)[None])
    else:
        patches = pack_pixels(pixels)
        feats = patches.feats[:, : patches.feats.shape[1] // PATCH[0]].clone()  # the frames behind are zero
        patches = patches.with_feats(feats)
    if modality == "video" and settings.video_mode == "timed_frame":
        patches.coords[:, 0] = patches.sample_N
        patches = SparseTokens(patches.feats, patches.coords, (len(patches.feats),))
    return MediaInputs(modality, size, layout_of(modality, size, settings), patches)


def _of_asset(source: Any, settings: SlowFast) -> MediaInputs:
    asset = _opened(source, "asset")
    if isinstance(asset, VoxelPatches):
        tokens, resolution = voxels(asset.cells, asset.resolution, asset.patches)
    else:
        views = render_views(asset) if isinstance(asset, Mesh) else asset
        tokens, resolution = voxelize(views, max_tokens=settings.asset_voxels, over="coarsen")
    _, centres = cubes(tokens.coords[:, 1:], resolution, settings)
    size = (resolution, resolution, resolution)
    layout = layout_of("asset", size, settings, len(centres))
    return MediaInputs("asset", size, layout, tokens.with_feats(tokens.feats[:, :VALUES].clone()))
