"""Videos as a modality: frames with a rate or time stamps, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from atoken.media.video import FORMATS, Video, VideoReader, read_video
from atoken.media.video_writer import VideoWriter
from atoken.modalities.image import SIZES, allows_size, cells
from atoken.modalities.modality import Modality

if TYPE_CHECKING:
    from atoken.io.token_file import Tokens
    from atoken.model import ATokenModel
    from atoken.tokens import SparseTokens


def _patchify(video: Video, coarsen: bool) -> tuple[SparseTokens, dict[str, Any]]:
    from atoken.modalities.pixels import patchify_frames

    timed = {"frames": len(video.frames), "fps": video.fps, "timestamps": video.timestamps}
    return patchify_frames(video.frames), timed | {"size": video.frames.shape[1:3], "alpha": video.alpha}


def _unpatchify(model: ATokenModel, tokens: Tokens, patches: SparseTokens) -> Video:
    from atoken.modalities.pixels import to_uint8, unpatchify

    pixels = to_uint8(unpatchify(patches, tokens.frames, *tokens.size))
    return Video(pixels, tokens.fps or Fraction(24), tokens.timestamps, tokens.alpha)


def _frames(video: Video | VideoReader) -> Iterator[np.ndarray]:
    return iter(video.frames) if isinstance(video, Video) else (frame.pixels for frame in video)


def _refusal(model: ATokenModel, tokens: Tokens) -> str:
    if tokens.first_frame and model.config.cache_frames:
        return "its decoder looks back at earlier frames; decode the video from its start."
    return ""


VIDEO = Modality(
    name="video",
    formats=FORMATS,
    types=(Video,),
    read=read_video,
    suffix=".mp4",
    patchify=_patchify,
    unpatchify=_unpatchify,
    images=lambda original: (_frames(original), _frames),
    cells=cells,
    shown=lambda size, frames: f"{size[1]}x{size[0]}x{frames}",
    sizes=SIZES,
    allows_size=allows_size,
    refusal=_refusal,
    has_alpha=True,
    alpha_suffix=".webm",
    read_frames=VideoReader,
    write_frames=VideoWriter,
)
