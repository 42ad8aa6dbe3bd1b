"""What videos of prompts are like, from a folder of them: agreement with the prompts, smoothness, flicker, and FVD.

A cheap look on the way; no number here is one of VBench's. Videos are ``PROMPT-0.mp4``, ``PROMPT-1.mp4``, ..., as
VBench has them; one without a number at its end is of the prompt that it is named by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm import tqdm

from atoken.data.sources.sample import files_below
from atoken.errors import AtokenError, MediaError
from atoken.io import Video
from atoken.metrics.frechet import frechet_distance
from atoken.modalities import VIDEO
from atoken.tokenizer import Tokenizer
from eval.code import code_version
from eval.contract import State
from eval.metrics.moments import add_rows, gaussian
from eval.networks import Network
from eval.prepare import Preparation
from eval.protocol import EvalProtocol, data_hash, result_row, settings

NAME = "videos"
AS_IT_IS = Preparation()


def videos_row(
    folder: Path, tokenizer: Tokenizer, *, reference: Path | None = None, network: Network | None = None,
    skipped: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """A row as ``eval/protocol.py`` describes it.

    tokenizer: with a text side, for agreement. reference: real videos, and network: I3D, for FVD; without either it is
    left out. skipped: what else cannot be had, and why. Raises: AtokenError (no videos, one that cannot be read).
    """
    found = videos_in(folder)
    prompts = [*dict.fromkeys(prompt_of(path) for path in found)]
    texts_TD = tokenizer.embed_text(prompts)
    sums, state = np.zeros(4), State()
    for path in tqdm(found, unit=" videos", delay=1, disable=None):
        video = _read(path)
        cosines_T = texts_TD @ tokenizer.embed(video)
        own = prompts.index(prompt_of(path))
        nearest = float(bool((cosines_T >= cosines_T[own]).sum() == 1))
        sums += (float(cosines_T[own]), nearest, smoothness(video.frames), flicker(video.frames))
        if network is not None and reference is not None:
            add_rows(state, "samples", network.features([video.frames])["pooled"])
    names = ("text cosine", "text top-1", "smoothness", "flicker")
    numbers = {name: (name, float(value)) for name, value in zip(names, sums / len(found), strict=True)}
    of_text = {"judge": tokenizer.name, "prompts": str(len(prompts))}
    records = {"text cosine": of_text, "text top-1": of_text, "smoothness": {}, "flicker": {}}
    data = data_hash(prompts)
    if network is not None and reference is not None:
        for path in videos_in(reference):
            add_rows(state, "reference", network.features([_read(path).frames])["pooled"])
        distance = frechet_distance(gaussian(state, "samples"), gaussian(state, "reference")).value
        if not np.isfinite(distance):
            raise AtokenError("FVD needs at least two videos on each side.")
        numbers["fvd"] = ("fvd", distance)
        records["fvd"] = {"network": network.name, "weights": network.checksum, **network.record}
        data = data_hash([data, *(f"{path.name} {path.stat().st_size}" for path in videos_in(reference))])
    protocol = EvalProtocol(
        task=NAME, data=data, items=len(found), templates="class name only", code=code_version(("eval.videos",)),
        metrics=records, **AS_IT_IS.record(), **settings({}),
    )  # fmt: skip
    counted = {"planned": len(found), "measured": len(found), "full": len(found)}
    return result_row(
        NAME, folder.name, {"samples": folder.name}, "video", protocol, numbers, skipped=dict(skipped), items=counted
    )


def prompt_of(path: Path) -> str:
    """The prompt of a video, by its name."""
    found = re.fullmatch(r"(.+)-\d+", path.stem)
    return found[1] if found else path.stem


def smoothness(video_THW3: np.ndarray) -> float:
    """1 - the mean distance of a frame from the middle of both beside it, of 1; 1 for fewer than three frames."""
    values = video_THW3.astype(np.float32) / 255
    if len(values) < 3:
        return 1.0
    return 1 - float(np.abs(values[1:-1] - (values[:-2] + values[2:]) / 2).mean())


def flicker(video_THW3: np.ndarray) -> float:
    """The mean distance of a frame from the next, of 1; 0 for a single one. Motion counts as well."""
    values = video_THW3.astype(np.float32) / 255
    return float(np.abs(np.diff(values, axis=0)).mean()) if len(values) > 1 else 0.0


def videos_in(folder: Path) -> Sequence[Path]:
    """Those below a folder, in order. Raises: MediaError (none)."""
    return [folder / name for name in files_below(folder, VIDEO.suffixes)]


def _read(path: Path) -> Video:
    media = AS_IT_IS.read(path)
    if not isinstance(media, Video):
        raise MediaError(f"{path} is not a video.")
    return media
