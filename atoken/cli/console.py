"""What the commands share: options to models and media, one job after another, tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from itertools import chain, count
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from atoken.atomic import Target
from atoken.cli import pace
from atoken.data.sources.sample import SUFFIXES, files_below
from atoken.errors import AtokenError, MediaError
from atoken.io import Image, Limits, Mesh, Video, VideoReader, Views, load_media, sniff
from atoken.io.contents import TILE
from atoken.io.token_file import Tokens
from atoken.loading import load
from atoken.media.scaling import fitted
from atoken.media.source import Source, error_prefix, missing
from atoken.media.views import TRANSFORMS
from atoken.model import Stack
from atoken.patches import grid
from atoken.presets import BUNDLED, PRESETS
from atoken.tokenizer import Tokenizer

T = TypeVar("T")
# Options that are free text, or whose own check refuses an address.
MAY_BE_ADDRESSES = {"files", "query", "labels", "text", "model", "out"}
STDIN, STDOUT = ("-", "/dev/stdin"), ("-", "/dev/stdout")


def silence_transformers() -> None:
    """Switch off its progress bars and its messages: what matters becomes an exit code and one sentence."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def refuse_addresses(options: argparse.Namespace) -> None:
    """Raises: AtokenError for an option that is an address; among several inputs, each is judged where it is read."""
    for name, value in vars(options).items():
        for text in value if isinstance(value, list) else [value]:
            if name not in MAY_BE_ADDRESSES and isinstance(text, str) and (why := missing(text, "")):
                raise AtokenError(f"Cannot read {text}: {why}.")


def tokenizer(options: argparse.Namespace) -> Tokenizer:
    """The model that the options ask for."""
    return load(options.model, device=options.device, dtype=options.dtype, config=options.config)


def bundled(name: str) -> str:
    """The bundled model of a name that tokens state, else nano, which then refuses them."""
    return name if name in PRESETS and (BUNDLED / name).is_dir() else "nano"


def media(file: str, options: argparse.Namespace) -> Image | Video | Mesh | Views | VideoReader:
    """What a file holds; of a video a reader, to be closed, of what the options select. Raises: AtokenError."""
    stated = {f"max_{name}": getattr(options, f"limit_{name}") for name in ("pixels", "side", "seconds", "frames")}
    limits = replace(Limits(), **{name: limit for name, limit in stated.items() if limit is not None})
    found, name = source(file), "standard input" if file in STDIN else file
    if _is_folder(file):
        files_below(Path(file), SUFFIXES)  # says why ``inputs`` left it as it is
    read_frames = sniff(found, name=name, first_frame=options.first_frame).modality.read_frames
    if read_frames:
        return read_frames(found, name=name, frames=options.frames, fps=options.fps, limits=limits)
    return load_media(found, name=name, first_frame=options.first_frame, limits=limits)


def inputs(options: argparse.Namespace) -> list[str]:
    """The files; in place of a folder, the media below it, sorted, unless it is one of views."""
    found = []
    for name in options.files:
        below = [name]  # what cannot be listed, or is empty, fails where it is read, and the others do not
        with suppress(MediaError):
            if _is_folder(name):
                below = [str(Path(name) / file) for file in files_below(Path(name), SUFFIXES)]
        found += below
    return found


def source(file: str) -> Source:
    """The path, or for ``-`` what standard input holds."""
    return _standard_input() if file in STDIN else file


def _is_folder(name: str) -> bool:
    """Whether it is a folder, but not one of views, which is one asset."""
    with suppress(OSError):
        return Path(name).is_dir() and not (Path(name) / TRANSFORMS).is_file()
    return False


@cache  # a command may read its input twice
def _standard_input() -> bytes:
    return sys.stdin.buffer.read()


def plain_name(file: str) -> str:
    """The name that results of an input get."""
    return "stdin" if file in STDIN else Path(file).name


def target(path: str) -> Target:
    """The path, or standard output for ``-``."""
    return open(sys.stdout.fileno(), "wb", closefd=False) if path in STDOUT else Path(path)


def folder(path: str) -> Path:
    """The folder, created if need be. Raises: MediaError."""
    if path in STDOUT:
        raise MediaError("There are several files to write; give a folder with -o instead of standard output.")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"Cannot make the folder {path}: {error.strerror or error}.") from error
    return Path(path)


