"""The child's side of processes that read files: one request in, messages out, limits on itself.

One line of JSON comes in on standard input, messages of ``atoken.media.process.HEADER`` go out on standard output. A
worker ends when standard input closes.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from atoken.errors import AtokenError
from atoken.media.process import DONE, ERROR, HEADER, TICK

_CPU_SECONDS = 600  # between signs of progress, over all threads
MEMORY = 4 << 30  # bytes of address space of any reader, in addition to what the limits on the file allow


class Channel:
    """Sends messages through what was standard output, which libraries can then no longer write to."""

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
        """Send a sign of progress."""
        self.send(TICK)


def serve(answer: Callable[[dict[str, Any], Channel], None]) -> None:
    """Serve one request, then end without any clean-up.

    ``answer`` sends the messages; what it raises is sent as one sentence that names the request's ``name``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which ends this process
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    channel = Channel()
    with suppress(BrokenPipeError):  # the parent has closed the pipe
        try:
            channel.tick()  # started: from here on the time limit of the file counts
            answer(request, channel)
            channel.send(DONE)
        except AtokenError as error:
            channel.send(ERROR, str(error).encode(errors="replace"))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - the readers raise nearly any type on damaged input
            text = f"Cannot read {request['name']}: it is damaged or of an unsupported variant ({reason(error)})."
            channel.send(ERROR, text.encode(errors="replace"))
    os._exit(0)


def limit_memory(count: int) -> None:
    """Allow this process ``count`` bytes of address space, and no core file."""
    _limit(resource.RLIMIT_AS, count)
    _limit(resource.RLIMIT_CORE, 0)


def reason(error: Exception) -> str:
    """One short line for an error of FFmpeg or Python."""
    if isinstance(error, MemoryError):
        return "it needs more memory than it may have"
    log = getattr(error, "log", None)
    text = (log[2] if log else None) or getattr(error, "strerror", None) or str(error)
    return (text.strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(0)


def _limit(what: int, value: int) -> None:
    """Lower a limit of this process, if the system knows it; the parent's time limit holds in any case."""
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
