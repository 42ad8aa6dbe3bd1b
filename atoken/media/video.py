"""Videos, read through PyAV in a child process; animated images are read through Pillow in one, in the same way.

A damaged or hostile file can at worst end the child, which has limits on memory and CPU time and whose demuxer may not
open any other file. Damage that the decoder notices is an error, and so are fewer frames than the container's
count or duration says. Where it states only a duration (MKV, WebM), the loss of up to two last frames goes unnoticed,
where it states nothing (MPEG-TS, y4m, raw H.264 and H.265), that of any number, and so do changed bytes that still
decode, because few codecs carry checksums.

Raw H.264 and H.265 have no time stamps: frame i is at i / rate, by the rate in the stream, else 25 a second. A
transport stream that begins between two key frames, as recordings do, is read from the first key frame on.

Pixels are RGB by the colour matrix and range that the file states (BT.601, limited range where it states none);
HDR is not tone-mapped. Rotation and mirroring by the display matrix are applied. Only the first video stream is read.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from atoken.atomic import Target
from atoken.errors import AtokenWarning, MediaError
from atoken.media.clock import check_timestamps, clock_slack, exact_fps, varying
from atoken.media.formats import Format, Head, begins, format_of
from atoken.media.image import check_alpha, check_pixels
from atoken.media.image_formats import ANIMATIONS
from atoken.media.limits import DEFAULT_LIMITS, Limits
from atoken.media.process import DONE, INFO, RGBA, TEXT_BYTES, ReaderProcess
from atoken.media.source import Source, name_of, opened
from atoken.media.video_writer import VideoWriter
from atoken.summary import Summary

FrameRange = tuple[int | None, int | None]

_TIMEOUT = 30.0  # seconds without a sign of progress


_MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
# Still images in the same box structure (HEIF, AVIF), which FFmpeg's mov demuxer would take for videos.
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")


def _is_mov(head: Head) -> bool:
    still = head.start[4:8] == b"ftyp" and head.start[8:12] in _STILL_BRANDS
    return head.start[4:8] in _MOV_ATOMS and not still


def _is_transport_stream(head: Head) -> bool:
    """Packets of 188 bytes that begin with 0x47; in M2TS, of Blu-ray discs and cameras, behind 4 bytes of time."""
    ways = ((0, 188), (4, 192))
    return any(head.size >= offset + size and set(head.start[offset::size]) == {0x47} for offset, size in ways)


def _is_raw(*first_units: bytes) -> Callable[[Head], bool]:
    """Match a raw stream (Annex B) that begins with a start code and one of these headers of its units."""
    return begins(*(zeros + b"\0\0\1" + unit for zeros in (b"", b"\0") for unit in first_units))


FORMATS = (
    Format("mov", (".mp4", ".m4v", ".mov"), _is_mov),
    Format("matroska", (".mkv", ".webm"), begins(b"\x1a\x45\xdf\xa3")),
    Format("avi", (".avi",), lambda head: head.start[:4] == b"RIFF" and head.start[8:12] == b"AVI "),
    Format("mpegts", (".ts", ".m2ts", ".mts"), _is_transport_stream),
    Format("yuv4mpegpipe", (".y4m",), begins(b"YUV4MPEG2 ")),
    # Parameters, delimiters, supplemental information: no other format has these bytes behind a start code.
    Format("h264", (".h264", ".264"), _is_raw(b"\x67", b"\x27", b"\x47", b"\x09", b"\x06")),
    Format("hevc", (".h265", ".265", ".hevc"), _is_raw(b"\x40\1", b"\x42\1", b"\x46\1", b"\x4e\1")),
    *ANIMATIONS,
)


@dataclass(frozen=True, repr=False)
class Video(Summary):
    """A video: ``frames`` (T, H, W, 3) uint8 RGB, ``fps``, and ``timestamps`` (T,) where the rate varies.

    ``timestamps`` are seconds from the first frame (float64, strictly rising); None means that frame i is at i / fps.
    ``alpha`` (T, H, W) uint8, not premultiplied, or None where no frame has any.
    """

    frames: np.ndarray
    fps: Fraction = Fraction(24)
    timestamps: np.ndarray | None = None
    alpha: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_pixels(self.frames, 4, "A video", "(T, H, W, 3)")
        check_alpha(self.alpha, self.frames.shape[:-1])
        object.__setattr__(self, "fps", exact_fps(self.fps))
        if self.timestamps is not None:
            check_timestamps(self.timestamps, len(self.frames))

    def save(self, target: Target, *, format: str | None = None) -> None:
        """Write the video as ``write_video`` does. Raises: MediaError."""
        write_video(self, target, format=format)


class Frame(NamedTuple):
    """A frame of a ``VideoReader``: its time, ``pixels`` (H, W, 3) and ``alpha`` (H, W) uint8, None where opaque."""

    seconds: float
    pixels: np.ndarray
    alpha: np.ndarray | None


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header and first frame state; ``height`` and ``width`` are those of the upright frame, in pixels.

    ``declared_frames`` is the container's own count, or its duration in frames, or None; whether the rate varies is
    known only from the frames. ``duration`` is in seconds, ``time_base`` the length of a clock tick in seconds.
    """

    height: int
    width: int
    fps: Fraction
    time_base: Fraction
    declared_frames: int | None
    duration: float | None
    has_audio: bool
    container: str
    codec: str


