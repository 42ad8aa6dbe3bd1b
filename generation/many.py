"""Many samples, in chunks over ranks, that go on where they were: each is a function of the seed and its number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atoken.atomic import atomic_path
from atoken.data.mixing import hashed
from atoken.errors import AtokenError
from generation.pipelines.class_to_image import ClassToImagePipeline

ASKED, SAMPLES = "asked.json", "samples.npz"


def labels_of(classes: Sequence[int], number: int, seed: int, *, random: bool) -> list[int]:
    """The label of each sample: equally many of each in turn, or drawn with replacement."""
    if random:
        return [classes[hashed(seed, index, 1) % len(classes)] for index in range(number)]
    return [classes[index % len(classes)] for index in range(number)]


def made(
    pipeline: ClassToImagePipeline, labels: Sequence[int], numbers: range, seed: int, output_type: str, **options: Any
) -> Any:
    """The images of some numbers. options: of the pipeline."""
    generators = [torch.Generator().manual_seed(hashed(seed, number) % 2**63) for number in numbers]
    chosen = [labels[number] for number in numbers]
    return pipeline(chosen, generator=generators, output_type=output_type, **options).images


def sample_folder(
    pipeline: ClassToImagePipeline, labels: Sequence[int], folder: Path, seed: int, batch: int, **options: Any
) -> Path | None:
    """Write ``samples.npz`` (``arr_0``: N, H, W, 3 uint8; ``arr_1``: labels), chunk by chunk; None on ranks but 0.

    What is there already is kept, if it was asked for in the same way. The same images whatever the number of ranks.
    Raises: AtokenError (a folder of other samples, chunks that other ranks have not made yet).
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder.mkdir(parents=True, exist_ok=True)
    _check_asked(folder / ASKED, {"labels": list(labels), "seed": seed, "batch": batch, **options})
    if (folder / SAMPLES).is_file():
        return folder / SAMPLES
    chunks = list(_chunks(len(labels), batch))
    for numbers in chunks[rank::world]:
        if not (path := folder / _name(numbers)).is_file():
            images = made(pipeline, labels, numbers, seed, "np", **options)
            with atomic_path(path, AtokenError) as temporary, temporary.open("wb") as file:
                np.save(file, np.rint(images * 255).astype(np.uint8))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if rank:
        return None
    missing = [numbers for numbers in chunks if not (folder / _name(numbers)).is_file()]
    if missing:
        raise AtokenError(f"{len(missing)} chunks of {folder} are not there yet; run the command again.")
    arrays = np.concatenate([np.load(folder / _name(numbers)) for numbers in chunks])
    with atomic_path(folder / SAMPLES, AtokenError) as temporary, temporary.open("wb") as file:
        np.savez(file, arr_0=arrays, arr_1=np.array(labels))
    for numbers in chunks:
        (folder / _name(numbers)).unlink()
    return folder / SAMPLES


def _chunks(count: int, batch: int) -> Iterator[range]:
    return (range(first, min(first + batch, count)) for first in range(0, count, batch))


def _name(numbers: range) -> str:
    return f"{numbers.start:06d}.npy"


def _check_asked(path: Path, asked: Mapping[str, Any]) -> None:
    """Note what is asked for, or compare it with what was. Raises: AtokenError."""
    text = json.dumps(asked)
    with suppress(FileNotFoundError):
        if path.read_text() != text:
            raise AtokenError(f"{path.parent} holds samples that were asked for differently; name another folder.")
        return
    with atomic_path(path, AtokenError) as temporary:
        temporary.write_text(text)
