"""Media in and out: pictures, clips and token files. Nothing imported here needs torch."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from atoken.errors import MediaError
from atoken.io.image import from_pil, read_image, write_image
from atoken.io.media import DEFAULT_LIMITS, Clip, Image, Limits
from atoken.io.sniff import sniff
from atoken.io.video import FrameRange, VideoInfo, VideoReader, read_clip
from atoken.io.video_writer import VideoWriter, write_clip

__all__ = [
    "Clip",
    "Image",
    "Limits",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "from_pil",
    "load_media",
    "read_clip",
    "read_image",
    "write_clip",
    "write_image",
]


def load_media(
    path: str | Path,
    *,
    frames: FrameRange | None = None,
    fps: Fraction | float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Image | Clip:
    """Read a picture or a clip, whichever the file's content is, as ``read_image`` or ``read_clip`` does.

    ``frames`` (start, stop) and ``fps`` select from a clip, and are refused for a picture. Raises: MediaError.
    """
    if sniff(path).media == "clip":
        return read_clip(path, frames=frames, fps=fps, limits=limits)
    if frames is not None or fps is not None:
        raise MediaError(f"{path} is a picture; frames= and fps= select from clips only.")
    return read_image(path, limits=limits)
