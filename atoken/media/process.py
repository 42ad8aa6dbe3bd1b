"""The parent's side of a child process that reads a file: start it, receive with a time limit, end it."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from atoken.errors import MediaError

HEADER = struct.Struct("<cQdI")  # kind of message, bytes that follow; of a frame also seconds and bytes a row
INFO, DATA, RGBA, TICK, DONE, ERROR = b"I", b"F", b"A", b"T", b"D", b"E"  # RGBA: a frame with alpha
TEXT_BYTES = 1 << 20  # more than any message other than data needs
_START = 120.0  # seconds until the first message: a busy machine starts a child slowly, whatever the file is


class Message(NamedTuple):
    """One message of the child: its kind, the payload as uint8 and, of a frame, its time and bytes a row."""

    kind: bytes
    payload: np.ndarray
    seconds: float
    stride: int


class ReaderProcess:
    """A child that reads one file, killed when closed, dropped, or silent too long.

    ``worker`` is the module that it runs (``atoken.media.worker``), ``name`` what the user calls the file, for
    messages, ``file`` its contents, which the child inherits, so the caller may close it; ``timeout`` the seconds
    without any sign of progress, once it has started. Raises: MediaError (it does not start).
    """

    def __init__(self, worker: str, name: str, file: BinaryIO, request: Mapping[str, Any], timeout: float) -> None:
        self._name, self._wait, self.timeout = name, _START, timeout
        self._child = _start(worker, name, file.fileno())
        self._end = weakref.finalize(self, _end, self._child)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._pipe = self._child.stdout.fileno()
        try:
            self._child.stdin.write(json.dumps({"name": name, "descriptor": file.fileno(), **request}).encode() + b"\n")
        except BrokenPipeError:
            error = self.broken()
            self.close()
            raise error from None

    @property
    def open(self) -> bool:
        """Whether the child still runs."""
        return self._end.alive

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def close(self) -> None:
        """Kill the child and wait for its end. May be called twice."""
        self._end()

    def receive(self, max_bytes: int) -> Message:
        """Give the next message other than a sign of progress; its payload may have ``max_bytes``.

        Raises: MediaError (the child's own message, its death, or no progress in time); the child is then closed.
        """
        try:
            kind, length, seconds, stride = self._header()
            if length > max(max_bytes, TEXT_BYTES):
                raise self.broken()
            payload = self._bytes(length)
            if kind == ERROR:
                raise MediaError(bytes(payload).decode(errors="replace"))
            return Message(kind, payload, seconds, stride)
        except BaseException:
            self.close()
            raise

    def broken(self) -> MediaError:
        """The error for a child that ended without sending one, and how it ended."""
        try:
            code = self._child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return MediaError(f"Cannot read {self._name}: its reader sent something unexpected; export it again.")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return MediaError(
            f"Cannot read {self._name}: the process that reads it {how}; the file is damaged or memory ran out."
        )

    def _header(self) -> tuple[bytes, int, float, int]:
        kind = TICK
        while kind == TICK:
            kind, length, seconds, stride = HEADER.unpack(self._bytes(HEADER.size).data)
            self._wait = self.timeout
        return kind, length, seconds, stride

    def _bytes(self, length: int) -> np.ndarray:
        buffer = np.empty(length, np.uint8)
        rest, poll = buffer.data, select.poll()
        poll.register(self._pipe, select.POLLIN)
        while rest:
            if not poll.poll(self._wait * 1000):
                raise MediaError(
                    f"Cannot read {self._name}: reading hung for {self._wait:g} seconds and was stopped; "
                    "export the file again, or raise timeout= if the machine is slow."
                )
            count = os.readv(self._pipe, [rest])
            if not count:
                raise self.broken()
            rest = rest[count:]
        return buffer


def _start(worker: str, name: str, descriptor: int) -> subprocess.Popen[bytes]:
    # The child finds its modules where this process does; -P keeps a stray av.py of the working folder out.
    paths = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(descriptor,),
            env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise MediaError(f"Cannot read {name}: the process that reads it does not start ({error}).") from error


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    child.wait()
