"""The command line of vision-language models: ``python -m mllm chat`` and ``merge``.

Exit codes: 0 done, 1 an error in one sentence, 2 usage. Only what parsing needs is imported here; each command names
the module that has a function of its name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from atoken.errors import AtokenError
from mllm.train import add_train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    options = parser().parse_args(arguments)
    try:
        return int(getattr(import_module(options.module), options.command)(options))
    except AtokenError as error:
        print(f"mllm: {error}", file=sys.stderr)  # noqa: T201 - the output of the program
        return 1
    except KeyboardInterrupt:
        print("mllm: interrupted.", file=sys.stderr)  # noqa: T201
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="python -m mllm", description="Ask about images, videos and 3D assets.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_chat(commands.add_parser("chat", help="ask a model; several questions where none is given"))
    add_train(commands.add_parser("train", help="a projector, and a language model or LoRA, on conversations"))
    merge = commands.add_parser("merge", help="a model without LoRA, which is added to its weights, as a whole folder")
    merge.set_defaults(module="mllm.commands")
    _add_model(merge)
    merge.add_argument("-o", "--out", required=True, metavar="FOLDER", help="of the new model")
    return top


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder of a model and its processor, bundled name, or hub id")


def _add_chat(chat: argparse.ArgumentParser) -> None:
    chat.set_defaults(module="mllm.commands")
    _add_model(chat)
    question = chat.add_argument("question", metavar="[QUESTION]", help="(default: a prompt for one after the other)")
    question.required = False  # nargs="?" would be taken as empty where an option stands before the question
    media = chat.add_argument_group("media", "Each may be given several times; they stand before the first question.")
    for name, what in (("image", "a file"), ("video", "a file"), ("asset", "a mesh, or a folder of views with depth")):
        pair = partial(lambda modality, path: (modality, path), name)
        media.add_argument(f"--{name}", action="append", dest="media", type=pair, metavar="PATH", default=[], help=what)
    media.add_argument("--frames", type=int, metavar="N", help="of each video at most (default: the model's)")
    chat.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="of an answer; says if it was cut (default: 512)"
    )
    chat.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="(default: auto)")
    chat.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
