"""How long a vision-language model takes to load, to its first token, and for each further one; and its size on disk.

``python -m benchmarks.mllm MODEL`` asks about scikit-image's astronaut and a corner of it; without MODEL,
an untrained one of smollm2 and nano, whose answers come as fast. Targets: 3 s to the first token of one image, and 10
tokens a second. The machine should be idle.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from skimage.data import astronaut
from transformers.generation.streamers import BaseStreamer

from atoken.cli.console import silence_transformers
from benchmarks.tables import head, row
from mllm import Chat, MediaItem, assemble

NEW = 64  # tokens of an answer
RUNS = 3  # of which the fastest counts, after one that does not


class Times(BaseStreamer):
    """When tokens came, the prompt first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        """Called with the prompt, and then with each token."""
        self.seconds.append(time.perf_counter())

    def end(self) -> None:
        """Called behind the last one."""


def asked(chat: Chat, media: tuple[MediaItem, ...]) -> tuple[float, float]:
    """Seconds from the question to the first token, and tokens a second from there on."""
    times, start = Times(), time.perf_counter()
    chat.messages = ()
    chat.ask("What is in this photo?", *media, max_new_tokens=NEW, min_new_tokens=NEW, streamer=times)
    _, first, *_, last = times.seconds
    return first - start, (NEW - 1) / (last - first)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL")
    source = parser.parse_args().model
    silence_transformers()
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            source = folder
            for one in assemble("smollm2", "nano"):
                one.save_pretrained(folder)
        if (saved := Path(source)).is_dir():
            print(f"{sum(file.stat().st_size for file in saved.iterdir()) / 1e6:.1f} MB on disk\n")
        head("dtype", "load, s", "question with", "its tokens", "first token, s", "tokens/s")
        for dtype in ("float32", "bfloat16"):
            start = time.perf_counter()
            chat = Chat.load(source, dtype=dtype)
            loaded = time.perf_counter() - start
            for name, size in (("text", 0), ("image 128x128", 128), ("image 512x512", 512)):
                media = (MediaItem("image", astronaut()[:size, :size]),) if size else ()
                runs = [asked(chat, media) for _ in range(RUNS + 1)][1:]
                first, rate = min(run[0] for run in runs), max(run[1] for run in runs)
                tokens = sum(len(one.source) for one in chat.messages[0].content if isinstance(one, MediaItem))
                row(dtype, f"{loaded:.1f}", name, tokens, f"{first:.2f}", f"{rate:.1f}")


if __name__ == "__main__":
    main()
