"""Media in and out: images, videos, 3D assets and token files. Nothing imported here needs torch."""

from __future__ import annotations

from atoken.io.load import load_media, sniff
from atoken.media.image import Image, from_pil, read_image, write_image
from atoken.media.limits import Limits
from atoken.media.mesh import read_mesh
from atoken.media.video import Video, VideoInfo, VideoReader, read_video, write_video
from atoken.media.video_writer import VideoWriter
from atoken.media.views import Views, read_views
from atoken.mesh import Mesh

__all__ = [
    "Image",
    "Limits",
    "Mesh",
    "Video",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "Views",
    "from_pil",
    "load_media",
    "read_image",
    "read_mesh",
    "read_video",
    "read_views",
    "sniff",
    "write_image",
    "write_video",
]
