"""Decoding inside the child process: exact time stamps, and an error for every lost frame.

FFmpeg conceals damage where it can; here a decoder must stop at the first error, and the number of frames is compared
with what the container states. Alpha of VP8 and VP9 is a video of its own, in the blocks that Matroska adds to those of
the colours (WebM's "AlphaMode"); its brightness is the alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from itertools import takewhile
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn, cast

import av
import numpy as np
from av.codec import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from atoken.errors import AtokenError, MediaError
from atoken.media.clock import Timed, Times, clock_slack, exact_fps
from atoken.media.limits import Limits
from atoken.media.process import DATA, RGBA
from atoken.media.worker import reason

Turn = tuple[bool, bool, bool]  # swap rows and columns, then flip the rows, flip the columns

_ADDED: Final = "matroska_block_additional"
_ALPHA_ID = (1).to_bytes(8, "big")  # of a block with alpha; FFmpeg puts the id before the data
_HDR = (16, 18)  # the transfer functions PQ and HLG
_FALLBACK_FPS = Fraction(24)  # of a video that states no rate
_RAW = ("h264", "hevc")  # formats without time stamps
_LENGTH_UNKNOWN = ("mpegts", "yuv4mpegpipe", *_RAW)  # formats whose length FFmpeg guesses from the size or the end


class Decoded(NamedTuple):
    """A decoded frame, and the frame whose brightness is its alpha, if that is stored apart."""

    frame: VideoFrame
    alpha: VideoFrame | None


class KeyFrame(NamedTuple):
    """A key frame to start at: its number, and time stamps of it and of the first frame, in ticks of the stream."""

    number: int
    stamp: int
    first_stamp: int


class Decoder:
    """The first video stream of a file, decoded by PyAV. Raises: MediaError; PyAV's own errors while it is opened."""

    def __init__(self, file: BinaryIO, format: str, name: str, limits: Limits, tick: Callable[[], None]) -> None:
        self.name, self._file, self._format, self._limits, self._tick = name, file, format, limits, tick
        self._container = _open(file, format)
        self._stream = _first_video(self._container, name)
        context = self._stream.codec_context
        if not context.width and format in _LENGTH_UNKNOWN:  # what begins anywhere may have no key frame
            raise MediaError(f"Cannot read {name}: it holds no frame that can be decoded.")
        limits.check_size(context.height, context.width, f"A frame of {name}")
        # FRAME threads (in AUTO) and explode together make libavcodec report damage that it otherwise conceals.
        # Twice the limit, because a codec pads frames to whole blocks.
        # Not of FFV1: there, frame threads give different pixels each time for the same damaged file.
        self._stream.thread_type = "SLICE" if context.name == "ffv1" else "AUTO"
        self._options = {"err_detect": "explode", "max_pixels": str(2 * limits.max_pixels + 65_536)}
        context.options = self._options
        self._alphas: dict[int | None, list[VideoFrame]] = {}  # by time stamp, of packets that are in the decoder
        self._alpha_context: VideoCodecContext | None = None
        self.fps = _rate(self._stream, is_raw=format in _RAW)
        self.last_seconds = 1 / self.fps  # for which the last frame is shown
        self._skipped = 0  # packets before the first key frame
        self.slack = clock_slack(self._stream.time_base or 1 / self.fps)
        self._reformatter = VideoReformatter()
        self._size = (0, 0)

    def key_frame(self, start: int) -> KeyFrame | None:
        """The last key frame up to frame ``start``, by the time stamps of all packets; None if they do not tell."""
        keys: list[int] = []
        stamps: list[int] = []
        if self._format not in ("mov", "matroska"):
            return None
        with suppress(av.FFmpegError):
            for packet in self._container.demux(self._stream):
                self._tick()
                if packet.size:
                    if packet.pts is None or packet.is_corrupt or packet.is_discard:
                        return None
                    keys += [packet.pts] * packet.is_keyframe
                    stamps.append(packet.pts)
        stamps.sort()
        if len(set(stamps)) < len(stamps) or start >= len(stamps):
            return None
        stamp = max((key for key in keys if key <= stamps[start]), default=stamps[0])
        return KeyFrame(stamps.index(stamp), stamp, stamps[0])

    def frames(self, key: KeyFrame | None = None) -> Timed[Decoded]:
        """Decode all frames, or those from ``key`` on, with their times in seconds from the first of the file.

        Raises: MediaError.
        """
        count, discarded, end, reached = 0, 0, Fraction(0), None
        times = Times(self.fps)
        try:
            if key:
                count = key.number
                times.next(_seconds(key.first_stamp, self._stream.time_base))
                self._container.seek(key.stamp, stream=self._stream)
            for number, packet in enumerate(self._container.demux(self._stream), count):
                self._tick()
                self._limits.check_frames(number // 2, self.name)  # a frame has at most two packets, its fields
                if self._format == "mpegts" and self._skipped == number and packet.size and not packet.is_keyframe:
                    self._skipped += 1
                    continue
                if key and packet.pts is not None and packet.pts < key.stamp:
                    continue  # it may need frames before the key frame
                discarded += packet.is_discard
                timed: list[tuple[Fraction, Decoded]] = []
                cause = ""
                for frame in self._decode(packet, count):
                    stamp = None if self._format in _RAW else _seconds(frame.pts, frame.time_base)
                    seconds = times.next(stamp)
                    self._limits.check_seconds(seconds, self.name)
                    timed.append((seconds, Decoded(frame, self._alpha_of(frame, count + len(timed)))))
                    end = times.origin + timed[-1][0] + (_seconds(frame.duration, frame.time_base) or 1 / self.fps)
                if _ends(packet):
                    cause = self._lost(count + len(timed), end, discarded, packet.is_corrupt)
                    timed = _without_gaps(timed, reached) if cause else timed
                yield from timed
                count += len(timed)
                if cause:
                    raise self.damaged(count, cause)
                reached = packet.dts
        except AtokenError:
            raise
        except Exception as error:  # PyAV raises nearly any type on damaged input
            raise self.damaged(count, reason(error)) from error

    def describe(self, first: Decoded) -> dict[str, Any]:
        """For JSON: the fields of ``VideoInfo``, how to make frames upright, and notes on what is not read."""
        frame = first.frame
        turn = _turn(frame, self.name)
        height, width = (frame.width, frame.height) if turn[0] else (frame.height, frame.width)
        duration = self._container.duration
        return {
            "info": {
                "height": height,
                "width": width,
                "fps": str(self.fps),
                "time_base": str(self._stream.time_base or 1 / self.fps),
                "declared_frames": self._declared_frames(),
                "duration": None if duration is None else duration / av.time_base,
                "has_audio": bool(self._container.streams.audio),
                "container": self._format,
                "codec": self._stream.codec_context.name,
            },
            "turn": turn,
            "notes": self._notes(),
        }

    def pixels(self, decoded: Decoded) -> tuple[bytes, Any, int]:
        """Convert to RGB or RGBA: the kind of message, rows, which may have padding, bytes from one to the next."""
        frame, alpha = decoded
        has_alpha = _has_alpha(frame)
        rgb = self._reformatter.reformat(
            frame,
            format="rgba" if has_alpha else "rgb24",
            src_colorspace=frame.colorspace,  # PyAV would ignore the file's matrix unless the two differ
            dst_colorspace=Colorspace.DEFAULT,
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
        )
        if alpha is not None and not has_alpha:
            return RGBA, np.dstack([_pixels(rgb, 3), _pixels(alpha, 1)]), 4 * rgb.width
        plane = rgb.planes[0]
        return RGBA if has_alpha else DATA, memoryview(plane)[: plane.line_size * rgb.height], plane.line_size

    def damaged(self, count: int, cause: str) -> MediaError:
        """Say that only ``count`` frames are sound."""
        kept = f", or read what is sound with frames=(0, {count})" if count else ""
        return MediaError(
            f"Cannot read {self.name}: it is damaged after {count} frames ({cause}); get a sound copy{kept}."
        )

    def _decode(self, packet: Packet, count: int) -> list[VideoFrame]:
        """Decode one packet, or what is left in the decoder if it is incomplete or the last. Raises: MediaError."""
        self._decode_alpha(packet)
        frames = self._stream.decode(None if packet.is_corrupt else packet)
        for index, frame in enumerate(frames, count):
            if frame.is_corrupt:
                raise self.damaged(count, "a frame is incomplete")
            self._check_frame(frame, index)
        return frames

    def _check_frame(self, frame: VideoFrame, index: int) -> None:
        size = (frame.width, frame.height)
        if self._size == (0, 0):
            self._size = size
            self._limits.check_size(frame.height, frame.width, f"A frame of {self.name}")
        elif size != self._size:
            raise MediaError(f"Cannot read {self.name}: its frame size changes at frame {index}; re-encode it.")

    def _decode_alpha(self, packet: Packet) -> None:
        """Decode the alpha that comes beside a packet of VP8 or VP9, whatever tags say of it."""
        codec = self._stream.codec_context.name
        if codec not in ("vp8", "vp9") or packet.is_corrupt or not packet.has_sidedata(_ADDED):
            return
        added = bytes(packet.get_sidedata(_ADDED))
        if added.startswith(_ALPHA_ID):
            if self._alpha_context is None:
                self._alpha_context = context = cast(VideoCodecContext, CodecContext.create(codec, "r"))
                context.options, context.thread_count = self._options, 1  # one thread gives its frames at once
            self._alphas[packet.pts] = self._alpha_context.decode(Packet(added[len(_ALPHA_ID) :]))

    def _alpha_of(self, frame: VideoFrame, index: int) -> VideoFrame | None:
        """The alpha that came beside the packet of ``frame``; None where it is opaque. Raises: MediaError."""
        if frame.pts not in self._alphas:
            return None
        alphas = self._alphas[frame.pts]
        self._alphas = {pts: rest for pts, rest in self._alphas.items() if pts is not None and pts > (frame.pts or 0)}
        if not alphas or alphas[0].is_corrupt:
            raise self.damaged(index, "the alpha of a frame is incomplete")
        if (alphas[0].width, alphas[0].height) != (frame.width, frame.height):
            raise MediaError(f"Cannot read {self.name}: the alpha of frame {index} has another size; re-encode it.")
        return alphas[0]

    def _lost(self, count: int, end: Fraction, discarded: int, corrupt: bool = False) -> str:
        """What is missing by the container's count of frames or, without one, its duration; "" if nothing."""
        if corrupt:
            return "a packet is incomplete"
        if self._stream.frames:
            # An edit list that hides some of the frames makes the count of all of them meaningless.
            lost = not discarded and not self._is_trimmed() and count < self._stream.frames
        else:
            length = self._stated_length()
            lost = length is not None and end + 2 / self.fps < length
        return f"only {count} of {self._declared_frames()} frames can be decoded" if lost else ""

    def _declared_frames(self) -> int | None:
        length = self._stated_length()
        if self._stream.frames and not self._is_trimmed():
            return self._stream.frames
        return None if length is None else max(round(length * self.fps), 1)

    def _stated_length(self) -> Fraction | None:
        """Give the length of the video in seconds as the container states it."""
        stream, container = self._stream, self._container
        if self._format in _LENGTH_UNKNOWN:
            return None
        if stream.duration and stream.time_base:
            return stream.duration * stream.time_base
        tag = stream.metadata.get("DURATION", "")  # of Matroska, "00:00:02.500000000"
        with suppress(ValueError, OverflowError):
            hours, minutes, seconds = tag.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + Fraction(float(seconds)).limit_denominator(10**9)
        if container.duration and len(container.streams) == 1:
            return Fraction(container.duration, av.time_base)
        return None

    def _is_trimmed(self) -> bool:
        """Whether an edit list of an MP4 shows less than the file holds: the mean rate is that of all frames."""
        stream = self._stream
        if self._format != "mov" or not (
            stream.frames and stream.duration and stream.time_base and stream.average_rate
        ):
            return False
        return stream.duration * stream.time_base < (stream.frames - Fraction(3, 2)) / stream.average_rate

    def _notes(self) -> list[str]:
        notes = []
        if self._container.streams.audio:
            notes.append("the audio is not tokenised; the result has no sound.")
        if self._skipped:
            notes.append(f"it begins between key frames; its first {self._skipped} frames are left out.")
        count = sum(not _is_cover(stream) for stream in self._container.streams.video)
        if count > 1:
            notes.append(f"only the first of {count} video streams is read.")
        if self._stream.codec_context.color_trc in _HDR:
            notes.append("it is HDR and is not tone-mapped; the result looks flat.")
        aspect = self._stream.sample_aspect_ratio
        if aspect and aspect != 1:
            notes.append(f"its pixels are not square ({aspect}); they are read as they are.")
        return notes


def _has_alpha(frame: VideoFrame) -> bool:
    """Whether its pixels have alpha; of a palette, in which unused colours are transparent, whether one has."""
    if frame.format.name == "pal8":
        return bool((frame.reformat(format="rgba").to_ndarray()[..., 3] < 255).any())
    return any(part.is_alpha for part in frame.format.components)


def _pixels(frame: VideoFrame, channels: int) -> np.ndarray:
    """The first plane (H, W, channels), without the padding of its rows."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
        : frame.height, : channels * frame.width
    ]
    return rows.reshape(frame.height, frame.width, channels)


def _ends(packet: Packet) -> bool:
    """Whether the decoder must be flushed: at the end of the file, and before a missing part."""
    return packet.is_corrupt or not packet.size


def _without_gaps(rest: list[tuple[Fraction, Decoded]], reached: int | None) -> list[tuple[Fraction, Decoded]]:
    """Leave out frames that a lost one may precede.

    Packets are stored by decoding time, and a frame is shown no earlier than that; so a lost frame would be shown after
    ``reached``, the last decoding time that was read.
    """

    def is_sound(timed: tuple[Fraction, Decoded]) -> bool:
        shown = timed[1].frame.pts
        return reached is not None and shown is not None and shown <= reached

    return list(takewhile(is_sound, rest))


def _seconds(ticks: int | None, time_base: Fraction | None) -> Fraction | None:
    return None if ticks is None or time_base is None else ticks * time_base


def _open(file: BinaryIO, format: str) -> InputContainer:
    return av.open(file, "r", format=format, metadata_errors="replace", io_open=_refuse)


def _refuse(*request: Any) -> NoReturn:
    """Refuse to open another file or address that a demuxer asks for."""
    raise PermissionError("it refers to another file")


def _first_video(container: InputContainer, name: str) -> VideoStream:
    stream = next((stream for stream in container.streams.video if not _is_cover(stream)), None)
    if stream is None:
        raise MediaError(f"Cannot read {name}: it has no video, only other streams.")
    if stream.codec_context is None:
        raise MediaError(f"Cannot read {name}: this FFmpeg does not know its video codec; re-encode it.")
    return stream


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _rate(stream: VideoStream, *, is_raw: bool) -> Fraction:
    """Give the mean rate, else FFmpeg's guess, else the fallback; only rates up to 1000 count.

    The mean rate of a raw stream is always 25, and FFmpeg's guess what the stream states.
    """
    rates = (stream.average_rate, stream.guessed_rate)
    for rate in reversed(rates) if is_raw else rates:
        if rate and 0 < rate <= 1000:
            return exact_fps(rate)
    return _FALLBACK_FPS


def _turn(frame: VideoFrame, name: str) -> Turn:
    """Read the display matrix. Raises: MediaError if it is not a quarter turn, mirrored or not."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = memoryview(bytes(cast(Any, data))).cast("i")[:5]
    largest = max(abs(a), abs(b), abs(c), abs(d))
    a, b, c, d = (value if 100 * abs(value) > largest else 0 for value in (a, b, c, d))  # muxers round
    if (a or d) and (b or c):
        raise MediaError(f"Cannot read {name}: its rotation is not a multiple of 90 degrees; re-encode it.")
    if b or c:
        return True, b < 0, c < 0
    return False, d < 0, a < 0
