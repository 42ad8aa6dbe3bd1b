"""Many samples, in chunks over ranks, that go on where they were: each is a function of the seed and its number."""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from atoken.atomic import atomic_path
from atoken.checkpoint import weights_digest
from atoken.data.mixing import hashed
from atoken.errors import AtokenError
from generation.pipelines.class_to_image import ClassToImagePipeline
from generation.pipelines.of_tokens import TokenPipeline

ASKED, SAMPLES = "asked.json", "samples.npz"
_PAUSE = 0.2  # seconds between two looks for another rank's chunk


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
    """Write ``samples.npz``, chunk by chunk; None on ranks but 0, which waits for the chunks of the others.

    ``arr_0``: images (N, H, W, 3) uint8, rounded to the nearest; ``arr_1``: their labels, both as ADM's evaluation has
    them; ``classes``: the names of labels. What is there already is kept, if it was asked for in the same way; the
    same samples whatever the number of ranks, which need a common folder and nothing else.
    Raises: AtokenError (a folder of other samples).
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder.mkdir(parents=True, exist_ok=True)
    check_asked(folder / ASKED, described(pipeline) | {"seed": seed, "batch": batch, **options, "labels": [*labels]})
    target, chunks = folder / SAMPLES, _chunks(folder, len(labels), batch)
    own = [*chunks.items()][rank::world]
    pipeline.set_progress_bar_config(disable=True)  # of steps: the bar here is of images
    with tqdm(total=sum(len(numbers) for _, numbers in own), unit=" images", disable=True if rank else None) as bar:
        for path, numbers in own:
            if not path.is_file() and not target.is_file():
                images = made(pipeline, labels, numbers, seed, "np", **options)
                with atomic_path(path, AtokenError) as temporary, temporary.open("wb") as file:
                    np.save(file, np.rint(images * 255).astype(np.uint8))
            bar.update(len(numbers))
    if rank:
        return None
    if not target.is_file():
        names = [pipeline.label_name(number) for number in range(pipeline.transformer.config.classes)]
        _write(target, _arrived(chunks), len(labels), arr_1=np.array(labels), classes=np.array(names))
    for path in chunks:
        path.unlink(missing_ok=True)
    return target


def _chunks(folder: Path, count: int, batch: int) -> dict[Path, range]:
    """The file of each chunk, and the numbers in it."""
    firsts = range(0, count, batch)
    return {folder / f"{first:06d}.npy": range(first, min(first + batch, count)) for first in firsts}


def _arrived(paths: Iterable[Path]) -> Iterator[np.ndarray]:
    """Each chunk, once its rank has written it."""
    for path in paths:
        while not path.is_file():
            time.sleep(_PAUSE)
        yield np.load(path)


def _write(path: Path, chunks: Iterator[np.ndarray], count: int, **arrays: np.ndarray) -> None:
    """An ``.npz`` of images that come in chunks, in constant memory, and of further arrays; the same bytes each time.

    Raises: AtokenError.
    """
    first = next(chunks)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape[1:])}
    with atomic_path(path, AtokenError) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for images in chain([first], chunks):
                file.write(images.tobytes())
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def described(pipeline: TokenPipeline) -> dict[str, str]:
    """Which generator samples, so that those of another one are not among them."""
    model = pipeline.transformer
    sizes = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return {
        "generator": type(model).__name__,
        "weights": weights_digest(model, sizes),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer": pipeline.config.tokenizer,
        "tokenizer weights": pipeline.config.fingerprint,
    }


def check_asked(path: Path, asked: Mapping[str, Any]) -> None:
    """Note what is asked for, or compare it with what was. Raises: AtokenError."""
    with suppress(FileNotFoundError):
        before, now = json.loads(path.read_text()), json.loads(json.dumps(asked))
        if other := [name for name in now if now[name] != before.get(name)]:
            raise AtokenError(
                f"{path.parent} holds samples that were asked for with other {', '.join(other)}; name another folder."
            )
        return
    with atomic_path(path, AtokenError) as temporary:
        temporary.write_text(json.dumps(asked))
