"""What the commands of ``python -m mllm`` do, but for training."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress

from tqdm import tqdm
from transformers import TextStreamer

from atoken.cli import console
from atoken.data.sources.sample import quiet
from mllm.assembly import load
from mllm.chat import Chat
from mllm.config import ATokenVLConfig
from mllm.conversation import MediaItem
from mllm.lora import merge_lora


def chat(options: argparse.Namespace) -> int:
    """Answers as they are written: to one question, or to each line of standard input."""
    console.silence_transformers()
    said = {} if options.frames is None else {"frames": options.frames}
    media = [MediaItem(name, path, said if name == "video" else {}) for name, path in options.media]
    conversation = Chat.load(options.model, device=options.device, dtype=options.dtype)
    streamer = TextStreamer(conversation.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with quiet():  # no notes on what is not read, such as sound
        for question in _lines() if options.question is None else [options.question]:
            answer = conversation.ask(question, *media, max_new_tokens=options.max_new_tokens, streamer=streamer)
            media = []
            if answer.cut:
                note = f"the answer was cut after {options.max_new_tokens} tokens; --max-new-tokens allows more."
                tqdm.write(f"mllm: {note}", file=sys.stderr)
    return 0


def merge(options: argparse.Namespace) -> int:
    """The model with LoRA in its weights and all of its parts, in the precision in which it was saved."""
    console.silence_transformers()
    model, processor = load(options.model, device="cpu", dtype="float32")  # the sum is rounded once
    merge_lora(model)
    model.to(ATokenVLConfig.from_pretrained(options.model).dtype).save_pretrained(options.out, whole=True)
    processor.save_pretrained(options.out)
    console.out(options.out)
    return 0


def _lines() -> Iterator[str]:
    """Lines that are typed, or piped, until there are no more."""
    prompt = "> " if sys.stdin.isatty() else ""
    with suppress(ImportError):  # on Windows
        importlib.import_module("readline")  # lets a person edit the line
    with suppress(EOFError):
        while True:
            if question := input(prompt).strip():
                yield question
