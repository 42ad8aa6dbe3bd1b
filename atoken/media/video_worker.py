"""The child process of ``VideoReader``: decodes one video and sends its frames, within limits that it sets on itself.

Run as ``python -m atoken.media.video_worker`` by ``atoken.media.process``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice
from typing import Any

from atoken.errors import MediaError
from atoken.media.animation import NAMES, Animation
from atoken.media.clock import Timed, resampled
from atoken.media.limits import Limits
from atoken.media.process import INFO
from atoken.media.video_decoder import Decoded, Decoder
from atoken.media.worker import MEMORY, Channel, limit_memory, serve

_FAR = 50  # frames from which on it pays to look for a key frame
_MEMORY_PER_PIXEL = 64  # bytes of address space for each pixel that a frame may have


def decode(request: dict[str, Any], channel: Channel) -> None:
    """Send what the header states, then the frames that were asked for."""
    limits = Limits(**request["limits"])
    limit_memory(MEMORY + _MEMORY_PER_PIXEL * limits.max_pixels)
    with os.fdopen(request["descriptor"], "rb") as file:
        reads = Animation if request["format"] in NAMES else Decoder

        def opened() -> Any:
            file.seek(0)
            return reads(file, request["format"], request["name"], limits, channel.tick)

        decoder = opened()
        frames = decoder.frames()
        first = next(frames, None)
        if first is None:
            raise MediaError(f"Cannot read {request['name']}: it holds no frame that can be decoded.")
        channel.send(INFO, json.dumps(decoder.describe(first[1])).encode())
        frames = chain([first], frames)
        if reads is Decoder and request["fps"] is None and (request["start"] or 0) >= _FAR:
            frames, skipped = _near(request["start"], first[1], opened)
            request = request | {bound: request[bound] and request[bound] - skipped for bound in ("start", "stop")}
        _deliver(request, decoder, limits, frames, channel)


def _near(start: int, first: Decoded, opened: Callable[[], Decoder]) -> tuple[Timed[Decoded], int]:
    """Frames from ``start`` on, decoded from the last key frame before it, and their number; all where that fails."""
    key = opened().key_frame(start)
    if key and key.number and key.first_stamp == first.frame.pts:
        frames = opened().frames(key)
        with suppress(MediaError):  # not all that a file calls a key frame can be decoded without those before it
            for number, found in enumerate(frames, key.number):
                if number == key.number and found[1].frame.pts != key.stamp:
                    break
                if number == start:
                    return chain([found], frames), start
    return opened().frames(), 0


def _deliver(request: dict[str, Any], decoder: Any, limits: Limits, frames: Timed[Any], channel: Channel) -> None:
    """Send the frames that were asked for; only their pixels are converted, and only as far as they are decoded."""
    if request["fps"] is not None:
        frames = resampled(frames, Fraction(request["fps"]), decoder.last_seconds, decoder.slack)
    count = 0
    for seconds, frame in islice(frames, request["start"], request["stop"]):
        limits.check_frames(count + 1, request["name"])
        kind, payload, stride = decoder.pixels(frame)
        channel.send(kind, payload, float(seconds), stride)
        count += 1
    if not count:
        raise MediaError(f"Cannot read {request['name']}: it ends before frame {request['start']}.")


if __name__ == "__main__":
    serve(decode)