def unique(names: Iterable[str]) -> list[str]:
    """Names made different by -2, -3, ... behind repeated ones."""
    result: dict[str, None] = {}
    for name in names:
        tries = chain([name], (f"{name}-{number}" for number in count(2)))
        result[next(one for one in tries if one not in result)] = None
    return list(result)


def each(jobs: Sequence[Any], work: Callable[[Any], T], options: argparse.Namespace) -> tuple[list[T], int]:
    """Results of the jobs that succeed, and exit code 1 if some fail; the errors of those are printed.

    Raises: AtokenError where the only job fails.
    """
    if len(jobs) == 1:
        return [work(jobs[0])], 0
    results, failed = [], 0
    with progress(len(jobs), "all", "files", options) as shown:
        for job in jobs:
            named = job[0] if isinstance(job, tuple) else job
            try:
                with error_prefix(named if isinstance(named, str) else ""):
                    results.append(work(job))
            except AtokenError as error:
                failed = 1
                tqdm.write(f"atoken: {error}", file=sys.stderr)
            shown.update()
    return results, failed


def progress(total: int | None, what: str, unit: str, options: argparse.Namespace) -> tqdm[Any]:
    """A progress bar for what takes more than two seconds: on standard error, on a terminal, and without --json."""
    disable = True if options.json else None  # None: unless standard error is a terminal
    return tqdm(total=total, desc=what, unit=f" {unit}", delay=2, disable=disable, leave=False)


def encoded(tokenizer: Tokenizer, media: Any, file: str, options: argparse.Namespace) -> Iterator[Tokens]:
    """Tokens of an image or asset, or the pieces of a video, with a bar and, before what takes long, an estimate."""
    encoder, side = tokenizer.model.encoder, options.max_side
    if isinstance(media, VideoReader):
        size, frames = fitted(media.info.height, media.info.width, side), media.expected_frames
        estimate(encoder, f"encode {file}", prod(grid(TILE, *size)), (frames or 0) / TILE, options)
        yield from watched(tokenizer.encode_stream(media, fps=options.fps, max_side=side), frames, "encode", options)
        return
    if isinstance(media, Image):
        size = fitted(media.pixels.shape[0], media.pixels.shape[1], side)
        estimate(encoder, f"encode {file}", prod(grid(1, *size)), 1, options)
    with layers(encoder, "encode", 1, options):
        yield tokenizer.encode(media, coarsen=options.coarsen, max_side=side)


def watched(pieces: Iterator[T], frames: int | None, what: str, options: argparse.Namespace) -> Iterator[T]:
    """A bar over the frames of a video's pieces."""
    with progress(frames, what, "frames", options) as shown:
        for piece in pieces:
            yield piece
            shown.update(piece.frames if isinstance(piece, Tokens) else len(piece.frames))  # type: ignore[attr-defined]


@contextmanager
def layers(stack: Stack, what: str, tiles: int | None, options: argparse.Namespace) -> Iterator[None]:
    """A bar over the layers of an encoder or decoder, for so many passes; None where that is not known."""
    total = None if tiles is None else tiles * len(stack.blocks)
    with progress(total, what, "layers", options) as shown, ExitStack() as hooks:

        def done(*_: Any) -> None:  # a hook that gives a value would replace the output
            shown.update()

        for block in stack.blocks:
            hooks.enter_context(block.register_forward_hook(done))
        yield


def estimate(stack: Stack, what: str, tokens: int, tiles: float, options: argparse.Namespace) -> None:
    """Say how long an encoder or decoder will take, if that is long; ``tiles`` times so many tokens."""
    if not options.json and (expected := pace.seconds(stack, tokens, tiles)) >= pace.LONG:
        count = f"{round(tokens * tiles):,} tokens, about {pace.spoken(expected)} on this machine"
        tqdm.write(f"atoken: {what}: {count}.", file=sys.stderr)


def say(head: list[str], lines: list[list[str]], options: argparse.Namespace, plain: Any) -> None:
    """A table for a person, none without lines; or ``plain`` as JSON; on standard error if results go to the output."""
    file = sys.stderr if getattr(options, "out", None) in STDOUT else sys.stdout
    if options.json:
        print(json.dumps(plain, indent=1), file=file, flush=True)
    elif lines:
        print(columns([head, *lines]), file=file, flush=True)


def columns(lines: list[list[str]]) -> str:
    """Lines of cells as text, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(row).rstrip() for row in rows)


def out(text: str) -> None:
    """One line, or several, on standard output."""
    print(text, flush=True)  # noqa: T201 - the program's voice
