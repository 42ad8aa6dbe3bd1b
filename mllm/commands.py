"""What the commands of ``python -m mllm`` do, but for training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress

from tqdm import tqdm
from transformers import TextStreamer

from atoken.cli.console import silence_transformers
from mllm.chat import Chat
from mllm.conversation import MediaItem


def chat(options: argparse.Namespace) -> int:
    """Answers as they are written: to one question, or to each line of standard input."""
    silence_transformers()
    said = {} if options.frames is None else {"frames": options.frames}
    media = [MediaItem(name, path, said if name == "video" else {}) for name, path in options.media]
    conversation = Chat.load(options.model, device=options.device, dtype=options.dtype)
    streamer = TextStreamer(conversation.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    for question in _lines() if options.question is None else [options.question]:
        answer = conversation.ask(question, *media, max_new_tokens=options.max_new_tokens, streamer=streamer)
        media = []
        if answer.cut:
            note = f"the answer was cut after {options.max_new_tokens} tokens; --max-new-tokens allows more."
            tqdm.write(f"mllm: {note}", file=sys.stderr)
    return 0


def _lines() -> Iterator[str]:
    """Lines that are typed, or piped, until there are no more."""
    prompt = "> " if sys.stdin.isatty() else ""
    with suppress(EOFError):
        while True:
            if question := input(prompt).strip():
                yield question
