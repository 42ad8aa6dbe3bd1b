"""H.264 and H.265, as x264 and x265 write them through PyAV: at a CRF, a bit rate, or the bytes of something else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
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
from eval.models.matching import AtMost, largest, too_large
from eval.models.pixels import PixelModel, cut, frames_of, padded

CRFS = [step / 4 for step in range(4 * 51, -1, -1)]  # from worst to best; a quarter is about 3 % of the bytes


@dataclass(frozen=True)
class VideoFormat:
    """A format of FFmpeg: its encoder and options, the filter that takes its remarks out, its smallest side."""

    name: str
    encoder: str
    options: dict[str, str]
    remarks: str
    smallest: int


# Both encoders write a remark with their version and options into the stream, 0.7 to 2.4 kB, which no decoder needs
# and which would weigh in short videos. With one thread, the same frames give the same file. In frames of
# 64 pixels or less a side, x265 reads and writes beyond its memory: the file differs each time, or the process ends.
FORMATS = {
    "h264": VideoFormat("H.264", "libx264", X264_OPTIONS, "filter_units=remove_types=6", 16),
    "h265": VideoFormat(
        "H.265", "libx265", {"x265-params": "log-level=error:info=0:pools=none:frame-threads=1"}, "", 128
    ),
}


class VideoCodec(PixelModel):
    """A codec of videos; an image is a video of one frame. ``size`` is the whole MP4 file without encoder's remarks.

    Chroma is halved (yuv420p, BT.709), which needs even sides: odd ones, and those below 16 (H.264) or 128 pixels
    (H.265), are padded by their edge and cut again. Frames are evenly spaced: time stamps of a varying rate are left
    out. Give one of: ``crf``, from 0 (best) to 51; ``bit_rate``, bits a second, which the encoder meets about, in one
    pass; ``at_most``, for each item the lowest CRF, in quarters, whose file is not larger.
    Raises: AtokenError for another format, or where this PyAV was built without its encoder.
    """

    def __init__(
        self, format: str, *, crf: float | None = None, bit_rate: int | None = None, at_most: AtMost | None = None
    ) -> None:
        if format not in FORMATS:
            raise AtokenError(f"There is no video codec {format!r}; take {', '.join(FORMATS)}.")
        self.format, self.at_most = FORMATS[format], at_most
        _check_built_in(self.format)
        given = {"crf": crf, "bit rate": bit_rate, "bytes": at_most}
        chosen = {name: value for name, value in given.items() if value is not None}
        if len(chosen) != 1 or not 0 <= (crf or 0) <= 51 or (bit_rate is not None and bit_rate < 1):
            raise AtokenError(
                f"{self.format.name} takes a CRF from 0 to 51, a bit rate above 0, or bytes; got {chosen}."
            )
        self.quality = {"crf": f"{crf:g}"} if crf is not None else {"b": str(bit_rate)}
        setting = " ".join(f"{name} {value}" for name, value in chosen.items())
        self.name = f"{self.format.name}, {setting}"
        self.record = {
            "codec": f"{self.format.name}, 4:2:0, BT.709, sides padded to even ones of {self.format.smallest} or more",
            "options": "preset modality, no tune, one thread",
            "encoder": f"PyAV {av.__version__}, {self.format.encoder}, libavcodec {_version()}",
            "quality": setting,
            "bytes": "whole MP4 file, without the encoder's remarks",
        }

    def _output(self, item: Item) -> Output:
        frames = frames_of(item, self.format.name)
        rate = item.media.fps if isinstance(item.media, Video) else Fraction(24)
        if self.at_most is None:
            data = self.encoded(frames, rate, self.quality)
        else:
            data = self._fitting(frames, rate, item.key, self.at_most.of(item.key))
        return Output(item, frames, cut(decoded(data), frames, self.format.name), size=len(data))

    def _fitting(self, frames: np.ndarray, rate: Fraction, key: str, most: int) -> bytes:
        encoded: Callable[[float], bytes] = lambda crf: self.encoded(frames, rate, {"crf": f"{crf:g}"})  # noqa: E731
        found = largest(CRFS, encoded, most)
        if found is None:
            raise too_large(self.format.name, key, len(encoded(CRFS[0])), most)
        return found[1]

    def encoded(self, frames: np.ndarray, rate: Fraction, quality: dict[str, str]) -> bytes:
        """The MP4 file of frames (T, H, W, 3). ``quality``: FFmpeg's option. Raises: AtokenError."""
        whole = padded(frames, (1, 2, 2))
        height, width = (max(side, self.format.smallest) for side in whole.shape[1:3])
        file = io.BytesIO()
        try:
            with av.open(file, "w", format="mp4") as container:
                stream: Any = container.add_stream(
                    self.format.encoder, rate=rate, options=self.format.options | quality
                )
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                context = stream.codec_context
                context.thread_count, context.time_base = 1, 1 / rate
                context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
                for packet in _packets(stream, padded(whole, (1, height, width)), rate, self.format.remarks):
                    container.mux(packet)
        except (OSError, av.FFmpegError, ValueError) as error:
            raise AtokenError(f"{self.format.name} cannot hold {len(frames)} frames of {width}x{height}.") from error
        return file.getvalue()


def _check_built_in(format: VideoFormat) -> None:
    try:
        Codec(format.encoder, "w")
    except UnknownCodecError as error:
        raise AtokenError(
            f"This PyAV ({av.__version__}) was built without {format.encoder}, the encoder of {format.name}; install "
            "another."
        ) from error


def _version() -> str:
    return ".".join(map(str, av.library_versions["libavcodec"]))


def _packets(stream: Any, frames: np.ndarray, rate: Fraction, remarks: str) -> Iterator[Packet]:
    encoded = list(_encoded(stream, frames, rate))
    # x265 gives no decoding times to videos of few frames. These rise by one, and none is after its frame is shown.
    late = max(number - (packet.pts or 0) for number, packet in enumerate(encoded))
    without = BitStreamFilterContext(remarks, stream) if remarks else None
    for number, packet in enumerate(encoded):
        packet.dts = number - late
        yield from [packet] if without is None else without.filter(packet)
    if without is not None:
        yield from without.filter(None)


def _encoded(stream: Any, frames: np.ndarray, rate: Fraction) -> Iterable[Packet]:
    for number, pixels in enumerate(frames):
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
            format="yuv420p",
            src_colorspace=Colorspace.DEFAULT,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = number, 1 / rate
        yield from stream.encode(frame)
    yield from stream.encode(None)


def decoded(data: bytes) -> np.ndarray:
    """(T, H, W, 3) uint8 of a file that ``VideoCodec.encoded`` made, as ``atoken.io.read_video`` has it.

    In this process, for the file is our own; files of others are read by a child with limits.
    """
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        frames = [_rgb(frame) for frame in container.decode(video=0)]
    return np.stack(frames)


def _rgb(frame: VideoFrame) -> np.ndarray:
    pixels: np.ndarray = frame.reformat(
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.DEFAULT,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()
    return pixels
