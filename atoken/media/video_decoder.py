"""Decoding inside the child process: exact time stamps, and an error for every lost frame.

FFmpeg conceals damage where it can; here a decoder must stop at the first error, and the number of frames is compared
with what the container states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import takewhile
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from atoken.errors import AtokenError, MediaError
from atoken.media.clock import clock_slack, exact_fps
from atoken.media.limits import Limits
from atoken.media.worker import reason

T = TypeVar("T")
Turn = tuple[bool, bool, bool]  # swap rows and columns, then flip the rows, flip the columns
Timed = Iterator[tuple[Fraction, T]]

_HDR = (16, 18)  # the transfer functions PQ and HLG
_FALLBACK_FPS = Fraction(24)  # of a video that states no rate


class Decoder:
    """The first video stream of a file, decoded by PyAV. Raises: MediaError; PyAV's own errors while it is opened."""

    def __init__(self, file: BinaryIO, format: str, name: str, limits: Limits, tick: Callable[[], None]) -> None:
        self.name, self._file, self._format, self._limits, self._tick = name, file, format, limits, tick
        self._container = _open(file, format)
        self._stream = _first_video(self._container, name)
        context = self._stream.codec_context
        limits.check_size(context.height, context.width, f"A frame of {name}")
        # FRAME threads (in AUTO) and explode together make libavcodec report damage that it otherwise conceals.
        # Twice the limit, because a codec pads frames to whole blocks.
        # Not of FFV1: there, frame threads give different pixels each time for the same damaged file.
        self._stream.thread_type = "SLICE" if context.name == "ffv1" else "AUTO"
        context.options = {"err_detect": "explode", "max_pixels": str(2 * limits.max_pixels + 65_536)}
        self.fps = _rate(self._stream)
        self.slack = clock_slack(self._stream.time_base or 1 / self.fps)
        self._reformatter = VideoReformatter()
        self._size = (0, 0)

    def frames(self) -> Timed[VideoFrame]:
        """Decode all frames with their times in seconds from the first. Raises: MediaError."""
        count, discarded, end, reached = 0, 0, Fraction(0), None
        times = Times(self.fps)
        try:
            for number, packet in enumerate(self._container.demux(self._stream)):
                self._tick()
                self.check_count(number // 2)  # a frame has at most two packets, its fields
                discarded += packet.is_discard
                timed, cause = [], ""
                for frame in self._decode(packet, count):
                    timed.append((self.checked_time(times.next(_seconds(frame.pts, frame.time_base))), frame))
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

    def describe(self, first: VideoFrame) -> dict[str, Any]:
        """For JSON: the fields of ``VideoInfo``, how to make frames upright, and notes on what is not read."""
        turn = _turn(first, self.name)
        height, width = (first.width, first.height) if turn[0] else (first.height, first.width)
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

    def pixels(self, frame: VideoFrame) -> tuple[memoryview, int]:
        """Convert to RGB; give the rows, which may have padding, and the bytes from one row to the next."""
        rgb = self._reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=frame.colorspace,  # PyAV would ignore the file's matrix unless the two differ
            dst_colorspace=Colorspace.DEFAULT,
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
        )
        plane = rgb.planes[0]
        return memoryview(plane)[: plane.line_size * rgb.height], plane.line_size

    def packet_times(self) -> list[Fraction]:
        """Give the times of all frames for decord, without decoding, in seconds from the first. Raises: MediaError."""
        self._file.seek(0)
        with _open(self._file, self._format) as container:
            stream = _first_video(container, self.name)
            packets: list[tuple[Fraction | None, bool]] = []
            for packet in container.demux(stream):
                self._tick()
                self.check_count(len(packets))
                packets += [(_seconds(packet.pts, packet.time_base), packet.is_discard)] if packet.size else []
        stamps = [stamp for stamp, is_discarded in packets if not is_discarded]
        known = sorted(stamp for stamp in stamps if stamp is not None)
        times = Times(self.fps)
        found = [times.next(stamp) for stamp in (known if len(known) == len(stamps) else [None] * len(stamps))]
        end = times.origin + (found[-1] if found else 0) + 1 / self.fps
        cause = self._lost(len(found), end, len(packets) - len(stamps))
        if cause:
            raise MediaError(
                f"Cannot read {self.name} with decord: it is damaged ({cause}); get a sound copy, or read what is "
                "sound with reader='pyav' and frames=."
            )
        return found

    def check_count(self, count: int) -> None:
        """Refuse more than ``limits.max_frames`` frames. Raises: MediaError."""
        if count > self._limits.max_frames:
            raise MediaError(
                f"{self.name} has more than {self._limits.max_frames:,} frames; raise the limit "
                "(Limits.max_frames), lower fps=, or read a part with frames=."
            )

    def checked_time(self, seconds: Fraction) -> Fraction:
        """Give ``seconds`` back unless it is beyond ``limits.max_seconds``. Raises: MediaError."""
        if seconds > self._limits.max_seconds:
            raise MediaError(
                f"{self.name} is longer than {self._limits.max_seconds:g} seconds; raise the limit "
                "(Limits.max_seconds), or read a part with frames=."
            )
        return seconds

    def damaged(self, count: int, cause: str) -> MediaError:
        """Say that only ``count`` frames are sound."""
        kept = f", or read what is sound with frames=(0, {count})" if count else ""
        return MediaError(
            f"Cannot read {self.name}: it is damaged after {count} frames ({cause}); get a sound copy{kept}."
        )

    def _decode(self, packet: Packet, count: int) -> list[VideoFrame]:
        """Decode one packet, or what is left in the decoder if it is incomplete or the last. Raises: MediaError."""
        frames = self._stream.decode(None if packet.is_corrupt else packet)
        for index, frame in enumerate(frames, count):
            if frame.is_corrupt:
                raise self.damaged(count, "a frame is incomplete")
            self._check_frame(frame, index)
        return frames

    def _check_frame(self, frame: VideoFrame, index: int) -> None:
        size = (frame.width, frame.height)
        if index == 0:
            self._size = size
            self._limits.check_size(frame.height, frame.width, f"A frame of {self.name}")
            if self._stream.metadata.get("alpha_mode") == "1" or any(part.is_alpha for part in frame.format.components):
                raise MediaError(f"Cannot read {self.name}: it has an alpha channel; flatten it on a background first.")
        elif size != self._size:
            raise MediaError(f"Cannot read {self.name}: its frame size changes at frame {index}; re-encode it.")

    def _lost(self, count: int, end: Fraction, discarded: int, corrupt: bool = False) -> str:
        """What is missing by the container's count of frames or, without one, its duration; "" if nothing."""
        if corrupt:
            return "a packet is incomplete"
        if self._stream.frames:
            # An edit list that hides some of the frames makes the count of all of them meaningless.
            lost = not discarded and not self._is_trimmed() and count < self._stream.frames
        else:
            length = _stated_length(self._container, self._stream)
            lost = length is not None and end + 2 / self.fps < length
        return f"only {count} of {self._declared_frames()} frames can be decoded" if lost else ""

    def _declared_frames(self) -> int | None:
        length = _stated_length(self._container, self._stream)
        if self._stream.frames and not self._is_trimmed():
            return self._stream.frames
        return None if length is None else max(round(length * self.fps), 1)

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
        count = sum(not _is_cover(stream) for stream in self._container.streams.video)
        if count > 1:
            notes.append(f"only the first of {count} video streams is read.")
        if self._stream.codec_context.color_trc in _HDR:
            notes.append("it is HDR and is not tone-mapped; the result looks flat.")
        aspect = self._stream.sample_aspect_ratio
        if aspect and aspect != 1:
            notes.append(f"its pixels are not square ({aspect}); they are read as they are.")
        return notes


