"""The child process of ``VideoReader``: decodes one clip and sends its frames, within limits that it sets on itself.

Run as ``python -m atoken.io.video_worker``: one line of JSON comes in on standard input, messages of
``atoken.io.video_process.HEADER`` go out on standard output. It ends when standard input closes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from atoken.errors import AtokenError, MediaError
from atoken.io.media import Limits
from atoken.io.video_decoder import Decoder, decord_frames, left_by_decord, reason, resampled
from atoken.io.video_process import DONE, ERROR, FRAME, HEADER, INFO, TICK

T = TypeVar("T")

_CPU_SECONDS = 600  # from one sign of progress to the next, over all threads
_MEMORY = 4 << 30  # bytes of address space, and
_MEMORY_PER_PIXEL = 64  # bytes more for each pixel that a frame may have


class Channel:
    """The way back to the parent: the pipe that was standard output, which no library can write to any more."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(1), "wb")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def send(self, kind: bytes, payload: Any = b"", seconds: float = 0.0, stride: int = 0) -> None:
        """Send one message and allow CPU time for the next; ``payload`` is anything with a contiguous buffer."""
        raw = memoryview(payload).cast("B")
        self._pipe.write(HEADER.pack(kind, len(raw), seconds, stride))
        self._pipe.write(raw)
        self._pipe.flush()
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + _CPU_SECONDS)

    def tick(self) -> None:
        """Show the parent that work goes on."""
        self.send(TICK)


def main() -> None:
    """Serve one request, then end at once: nothing that a decoder left behind matters any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    channel = Channel()
    with suppress(BrokenPipeError):  # the parent has seen enough
        try:
            _serve(request, channel)
            channel.send(DONE)
        except AtokenError as error:
            channel.send(ERROR, str(error).encode(errors="replace"))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - the readers raise nearly any type on damaged input
            text = f"Cannot read {request['name']}: it is damaged or of an unsupported variant ({reason(error)})."
            channel.send(ERROR, text.encode(errors="replace"))
    os._exit(0)


def _serve(request: dict[str, Any], channel: Channel) -> None:
    limits = Limits(**request["limits"])
    _limit(resource.RLIMIT_AS, _MEMORY + _MEMORY_PER_PIXEL * limits.max_pixels)
    _limit(resource.RLIMIT_CORE, 0)
    with Path(request["path"]).open("rb") as file:
        decoder = Decoder(file, request["format"], request["name"], limits, channel.tick)
        frames = decoder.frames()
        first = next(frames, None)
        if first is None:
            raise MediaError(f"Cannot read {request['name']}: it holds no frame that can be decoded.")
        description = decoder.describe(first[1])
        if request["reader"] == "decord":
            description["turn"] = left_by_decord(description["turn"], request["name"])
        channel.send(INFO, json.dumps(description).encode())
        if request["reader"] == "decord":
            _deliver(request, decoder, *decord_frames(request["path"], decoder), channel)
        else:
            _deliver(request, decoder, chain([first], frames), decoder.pixels, channel)


def _deliver(
    request: dict[str, Any],
    decoder: Decoder,
    frames: Iterator[tuple[Fraction, T]],
    pixels: Callable[[T], tuple[Any, int]],
    channel: Channel,
) -> None:
    """Send the frames that were asked for; only their pixels are converted, and only as far as they are decoded."""
    if request["fps"] is not None:
        frames = resampled(frames, Fraction(request["fps"]), 1 / decoder.fps, decoder.slack)
    count = 0
    for seconds, frame in islice(frames, request["start"], request["stop"]):
        decoder.check_count(count + 1)
        payload, stride = pixels(frame)
        channel.send(FRAME, payload, float(seconds), stride)
        count += 1
    if not count:
        raise MediaError(f"Cannot read {request['name']}: it ends before frame {request['start']}.")


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(0)


def _limit(what: int, value: int) -> None:
    """Lower a limit of this process; where the system does not know or allow it, the parent's time limit remains."""
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
