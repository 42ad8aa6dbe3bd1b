"""The process that reads hostile files for ``benchmarks.fuzz``, and what the parent sees of it.

``python -m tests.media.reading_process``: a line of JSON in for each file, a line of JSON out with what became of it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from atoken.errors import AtokenError, StoreError
from atoken.io import load_media

STORE, CHECKED = ".store", ".checked"  # suffixes of folders to read as stores; the latter's files are compared first
COLUMNS = ("key", "label", "captions", "flipped", "draw", "modality", "height", "width", "frames", "fps", "tokens")
WALL_SECONDS = 10.0
READ = ("image", "video", "mesh", "tokens", "store")
_IN_ACCESS, _IN_OPEN = 0x1, 0x20  # of inotify(7)


class Answer(NamedTuple):
    """``what`` became of a file: one of ``READ``, refused, foreign (any other exception), crash, hang."""

    what: str
    detail: str  # the error, or of tokens and stores the SHA-256 of everything they hold
    seconds: float
    peak_mb: float  # the largest resident set of the process so far


class Reader:
    """Reads files in a child process, a new one after each crash or hang; ``warm_up`` holds what it reads first."""

    def __init__(self, warm_up: Sequence[Path]) -> None:
        self._warm_up = warm_up
        self.growth_mb = 0.0  # of the largest resident set over that after the warm-up
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.media.reading_process"]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._base_mb = 0.0
        for path in self._warm_up:
            answer = self._exchange(path, 60)
            if answer.what not in READ:
                raise SystemExit(f"{path.name} is valid and was not read: {answer.what} {answer.detail}")
            self._base_mb = answer.peak_mb

    def ask(self, path: Path) -> Answer:
        """Read one file within ``WALL_SECONDS``."""
        answer = self._exchange(path, WALL_SECONDS)
        if answer.what in ("crash", "hang"):
            self.close()
            self._start()
        else:
            self.growth_mb = max(self.growth_mb, answer.peak_mb - self._base_mb)
        return answer

    def _exchange(self, path: Path, limit: float) -> Answer:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        start = perf_counter()
        self._child.stdin.write(json.dumps(str(path)).encode() + b"\n")
        poll = select.poll()
        poll.register(self._child.stdout, select.POLLIN)
        if not poll.poll(limit * 1000):
            return Answer("hang", "", perf_counter() - start, 0.0)
        line = self._child.stdout.readline()
        seconds = perf_counter() - start
        if not line:
            return Answer("crash", f"exit code {self._child.wait()}", seconds, 0.0)
        what, detail, peak_mb = json.loads(line)
        return Answer(what, detail, seconds, peak_mb)

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()


class Watch:
    """Notices whether any process opens one of some files (inotify) or calls ``port`` of this machine."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)
        self.port = self._server.getsockname()[1]
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for file in files:
            if libc.inotify_add_watch(self._inotify, os.fsencode(file), _IN_OPEN | _IN_ACCESS) < 0:
                raise OSError(ctypes.get_errno(), f"cannot watch {file.name}")
        files[0].read_bytes()
        socket.create_connection(("127.0.0.1", self.port)).close()
        if not (self._opened() and self._called()):
            raise SystemExit("This machine does not tell when a file is opened; the last column would mean nothing.")

    def alarmed(self) -> bool:
        """Whether it happened since the last call."""
        return self._opened() | self._called()

    def _opened(self) -> bool:
        try:
            return bool(os.read(self._inotify, 1 << 16))
        except BlockingIOError:
            return False

    def _called(self) -> bool:
        try:
            self._server.accept()[0].close()
        except BlockingIOError:
            return False
        return True


def main() -> None:
    """Read one file after another until standard input closes."""
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a library prints may be taken for an answer
    for line in sys.stdin:
        what, detail = _outcome(json.loads(line))
        print(json.dumps((what, detail, _peak_mb())), file=out, flush=True)


def _outcome(path: str) -> tuple[str, str]:
    try:
        if path.endswith(".atok"):
            return "tokens", _contents(path)
        if path.endswith((STORE, CHECKED)):
            return "store", _contents_of_store(Path(path))
        return type(load_media(path)).__name__.lower(), ""
    except AtokenError as error:
        return ("refused" if re.fullmatch(r"[^\n]+\.", str(error)) else "foreign"), str(error)
    except Exception as error:  # noqa: BLE001 - to count them is what this is for
        return "foreign", f"{type(error).__name__}: {error}"


def _contents(path: str) -> str:
    from atoken.io.token_file import TokenFile  # imports torch, which images and videos are read without

    digest = hashlib.sha256()
    with TokenFile(path) as file:
        for index in range(len(file)):
            _add(digest, file.read(index))
    return digest.hexdigest()


def _contents_of_store(store: Path) -> str:
    from atoken.store.reader import TokenStore

    if store.suffix == CHECKED:
        from atoken.store.verify import known_files, verify

        faults = [f"{found.file} {found.fault}" for found in verify(store, known_files(store)) if found.fault]
        if faults:
            raise StoreError(f"{faults[0]}.")
    digest = hashlib.sha256()
    opened = TokenStore(store)
    for name in COLUMNS:
        digest.update(repr(opened.column(name).to_pylist()).encode())
    digest.update(repr((opened.fingerprint, opened.options, opened.all_statistics)).encode())
    for tokens in opened:
        _add(digest, tokens)
    for row in range(len(opened)):
        digest.update(_bytes(opened.packed([row]).feats))
    return digest.hexdigest()


def _add(digest: Any, tokens: Any) -> None:
    for field in dataclasses.fields(tokens):
        digest.update(_bytes(getattr(tokens, field.name)))


def _bytes(value: Any) -> bytes:
    array = value.numpy() if hasattr(value, "numpy") else value
    return (
        array.dtype.str.encode() + repr(array.shape).encode() + array.tobytes()
        if hasattr(array, "dtype")
        else repr(array).encode()
    )


def _peak_mb() -> float:
    return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


if __name__ == "__main__":
    main()