class Times:
    """Turns time stamps into times from the first frame that rise strictly, whatever the file says."""

    def __init__(self, fps: Fraction) -> None:
        self.origin = Fraction(0)
        self._step = 1 / fps
        self._last: Fraction | None = None

    def next(self, stamp: Fraction | None) -> Fraction:
        """Give the next time in seconds: the stamp's, or one frame later where it is missing or does not rise."""
        if self._last is None:
            self.origin, self._last = stamp or Fraction(0), Fraction(0)
        elif stamp is None or stamp - self.origin <= self._last:
            self._last += self._step
        else:
            self._last = stamp - self.origin
        return self._last


def resampled(frames: Timed[T], rate: Fraction, last_seconds: Fraction, slack: Fraction) -> Timed[T]:
    """Give for k = 0, 1, ... the frame that is shown at k / rate, until ``last_seconds`` after the last one began."""
    count, shown, end = 0, None, Fraction(0)
    for seconds, frame in frames:
        while shown is not None and count / rate + slack < seconds:
            yield count / rate, shown
            count += 1
        shown, end = frame, seconds + last_seconds
    while shown is not None and count / rate + slack < end:
        yield count / rate, shown
        count += 1


def decord_frames(path: str, decoder: Decoder) -> tuple[Timed[int], Callable[[int], tuple[Any, int]]]:
    """Open decord on ``path``: the frames' times and indices, and what reads the pixels of one. Raises: MediaError.

    The times are those of the packets, because decord rounds its own to float32.
    """
    import decord

    times = decoder.packet_times()
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), fault_tol=1e-9)
    except Exception as error:  # decord raises its own and other types
        raise MediaError(f"Cannot read {decoder.name} with decord; use reader='pyav'.") from error
    if len(reader) != len(times):
        raise MediaError(
            f"Cannot read {decoder.name} with decord: it counts {len(reader)} frames where the file has {len(times)}; "
            "use reader='pyav'."
        )

    def pixels(index: int) -> tuple[Any, int]:
        try:
            frame = reader[index].asnumpy()
        except Exception as error:  # decord raises its own and other types on damaged input
            raise decoder.damaged(index, reason(error)) from error
        return frame, frame.nbytes // len(frame)  # rows may have padding, and the shape may then be wrong

    return ((decoder.checked_time(seconds), index) for index, seconds in enumerate(times)), pixels


