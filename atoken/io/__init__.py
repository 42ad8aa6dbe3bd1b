"""Media in and out: images, videos, 3D assets and token files. Nothing imported here needs torch."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from atoken.errors import MediaError
from atoken.io.image import from_pil, read_image, write_image
from atoken.io.media import DEFAULT_LIMITS, Image, Limits, Video
from atoken.io.mesh import read_mesh
from atoken.io.sniff import sniff
from atoken.io.source import Source, name_of, opened
from atoken.io.video import FrameRange, VideoInfo, VideoReader, read_video
from atoken.io.video_writer import VideoWriter, write_video
from atoken.mesh import Mesh

if TYPE_CHECKING:
    from atoken.modalities.views import Views

__all__ = [
    "Image",
    "Limits",
    "Mesh",
    "Video",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "from_pil",
    "load_media",
    "read_image",
    "read_mesh",
    "read_video",
    "sniff",
    "write_image",
    "write_video",
]


def load_media(
    source: Source,
    *,
    name: str | None = None,
    frames: FrameRange | None = None,
    fps: Fraction | float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Image | Video | Mesh | Views:
    """Read an image, a video or a 3D asset, whichever the file is, as ``read_image``, ``read_video`` or ``read_mesh``.

    ``source``: a path, bytes, or a binary file. ``name``: for messages, and for the 3D formats without magic bytes. A
    folder with a ``transforms.json`` is read as ``atoken.io.views.read_views`` does. ``frames`` (start, stop) and
    ``fps`` select from a video, and are refused for the others.
    Raises: MediaError, MissingExtraError (a 3D asset without the packages that read it).
    """
    name = name_of(source, name)
    if not isinstance(source, str | Path | bytes):  # a file object can be read only once
        with opened(source, name) as file:
            source = file.read()
    media = sniff(source, name=name).media
    if media == "video":
        return read_video(source, name=name, frames=frames, fps=fps, limits=limits)
    if frames is not None or fps is not None:
        raise MediaError(f"{name} is not a video; frames= and fps= select from videos only.")
    if media == "folder of views" and isinstance(source, str | Path):
        from atoken.io.views import read_views

        return read_views(source, limits=limits)
    read = read_mesh if media == "mesh" else read_image
    return read(source, name=name, limits=limits)
