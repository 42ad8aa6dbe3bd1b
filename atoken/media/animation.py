"""Animated images as videos, inside the child process of ``VideoReader``: frames as they are shown, with their alpha.

The file is decoded twice, first for the durations, so that its rate and its damage are known before the first frame.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, BinaryIO, cast

import numpy as np

from atoken.errors import MediaError
from atoken.media.clock import Timed, clock_slack, exact_fps
from atoken.media.image_formats import ANIMATIONS, open_image, turn_of
from atoken.media.limits import Limits
from atoken.media.process import DATA, RGBA
from atoken.media.worker import reason

NAMES = frozenset(format.name for format in ANIMATIONS)
_SHORTEST, _USUAL = Fraction(1, 50), Fraction(1, 10)  # seconds; browsers show frames of less than one for the other


class Animation:
    """The frames of an animated image, as ``Decoder`` gives those of a video. Raises: MediaError, errors of Pillow."""

    def __init__(self, file: BinaryIO, format: str, name: str, limits: Limits, tick: Callable[[], None]) -> None:
        self.name, self._format, self._tick = name, format, tick
        self._pil = cast(Any, open_image(file, format))
        limits.check_size(self._pil.height, self._pil.width, f"A frame of {name}")
        self._first = int(getattr(self._pil, "default_image", False))  # of an APNG: for those who show no animations
        count = self._pil.n_frames - self._first
        limits.check_frames(count, name)
        self._starts = [Fraction(0)]
        for index in range(count):
            limits.check_seconds(self._starts[-1], name)
            self._starts.append(self._starts[-1] + self._duration(index))
        self.fps = exact_fps(count / self._starts[-1])
        self._time_base = Fraction(1, 100 if format == "GIF" else 1000)
        self.last_seconds = self._starts[-1] - self._starts[-2]  # for which the last frame is shown
        self.slack = clock_slack(self._time_base)

    def frames(self) -> Timed[np.ndarray]:
        """Give all frames, (H, W, 3) or with alpha (H, W, 4) uint8, with their times in seconds. Raises: MediaError."""
        for index, start in enumerate(self._starts[:-1]):
            self._show(index)
            mode = "RGBA" if self._pil.has_transparency_data else "RGB"
            pixels = np.array(self._pil.convert(mode))
            yield start, pixels if mode == "RGBA" and pixels[..., 3].min() < 255 else pixels[..., :3]

    def describe(self, first: np.ndarray) -> dict[str, Any]:
        """What ``Decoder.describe`` tells."""
        turn = turn_of(self._pil, self.name)
        height, width = first.shape[1::-1] if turn[0] else first.shape[:2]
        info = {"height": height, "width": width, "fps": str(self.fps), "time_base": str(self._time_base),
                "declared_frames": len(self._starts) - 1, "duration": float(self._starts[-1]), "has_audio": False,
                "container": self._format, "codec": self._format.lower()}  # fmt: skip
        return {"info": info, "turn": turn, "notes": []}

    def pixels(self, frame: np.ndarray) -> tuple[bytes, Any, int]:
        """The kind of message, rows, bytes from one to the next."""
        channels = frame.shape[2]
        return RGBA if channels == 4 else DATA, np.ascontiguousarray(frame), channels * frame.shape[1]

    def _show(self, index: int) -> None:
        """Make one frame the current one."""
        self._tick()
        try:
            self._pil.seek(self._first + index)
            self._pil.load()
        except Exception as error:  # Pillow raises nearly any type on damaged input
            raise MediaError(
                f"Cannot read {self.name}: it is damaged after {index} frames ({reason(error)}); get a sound copy, or "
                "take its first frame only (first_frame=True, or --first-frame)."
            ) from error
        if self._pil.mode.startswith(("I", "F")):
            raise MediaError(
                f"Cannot read {self.name}: its frames have more than 8 bits; convert them to 8 bits first."
            )

    def _duration(self, index: int) -> Fraction:
        self._show(index)
        seconds = Fraction(round(1000 * self._pil.info.get("duration", 0)), 1_000_000)
        return _USUAL if seconds < _SHORTEST else seconds