def left_by_decord(turn: Turn, name: str) -> Turn:
    """No rotation is left, because decord rotates frames itself. Raises: MediaError if mirrored."""
    if sum(turn) % 2:
        raise MediaError(f"Cannot read {name} with decord: it is mirrored, which decord ignores; use reader='pyav'.")
    return False, False, False


def _ends(packet: Packet) -> bool:
    """Whether the decoder must be flushed: at the end of the file, and before a missing part."""
    return packet.is_corrupt or not packet.size


def _without_gaps(rest: list[tuple[Fraction, VideoFrame]], reached: int | None) -> list[tuple[Fraction, VideoFrame]]:
    """Leave out frames that a lost one may precede.

    Packets are stored by decoding time, and a frame is shown no earlier than that; so a lost frame would be shown after
    ``reached``, the last decoding time that was read.
    """

    def is_sound(timed: tuple[Fraction, VideoFrame]) -> bool:
        return reached is not None and timed[1].pts is not None and timed[1].pts <= reached

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


def _rate(stream: VideoStream) -> Fraction:
    """Give the mean rate, else FFmpeg's guess, else the fallback; only rates up to 1000 count."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate <= 1000:
            return exact_fps(rate)
    return _FALLBACK_FPS


def _stated_length(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Give the length of the video in seconds as the container states it."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    tag = stream.metadata.get("DURATION", "")  # of Matroska, "00:00:02.500000000"
    with suppress(ValueError, OverflowError):
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(float(seconds)).limit_denominator(10**9)
    if container.duration and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return None


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
