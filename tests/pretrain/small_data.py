"""A stage of small tasks, images with captions in a folder, and the datasets of a data file."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from atoken.pretrain.curriculum import SEMANTICS
from atoken.pretrain.datasets import Datasets, load_datasets
from atoken.pretrain.stages import Stage, Task
from atoken.train.recipe import Recipe

TASKS = {
    "image": Task("image", (), tokens=64, patches=(4, 16)),
    "captioned": Task("image", SEMANTICS, tokens=64, patches=(16, 16)),
    "video": Task("video", (), tokens=64, patches=(4, 9), length=(1, 2), strides=((1, 2),)),
    "surface": Task("surface", ()),
}
STAGE = Stage("any", "nano", TASKS, {"image": 2, "captioned": 1, "video": 1, "surface": 1}, recipe=Recipe(seed=3))
IMAGES = replace(STAGE, mixture={"image": 1})


def images(count: int = 7) -> list[tuple[str, bytes, list[str]]]:
    rng, found = np.random.default_rng(0), []
    for n in range(count):
        file = io.BytesIO()
        size = (*rng.integers(20, 90, 2).tolist(), 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(file, format="PNG")
        found.append((f"{n:02d}", file.getvalue(), [f"number {n}", f"Nummer {n}"]))
    return found


def write_folder(top: Path, samples: list[tuple[str, bytes, list[str]]]) -> str:
    (top / "photos").mkdir()
    for key, media, captions in samples:
        (top / "photos" / f"{key}.png").write_bytes(media)
        (top / "photos" / f"{key}.txt").write_text("\n".join(captions))
    return "folder = 'photos'"


def datasets_of(top: Path, text: str, stage: Stage = IMAGES) -> Datasets:
    (top / "data.toml").write_text(text)
    return load_datasets(top / "data.toml", stage)
