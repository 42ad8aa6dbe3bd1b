"""Frame rates and time stamps of videos: exact fractions, when two times count as the same, and resampling."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TypeVar

import numpy as np

from atoken.errors import MediaError

T = TypeVar("T")
Timed = Iterator[tuple[Fraction, T]]  # seconds, and what is shown from then on


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
