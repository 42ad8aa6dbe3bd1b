"""Frame rates and time stamps of videos: exact fractions, and when two times count as the same."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from atoken.errors import MediaError


def exact_fps(fps: Fraction | float | int) -> Fraction:
    """Frames a second as a fraction (29.97 becomes 2997/100). Raises: MediaError unless 0 < fps <= 1000."""
    try:
        value = Fraction(fps).limit_denominator(100_000)
    except (TypeError, ValueError, OverflowError) as error:
        raise MediaError(f"fps must be a number of frames a second, got {fps!r}.") from error
    if not 0 < value <= 1000:
        raise MediaError(f"fps must be above 0 and at most 1000, got {fps!r}.")
    return value


def clock_slack(time_base: Fraction) -> Fraction:
    """Give the error of a time stamp that counts as rounding: half a clock tick, at most a millisecond; in seconds."""
    return min(time_base / 2, Fraction(1, 1000))


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