class VideoReader:
    """Reads a video frame by frame: iterate for ``Frame(seconds, pixels, alpha)``; close it, or use ``with``.

    ``source``: a path, bytes, or a binary file, which is read to its end at once; ``name`` is for messages.
    ``seconds`` count from the first frame of the file, exact to its clock. A time stamp that is missing or does not
    rise is replaced by the one before it plus 1 / fps. ``fps`` resamples: frame k is the one shown at k / fps (the last
    whose time stamp is at most that, within ``clock_slack``), up to 1 / source fps after the last time stamp.
    ``frames`` (start, stop) then takes a slice of these; None means from the first, to the last. Of an MP4, MOV, MKV or
    WebM at its own rate the frames before the last key frame up to ``start`` are not decoded; of others all are.
    ``limits`` hold for what is decoded; ``max_memory`` is not used here.

    ``expected_frames`` is how many frames will come if the file holds what it declares, None if it declares nothing.
    Raises, on opening or while iterating: MediaError (missing, damaged, over a limit, fewer frames than
    stated, or no progress for ``timeout`` seconds). Warns of what is not read.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str | None = None,
        frames: FrameRange | None = None,
        fps: Fraction | float | None = None,
        limits: Limits = DEFAULT_LIMITS,
        timeout: float = _TIMEOUT,
    ) -> None:
        start, stop = _checked_range(frames)
        rate = None if fps is None else exact_fps(fps)
        self.path = Path(source) if isinstance(source, str | Path) else None
        self.name = name_of(source, name)
        with opened(source, self.name, for_child=True) as file:
            format = format_of(file, self.name, FORMATS, "a video")
            request = {
                "format": format,
                "start": start,
                "stop": stop,
                "fps": None if rate is None else str(rate),
                "limits": asdict(limits),
            }
            self._process = ReaderProcess("atoken.media.video_worker", self.name, file, request, timeout)
        try:
            self._read_info(limits)
        except BaseException:
            self.close()
            raise
        self.expected_frames = _expected_frames(self.info, rate, start, stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        """Give the next frame. Raises: MediaError."""
        if not self._process.open:
            raise StopIteration
        height, width = self.info.height, self.info.width
        message = self._process.receive(max_bytes=4 * (height + 64) * (width + 64))
        if message.kind == DONE:
            self.close()
            raise StopIteration
        frame = self._upright(message.payload, message.stride, 4 if message.kind == RGBA else 3)
        alpha = np.ascontiguousarray(frame[..., 3]) if message.kind == RGBA else None
        return Frame(message.seconds, np.ascontiguousarray(frame[..., :3]), alpha)

    def close(self) -> None:
        """End the child process; further iteration gives nothing. May be called twice."""
        self._process.close()

    def _read_info(self, limits: Limits) -> None:
        message = self._process.receive(TEXT_BYTES)
        if message.kind != INFO:
            raise self._process.broken()
        stated = json.loads(bytes(message.payload))
        self.info = _info(stated["info"])
        self._turn: tuple[bool, bool, bool] = tuple(stated["turn"])
        limits.check_size(self.info.height, self.info.width, f"A frame of {self.name}")
        for note in stated["notes"]:
            warnings.warn(f"{self.name}: {note}", AtokenWarning, stacklevel=3)

    def _upright(self, payload: np.ndarray, stride: int, channels: int) -> np.ndarray:
        transposed, flip_rows, flip_columns = self._turn
        height, width = self.info.height, self.info.width
        if transposed:
            height, width = width, height
        if len(payload) != height * stride or stride < channels * width:
            error = self._process.broken()
            self.close()
            raise error
        frame = payload.reshape(height, stride)[:, : channels * width].reshape(height, width, channels)
        frame = frame.swapaxes(0, 1) if transposed else frame
        return frame[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def read_video(
    source: Source,
    *,
    name: str | None = None,
    frames: FrameRange | None = None,
    fps: Fraction | float | None = None,
    limits: Limits = DEFAULT_LIMITS,
    timeout: float = _TIMEOUT,
) -> Video:
    """Read a video, or the part and rate that ``frames`` and ``fps`` select as in ``VideoReader``, into memory.

    The video's fps is ``fps``, else the file's mean rate. Its time stamps count from the first frame read, and are None
    where the rate is constant: each within ``clock_slack`` of i / fps. Raises and warns as ``VideoReader`` does, and
    MediaError where the frames would take more than ``limits.max_memory`` bytes.
    """
    with VideoReader(source, name=name, frames=frames, fps=fps, limits=limits, timeout=timeout) as video:
        pixels, times, alpha = _collect(video, limits.max_memory)
    rate = video.info.fps if fps is None else exact_fps(fps)
    return Video(pixels, rate, varying(times, rate, float(clock_slack(video.info.time_base))), alpha)


def _checked_range(frames: FrameRange | None) -> FrameRange:
    start, stop = frames or (None, None)
    for bound in (start, stop):
        if bound is not None and (not isinstance(bound, int) or bound < 0):
            raise MediaError(f"frames must be (start, stop) of whole numbers from 0 or None, got {frames!r}.")
    if stop is not None and stop <= (start or 0):
        raise MediaError(f"frames={frames!r} selects no frame; stop must be above start.")
    return start, stop


def _info(stated: dict[str, Any]) -> VideoInfo:
    return VideoInfo(**stated | {name: Fraction(stated[name]) for name in ("fps", "time_base")})


def _expected_frames(info: VideoInfo, rate: Fraction | None, start: int | None, stop: int | None) -> int | None:
    """How many frames come out of ``declared_frames`` after resampling to ``rate`` and slicing."""
    count = info.declared_frames
    if count is None:
        return None
    if rate is not None:
        count = math.ceil((count / info.fps - clock_slack(info.time_base)) * rate)
    return max(min(count, count if stop is None else stop) - (start or 0), 0)


def joined_alpha(pieces: Sequence[np.ndarray | None], shapes: Sequence[tuple[int, int, int]]) -> np.ndarray | None:
    """(T, H, W) of the alpha of pieces with these shapes, of which some are opaque (None); None where all are."""
    if all(piece is None for piece in pieces):
        return None
    pairs = zip(pieces, shapes, strict=True)
    return np.concatenate([np.full(shape, 255, np.uint8) if a is None else a.reshape(shape) for a, shape in pairs])


def _collect(video: VideoReader, max_memory: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read all frames into one array without holding them twice; give it, times from the first frame, and alpha."""
    frame_shape = (video.info.height, video.info.width, 3)
    capacity = _fitting(video.expected_frames or 16, frame_shape, video.name, max_memory)
    pixels = np.empty((capacity, *frame_shape), np.uint8)
    seconds: list[float] = []
    alphas: list[np.ndarray | None] = []
    for time, frame, alpha in video:
        if alpha is not None:
            _fitting(len(seconds) + 1, (*alpha.shape, 4), video.name, max_memory)
        if len(seconds) == len(pixels):
            _fitting(len(seconds) + 1, frame_shape, video.name, max_memory)
            pixels.resize((len(pixels) * 5 // 4 + 4, *frame_shape), refcheck=False)
        pixels[len(seconds)] = frame
        seconds.append(time)
        alphas.append(alpha)
    pixels.resize((len(seconds), *frame_shape), refcheck=False)
    times = np.array(seconds)
    return pixels, times - times[0], joined_alpha(alphas, [(1, *frame_shape[:2])] * len(alphas))


def _fitting(count: int, frame_shape: tuple[int, int, int], name: str, max_memory: int) -> int:
    if count * math.prod(frame_shape) > max_memory:
        raise MediaError(
            f"{name} has {count:,} frames or more of {frame_shape[1]}x{frame_shape[0]}, over the limit of "
            f"{max_memory / 2**30:.3g} GiB in memory; read a part (frames=), lower fps=, or raise Limits.max_memory."
        )
    return count


def write_video(video: Video, target: Target, *, crf: int = 18, format: str | None = None) -> None:
    """Write a video with its rate or time stamps and its alpha, as ``VideoWriter`` does. Raises: MediaError."""
    size = (video.frames.shape[1], video.frames.shape[2])
    alpha = video.alpha is not None
    with VideoWriter(target, video.fps, size=size, crf=crf, alpha=alpha, format=format) as writer:
        writer.write(video.frames, video.timestamps, video.alpha)
