"""The child process of ``VideoReader``: decodes one video and sends its frames, within limits that it sets on itself.

Run as ``python -m atoken.media.video_worker`` by ``atoken.media.process``.
"""

from __future__ import annotations

import json
import os
from fractions import Fraction
from itertools import chain, islice
from typing import Any

from atoken.errors import MediaError
from atoken.media.animation import NAMES, Animation
from atoken.media.limits import Limits
from atoken.media.process import INFO
from atoken.media.video_decoder import Decoder, Timed, resampled
from atoken.media.worker import MEMORY, Channel, limit_memory, serve

_MEMORY_PER_PIXEL = 64  # bytes of address space for each pixel that a frame may have


def decode(request: dict[str, Any], channel: Channel) -> None:
    """Send what the header states, then the frames that were asked for."""
    limits = Limits(**request["limits"])
    limit_memory(MEMORY + _MEMORY_PER_PIXEL * limits.max_pixels)
    with os.fdopen(request["descriptor"], "rb") as file:
        reads = Animation if request["format"] in NAMES else Decoder
        decoder: Any = reads(file, request["format"], request["name"], limits, channel.tick)
        frames = decoder.frames()
        first = next(frames, None)
        if first is None:
            raise MediaError(f"Cannot read {request['name']}: it holds no frame that can be decoded.")
        channel.send(INFO, json.dumps(decoder.describe(first[1])).encode())
        _deliver(request, decoder, limits, chain([first], frames), channel)


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
