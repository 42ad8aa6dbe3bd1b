"""Videos, written atomically as MP4, WebM or MOV through PyAV: any size from 1x1, exact rates or time stamps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from platform import machine
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Self, cast

import numpy as np

from atoken.atomic import Target, atomic_path, called, suffix_of
from atoken.errors import AtokenError, AtokenWarning, MediaError
from atoken.media.clock import check_timestamps, exact_fps
from atoken.media.image import check_alpha

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

# FFmpeg's options for x264, so that the same frames give the same file: its AVX-512 code reads memory that nothing has
# written (PyAV 18, in the macroblock tree). What is named here every x86 has that NumPy runs on.
X264_OPTIONS = (
    {"x264-params": "asm=MMX2,SSE2Fast,SSE3,SSSE3,SSE4.1,SSE4.2"} if machine().lower() in ("x86_64", "amd64") else {}
)


# VP9 at a speed between those for archives and for live video; it needs the bit rate 0 to take the quality as given.
_VP9_OPTIONS = {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}


class _Kind(NamedTuple):
    """How files of one suffix are written: pixel formats without and with alpha, and seconds a tick of time stamps."""

    codec: str
    pixels: str
    with_alpha: str
    clock: Fraction
    options: dict[str, str]


_KINDS = {
    ".mp4": _Kind("libx264", "yuv420p", "", Fraction(1, 90_000), X264_OPTIONS),
    ".webm": _Kind("libvpx-vp9", "yuv420p", "yuva420p", Fraction(1, 1000), _VP9_OPTIONS),
    ".mov": _Kind("png", "rgb24", "rgba", Fraction(1, 90_000), {}),
}


class VideoWriter:
    """Writes a video in pieces; use ``with``. The file appears when the block ends, and not if it raises.

    ``target``: a path, whose suffix decides: ``.mp4`` is H.264 without alpha, ``.webm`` VP9 and ``.mov`` PNG, lossless,
    both with alpha if ``alpha`` is True; or a binary file object, which gets the video when the block ends. ``format``
    ("mp4", ...) goes before the suffix; without either, a video with alpha is WebM, and others are MP4.

    ``fps`` is frames a second, ``size`` (H, W) in pixels. ``crf`` is the quality of
    H.264 and VP9: 0 is best, 18 looks lossless, 51 is worst. Their colours are BT.709, limited range, yuv420p, which
    every player shows; H.264 has no odd sizes of that, so those are yuv444p, which VLC, mpv and FFmpeg show but many
    browsers and hardware players do not.
    Raises: MediaError (a name, size, rate, frames or times that cannot be written, no space on the disk). Warns if
    there is alpha, and MP4 leaves it out.
    """

    def __init__(
        self,
        target: Target,
        fps: Fraction | float,
        *,
        size: tuple[int, int],
        crf: int = 18,
        alpha: bool = False,
        format: str | None = None,
    ) -> None:
        self._target, self._name = target, called(target)
        self._suffix = suffix_of(target, ".webm" if alpha else ".mp4", format)
        if self._suffix not in _KINDS:
            raise MediaError(f"Cannot write {self._name}: choose a name that ends in {', '.join(_KINDS)}.")
        if min(size) < 1:
            raise MediaError(f"Cannot write {self._name}: a frame of size {size} has no pixels.")
        self._size, self._fps, self._crf = tuple(size), exact_fps(fps), crf
        self._kind, self._alpha = _KINDS[self._suffix], alpha
        if alpha and not self._kind.with_alpha:
            keeping = " or ".join(suffix for suffix, kind in _KINDS.items() if kind.with_alpha)
            why = "which MP4 does not have; a name that ends in"
            warnings.warn(f"{self._name}: alpha is left out, {why} {keeping} keeps it.", AtokenWarning, stacklevel=2)
        self._output: tuple[OutputContainer, VideoStream] | None = None
        self._count = 0
        self._timed = False
        self._first, self._last_tick = 0.0, -1

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            temporary = opened.enter_context(atomic_path(self._target, MediaError))
            self._file: BinaryIO = opened.enter_context(temporary.open("wb"))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._output is not None:
            with self._encoding(), self._opened:
                self._encode(None)
            return
        # atomic_path must remove the file; the exception of the block itself goes on as it is.
        empty = MediaError(f"Cannot write {self._name}: a video needs at least one frame.")
        with suppress(AtokenError), self._encoding(), self._opened:
            raise empty
        if kind is None:
            raise empty

    def write(self, frames: np.ndarray, timestamps: np.ndarray | None = None, alpha: np.ndarray | None = None) -> None:
        """Append ``frames`` (n, H, W, 3) uint8 at the constant rate or, in every call, at ``timestamps`` (n,) float64.

        Time stamps are seconds, strictly rising over all calls and counted from the first; they are kept to 1/90000 s
        (WebM: 1/1000 s), and the last frame lasts 1 / fps. ``alpha`` (n, H, W) uint8, None where the frames are opaque,
        needs a writer with ``alpha=True``. Raises: MediaError.
        """
        expected = (*self._size, 3)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != expected:
            raise MediaError(f"frames must be uint8 of shape (n, *{expected}), got {frames.dtype} {frames.shape}.")
        if timestamps is not None:
            check_timestamps(timestamps, len(frames))
        check_alpha(alpha, frames.shape[:-1])
        if alpha is not None and not self._alpha:
            raise MediaError(f"Cannot write alpha to {self._name}: open the writer with alpha=True.")
        if self._alpha and self._kind.with_alpha:
            opaque = np.full(frames.shape[:-1], 255, np.uint8)
            frames = np.concatenate([frames, (opaque if alpha is None else alpha)[..., None]], axis=-1)
        if self._count and self._timed != (timestamps is not None):
            raise MediaError("Give timestamps in every call of write or in none.")
        for index, frame in enumerate(frames):
            if self._output is None:
                self._begin(None if timestamps is None else float(timestamps[0]))
            self._encode(frame, self._tick(None if timestamps is None else float(timestamps[index])))
            self._count += 1

    def _begin(self, first: float | None) -> None:
        """Open the encoder; whether there are time stamps decides its clock, so this waits for the first frame."""
        import av

        self._timed, self._first = first is not None, first or 0.0
        height, width = self._size
        # Without B-frames the muxer's durations, which it takes from decoding times, are those of the time stamps.
        kind, options = self._kind, self._kind.options | ({"bf": "0"} if self._timed else {})
        with self._encoding():
            container = self._opened.enter_context(av.open(self._file, "w", format=self._suffix[1:]))
            options |= {"crf": str(self._crf)}
            stream = cast("VideoStream", container.add_stream(kind.codec, rate=self._fps, options=options))
            stream.width, stream.height = width, height
            stream.pix_fmt = kind.with_alpha if self._alpha and kind.with_alpha else kind.pixels
            if kind.codec == "libx264" and (height % 2 or width % 2):
                stream.pix_fmt = "yuv444p"
            stream.time_base = stream.codec_context.time_base = kind.clock if self._timed else 1 / self._fps
            context = stream.codec_context
            if stream.pix_fmt.startswith("yuv"):
                context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
                context.color_range = 1  # limited
        self._output = container, stream

    def _tick(self, seconds: float | None) -> int:
        if seconds is None:
            return self._count
        tick = round((seconds - self._first) / self._kind.clock)
        if tick <= self._last_tick:
            least = f"at least {self._kind.clock} s at each frame"
            raise MediaError(f"Cannot write {self._name}: time stamps must rise by {least}.")
        self._last_tick = tick
        return tick

    def _encode(self, pixels: np.ndarray | None, tick: int = 0) -> None:
        """Encode one frame, or with None what the encoder holds back."""
        from av.video.frame import VideoFrame
        from av.video.reformatter import ColorRange, Colorspace

        assert self._output is not None
        container, stream = self._output
        with self._encoding():
            frame = None
            if pixels is not None:
                layout = "rgba" if pixels.shape[-1] == 4 else "rgb24"
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)
                if stream.pix_fmt != layout:
                    frame = frame.reformat(
                        format=stream.pix_fmt,
                        src_colorspace=Colorspace.DEFAULT,
                        dst_colorspace=Colorspace.ITU709,
                        src_color_range=ColorRange.JPEG,
                        dst_color_range=ColorRange.MPEG,
                    )
                frame.pts, frame.time_base = tick, stream.codec_context.time_base
            container.mux(stream.encode(frame))

    @contextmanager
    def _encoding(self) -> Iterator[None]:
        import av

        try:
            yield
        except (OSError, av.FFmpegError, ValueError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise MediaError(f"Cannot write {self._name}: {reason}.") from error
