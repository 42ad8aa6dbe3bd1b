"""What goes in and what comes out: an image or a video as plain arrays, and the limits on reading any file.

Pixels are uint8 RGB at this border, rows first. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from atoken.errors import MediaError


@dataclass(frozen=True)
class Limits:
    """How large a file may be before it is refused; every field can be raised by the caller.

    The defaults let through every usual photograph and video and stop decompression bombs before they cost memory.
    """

    max_pixels: int = 64_000_000  # of an image, of one frame, or of one texture
    max_side: int = 16_384  # pixels
    max_seconds: float = 3_600.0  # of a video
    max_frames: int = 216_000  # of a video: one hour at 60 fps
    max_memory: int = 4 << 30  # bytes of frames that a video may take when it is loaded whole
    max_faces: int = 2_000_000  # triangles of a 3D asset, each instance counted
    max_mesh_bytes: int = 300_000_000  # of a 3D file with all that it names, and of the mesh in memory

    def check_size(self, height: int, width: int, what: str) -> None:
        """Refuse an empty frame or one over ``max_pixels`` or ``max_side``. Raises: MediaError."""
        if height < 1 or width < 1:
            raise MediaError(f"{what} has no pixels ({width}x{height}); nothing can be made of it.")
        if max(height, width) > self.max_side or height * width > self.max_pixels:
            raise MediaError(
                f"{what} is {width}x{height}, over the limit of {self.max_pixels:,} pixels and {self.max_side:,} a "
                "side; raise the limit (--max-pixels, --max-side, or Limits in Python) if you trust the file."
            )

    def check_faces(self, faces: int, vertices: int, what: str) -> None:
        """Refuse more than ``max_faces``, or three times as many vertices. Raises: MediaError."""
        for name, count, most in (("faces", faces, self.max_faces), ("vertices", vertices, 3 * self.max_faces)):
            if count > most:
                raise MediaError(
                    f"{what} has {count:,} {name}, over the limit of {most:,}; simplify it, or raise Limits.max_faces "
                    "if you trust the file."
                )

    def check_mesh_bytes(self, count: int, what: str) -> None:
        """Refuse more than ``max_mesh_bytes``. Raises: MediaError."""
        if count > self.max_mesh_bytes:
            raise MediaError(
                f"{what} takes {count / 1e6:,.0f} MB, over the limit of {self.max_mesh_bytes / 1e6:,.0f} MB; make it "
                "smaller (fewer faces, smaller textures), or raise Limits.max_mesh_bytes if you trust the file."
            )


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Image:
    """An image: ``pixels`` (H, W, 3) uint8 RGB and, where it has one, ``alpha`` (H, W) uint8, not premultiplied."""

    pixels: np.ndarray
    alpha: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_frames(self.pixels, 3, "An image", "(H, W, 3)")
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != self.pixels.shape[:2]):
            raise MediaError(
                f"alpha must be uint8 of shape {self.pixels.shape[:2]}, got {self.alpha.dtype} {self.alpha.shape}."
            )

    def save(self, path: str | Path) -> None:
        """Write a PNG (lossless, with alpha), whole or not at all. Raises: MediaError."""
        from atoken.io.image import write_image

        write_image(self, path)


@dataclass(frozen=True)
class Video:
    """A video: ``frames`` (T, H, W, 3) uint8 RGB, ``fps``, and ``timestamps`` (T,) where the rate varies.

    ``timestamps`` are seconds from the first frame (float64, strictly rising); None means that frame i is at i / fps.
    """

    frames: np.ndarray
    fps: Fraction = Fraction(24)
    timestamps: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_frames(self.frames, 4, "A video", "(T, H, W, 3)")
        object.__setattr__(self, "fps", exact_fps(self.fps))
        if self.timestamps is not None:
            check_timestamps(self.timestamps, len(self.frames))

    def save(self, path: str | Path) -> None:
        """Write an H.264 MP4 with the video's time stamps, whole or not at all. Raises: MediaError."""
        from atoken.io.video_writer import write_video

        write_video(self, path)


def exact_fps(fps: Fraction | float | int) -> Fraction:
    """Frames a second as a fraction (29.97 becomes 2997/100). Raises: MediaError unless 0 < fps <= 1000."""
    try:
        value = Fraction(fps).limit_denominator(100_000)
    except (TypeError, ValueError, OverflowError) as error:
        raise MediaError(f"fps must be a number of frames a second, got {fps!r}.") from error
    if not 0 < value <= 1000:
        raise MediaError(f"fps must be above 0 and at most 1000, got {fps!r}.")
    return value


def varying(timestamps: np.ndarray, fps: Fraction, slack: float) -> np.ndarray | None:
    """Time stamps (T,) that the rate does not imply; None where all lie within ``slack`` seconds of i / fps."""
    error = np.abs(timestamps - np.arange(len(timestamps)) / float(fps)).max()
    return None if error <= slack + 1e-9 else timestamps  # 1e-9: rounding of seconds as float64


def check_timestamps(timestamps: np.ndarray, frames: int) -> None:
    """Refuse time stamps that are not (frames,) float64, finite and strictly rising. Raises: MediaError."""
    if timestamps.shape != (frames,) or timestamps.dtype != np.float64:
        raise MediaError(f"timestamps must be float64 of shape ({frames},), got {timestamps.dtype} {timestamps.shape}.")
    if not np.isfinite(timestamps).all() or (np.diff(timestamps) <= 0).any():
        raise MediaError("timestamps must be finite and strictly rising.")


def _check_frames(frames: np.ndarray, axes: int, what: str, shape: str) -> None:
    if frames.ndim != axes or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise MediaError(
            f"{what} must be a uint8 array of shape {shape} with at least one pixel, got {frames.dtype} {frames.shape}."
        )
