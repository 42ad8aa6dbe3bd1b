"""H.264 and H.265, as x264 and x265 write them through PyAV: at a CRF, or at the bytes of another model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from atoken.errors import AtokenError
from atoken.io import Video
from atoken.media.video_writer import X264_OPTIONS
from eval.contract import Item, Output
from eval.models.codecs import AtMost, file_at
from eval.models.pixels import PixelModel, cut, frames_of, padded

_RGB, _YUV = (Colorspace.DEFAULT, ColorRange.JPEG), (Colorspace.ITU709, ColorRange.MPEG)
_SETTINGS = ("src_colorspace", "src_color_range", "dst_colorspace", "dst_color_range")
_TO_YUV, _TO_RGB = (dict(zip(_SETTINGS, (*one, *other), strict=True)) for one, other in ((_RGB, _YUV), (_YUV, _RGB)))
CRFS = [step / 4 for step in range(4 * 51, -1, -1)]  # from worst to best; a quarter is about 3 % of the bytes


@dataclass(frozen=True)
class VideoFormat:
    """A format of FFmpeg: its encoder and options, the filter that removes its comments, its smallest side."""

    name: str
    encoder: str
    options: dict[str, str]
    comments: str
    smallest: int


# Both encoders write a comment with their version and options into the stream, 0.7 to 2.4 kB, which no decoder needs
# and which would count in short videos. With one thread, the same frames give the same file. In frames of
# 64 pixels or less a side, x265 reads and writes outside its memory: the file differs each time, or the process dies.
FORMATS = {
    "h264": VideoFormat("H.264", "libx264", X264_OPTIONS, "filter_units=remove_types=6", 16),
    "h265": VideoFormat(
        "H.265", "libx265", {"x265-params": "log-level=error:info=0:pools=none:frame-threads=1"}, "", 128
    ),
}


class VideoCodec(PixelModel):
    """A codec of videos; an image is a video of one frame. ``size`` is the whole MP4 file without encoder's comments.

    Chroma is halved (yuv420p, BT.709), which needs even sides: odd ones, and those below 16 (H.264) or 128 pixels
    (H.265), are padded by their edge and cut again. Frames are evenly spaced: time stamps of a varying rate are left
    out. quality: a CRF, from 0 (best) to 51; or ``AtMost``, for each item the lowest CRF, in quarters, whose file is
    not larger. Raises: AtokenError for another format or CRF, or where this PyAV was built without its encoder.
    """

    def __init__(self, format: str, quality: float | AtMost) -> None:
        if format not in FORMATS:
            raise AtokenError(f"There is no video codec {format!r}; choose from {', '.join(FORMATS)}.")
        self.format, self.quality = FORMATS[format], quality
        try:
            Codec(self.format.encoder, "w")
        except UnknownCodecError as error:
            reason = f"{self.format.encoder}, the encoder of {self.format.name}"
            raise AtokenError(f"This PyAV ({av.__version__}) was built without {reason}; install another.") from error
        if not isinstance(quality, AtMost) and not 0 <= quality <= 51:
            raise AtokenError(f"{self.format.name} takes a CRF from 0 to 51, got {quality:g}.")
        libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
        setting = f"bytes {quality}" if isinstance(quality, AtMost) else f"crf {quality:g}"
        self.name = f"{self.format.name}, {setting}"
        self.record = {
            "codec": f"{self.format.name}, 4:2:0, BT.709, sides padded to even ones of {self.format.smallest} or more",
            "options": "preset medium, no tune, one thread",
            "encoder": f"PyAV {av.__version__}, {self.format.encoder}, libavcodec {libavcodec}",
            "quality": setting,
            "bytes": "whole MP4 file, without the encoder's comments",
        }

    def _output(self, item: Item) -> Output:
        frames = frames_of(item, self.format.name)
        rate = item.media.fps if isinstance(item.media, Video) else Fraction(24)
        encoded = partial(self.encoded, frames, rate)
        data = file_at(self.quality, self.format.name, item.key, CRFS, encoded)
        return Output(item, frames, cut(decoded(data), frames, self.format.name), size=len(data))

    def encoded(self, frames: np.ndarray, rate: Fraction, crf: float) -> bytes:
        """The MP4 file of frames (T, H, W, 3). Raises: AtokenError."""
        whole = padded(frames, (1, 2, 2))
        height, width = (max(side, self.format.smallest) for side in whole.shape[1:3])
        file = io.BytesIO()
        try:
            with av.open(file, "w", format="mp4") as container:
                stream: Any = container.add_stream(
                    self.format.encoder, rate=rate, options=self.format.options | {"crf": f"{crf:g}"}
                )
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                context = stream.codec_context
                context.thread_count, context.time_base = 1, 1 / rate
                context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
                for packet in _packets(stream, padded(whole, (1, height, width)), rate, self.format.comments):
                    container.mux(packet)
        except (OSError, av.FFmpegError, ValueError) as error:
            raise AtokenError(f"{self.format.name} cannot hold {len(frames)} frames of {width}x{height}.") from error
        return file.getvalue()


def _packets(stream: Any, frames: np.ndarray, rate: Fraction, comments: str) -> Iterator[Packet]:
    encoded = list(_encoded(stream, frames, rate))
    # x265 gives no decoding times to videos of few frames. These rise by one, and none is after its frame is shown.
    late = max(number - (packet.pts or 0) for number, packet in enumerate(encoded))
    without = BitStreamFilterContext(comments, stream) if comments else None
    for number, packet in enumerate(encoded):
        packet.dts = number - late
        yield from [packet] if without is None else without.filter(packet)
    if without is not None:
        yield from without.filter(None)


def _encoded(stream: Any, frames: np.ndarray, rate: Fraction) -> Iterable[Packet]:
    for number, pixels in enumerate(frames):
        rgb = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = rgb.reformat(format="yuv420p", **_TO_YUV)
        frame.pts, frame.time_base = number, 1 / rate
        yield from stream.encode(frame)
    yield from stream.encode(None)


def decoded(data: bytes) -> np.ndarray:
    """(T, H, W, 3) uint8 of a file that ``VideoCodec.encoded`` made, as ``atoken.io.read_video`` has it.

    In this process, for the file is our own; files of others are read by a child with limits.
    """
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        frames = [frame.reformat(format="rgb24", **_TO_RGB).to_ndarray() for frame in container.decode(video=0)]
    return np.stack(frames)
