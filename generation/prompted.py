"""Videos of texts as files: one, or several of each prompt of a list as VBench reads them, shared by ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from atoken.atomic import Target
from atoken.data.mixing import hashed
from atoken.errors import AtokenError
from atoken.media.video import Video
from atoken.media.video_writer import VideoWriter
from generation.many import ASKED, check_asked, described
from generation.pipelines.text_to_video import TextToVideoPipeline

LONGEST = 255  # bytes of the name of a file


def write(pieces: Iterable[Video], target: Target, fps: float) -> None:
    """A video file of pieces, as they come. Raises: MediaError."""
    following: Iterator[Video] = iter(pieces)
    first = next(following)
    height, width = first.frames.shape[1:3]
    with VideoWriter(target, fps, size=(height, width)) as writer:
        for piece in chain([first], following):
            writer.write(piece.frames)


def prompts_in(path: Path, per_prompt: int) -> list[str]:
    """The lines of a list, each once. Raises: AtokenError (none, or one that cannot be the name of a file)."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise AtokenError(f"The prompts in {path} cannot be read: {error}") from error
    prompts = [*dict.fromkeys(filter(None, lines))]
    if not prompts or per_prompt < 1:
        raise AtokenError(f"{path} has {len(prompts)} prompts for {per_prompt} videos each; give at least one of both.")
    for prompt in prompts:
        if "/" in prompt or "\0" in prompt or len(_name(prompt, per_prompt).encode()) > LONGEST:
            raise AtokenError(
                f"The prompt {prompt[:40]!r} ... cannot be the name of a file: it has a slash, or is too long."
            )
    return prompts


def _name(prompt: str, number: int) -> str:
    return f"{prompt}-{number}.mp4"


def video_folder(
    pipeline: TextToVideoPipeline, prompts: list[str], folder: Path, *, per_prompt: int, seed: int, fps: float,
    **options: Any,
) -> None:  # fmt: skip
    """Write ``PROMPT-0.mp4``, ``PROMPT-1.mp4``, ... of each prompt; what is there already is kept.

    options: of ``TextToVideoPipeline.stream``. A video is a function of the seed, its prompt's number and its own.
    Raises: AtokenError (a folder of other videos).
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"seed": seed, "per_prompt": per_prompt, "fps": fps, **options, "prompts": prompts}
    check_asked(folder / ASKED, described(pipeline) | asked)
    pipeline.set_progress_bar_config(disable=True)  # of steps: the bar here is of videos
    wanted = [(number, each) for number in range(len(prompts)) for each in range(per_prompt)][rank::world]
    for number, each in tqdm(wanted, unit=" videos", disable=True if rank else None):
        target = folder / _name(prompts[number], each)
        if not target.is_file():
            generator = torch.Generator().manual_seed(hashed(seed, number, each) % 2**63)
            write(pipeline.stream(prompts[number], generator=generator, fps=fps, **options), target, fps)
