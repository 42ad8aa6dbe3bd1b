"""What the commands share: options to models and media, one job after another, tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from atoken.errors import AtokenError, MediaError
from atoken.io import Image, Limits, Mesh, Video, VideoReader, Views, load_media, sniff
from atoken.io.token_file import Tokens
from atoken.tokenizer import Tokenizer, load

T = TypeVar("T")


def silence_transformers() -> None:
    """Neither its progress bars nor its remarks: what matters becomes an exit code and one sentence."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def tokenizer(options: argparse.Namespace) -> Tokenizer:
    """The model that the options ask for."""
    return load(options.model, device=options.device, dtype=options.dtype, config=options.config)


def media(file: str, options: argparse.Namespace) -> Image | Video | Mesh | Views | VideoReader:
    """What a file holds; of a video a reader, to be closed, of what the options select. Raises: AtokenError."""
    names = ("max_pixels", "max_side", "max_seconds", "max_frames")
    limits = replace(Limits(), **{name: getattr(options, name) for name in names if getattr(options, name) is not None})
    read_frames = sniff(file).modality.read_frames
    if read_frames:
        return read_frames(file, frames=options.frames, fps=options.fps, limits=limits)
    return load_media(file, limits=limits)


def folder(path: str) -> Path:
    """The folder, made where it is not there. Raises: MediaError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"Cannot make the folder {path}: {error.strerror or error}.") from error
    return Path(path)


def unique(names: Iterable[str]) -> list[str]:
    """Names with -2, -3, ... behind those that came before, no two the same."""
    result: dict[str, None] = {}
    for name in names:
        tries = chain([name], (f"{name}-{number}" for number in count(2)))
        result[next(one for one in tries if one not in result)] = None
    return list(result)


def each(jobs: Iterable[Any], work: Callable[[Any], T]) -> tuple[list[T], int]:
    """Results of the jobs that went well, and exit code 1 if some did not; those are listed, the others done."""
    results, failed = [], 0
    for job in jobs:
        try:
            results.append(work(job))
        except AtokenError as error:
            failed = 1
            print(f"atoken: {error}", file=sys.stderr)  # noqa: T201 - the program's voice
    return results, failed


def progress(pieces: Iterator[T], frames: int | None, what: str) -> Iterator[T]:
    """A bar over frames for what takes more than two seconds; silent where nobody watches."""
    with tqdm(total=frames, desc=what, unit=" frames", delay=2, disable=None, leave=False) as bar:
        for piece in pieces:
            yield piece
            bar.update(piece.frames if isinstance(piece, Tokens) else len(piece.frames))  # type: ignore[attr-defined]


def say(results: list[Any], lines: list[list[str]], options: argparse.Namespace, plain: list[Any]) -> None:
    """A table of ``lines`` for a person, or ``plain`` as JSON; no table without results."""
    if options.json:
        out(json.dumps(plain, indent=1))
    elif results:
        out(_columns(lines))


def _columns(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "\n".join("  ".join(row).rstrip() for row in rows)


def out(text: str) -> None:
    """One line, or several, on standard output."""
    print(text, flush=True)  # noqa: T201 - the program's voice
