"""What the commands of ``python -m generation`` do."""

from __future__ import annotations

import argparse
import os
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from atoken.cli import console
from atoken.errors import AtokenError
from atoken.io.token_file import TokenFileWriter
from atoken.placement import checked_device
from atoken.store.reader import TokenStore
from atoken.train.run_folder import rank_of_launch
from generation import training
from generation.many import labels_of, made, sample_folder
from generation.pipelines.class_to_image import ClassToImagePipeline
from generation.plan import plan
from generation.views import render

logging.set_verbosity_error()  # what matters becomes an exit code and one sentence
logging.disable_progress_bar()


def train(options: argparse.Namespace) -> int:
    """A generator, from its newest checkpoint if there is one."""
    how = training.training(options.kind, options.preset, options.changes)
    store = TokenStore(options.store)
    if options.modality:
        store = store.where(modality=options.modality)
    if options.plan:
        found = plan(
            options.kind, options.preset, store, how, options.start, options.views, gpus=options.gpus,
            gpu=options.gpu, mfu=options.mfu,
        )  # fmt: skip
        for table in found.tables():
            console.out(console.columns(table) + "\n")
        return 0
    model = training.train(
        options.kind, options.preset, store, Path(options.out), how, device=checked_device(options.device).type,
        workers=options.workers, zero=options.zero, evaluate_every=options.evaluate_every, start=options.start,
        views=options.views,
    )  # fmt: skip
    if rank_of_launch() == 0:
        console.out(str(model))
    return 0


def views(options: argparse.Namespace) -> int:
    """Images of the assets of a source, for those of its store."""
    if options.number < 1 or options.size < 1:
        raise AtokenError("-n and --size take whole numbers of at least 1.")
    store = TokenStore(options.store)
    keys = [*render(options.source, store, Path(options.out), options.number, options.size)]
    console.out(f"{len(keys):,} assets, {options.number} images of each: {options.out}")
    return 0


def sample(options: argparse.Namespace) -> int:
    """Images, as one image, a token file, or a folder for evaluation."""
    if options.number < 1 or options.batch < 1:
        raise AtokenError("-n and --batch take whole numbers of at least 1.")
    device = checked_device(options.device)
    if device.type == "cuda":  # each of several ranks on a machine has a GPU of its own
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    pipeline = ClassToImagePipeline.opened(options.model).to(device)
    wanted = [int(label) if label.isdecimal() else label for label in options.labels]
    classes = [pipeline.label_id(label) for label in wanted] or list(range(pipeline.transformer.config.classes))
    labels = labels_of(classes, options.number, options.seed, random=options.random)
    settings: dict[str, Any] = {
        "num_inference_steps": options.steps, "guidance_scale": options.guidance,
        "guidance_interval": tuple(options.interval), "solver": options.solver, "shift": options.shift,
        "temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p,
    }  # fmt: skip
    target = Path(options.out)
    if target.suffix.lower() not in (".png", ".jpg", ".webp", ".atok"):
        if path := sample_folder(pipeline, labels, target, options.seed, options.batch, **settings):
            console.out(str(path))
        return 0
    numbers = [range(first, min(first + options.batch, len(labels))) for first in range(0, len(labels), options.batch)]
    if target.suffix == ".atok":
        with TokenFileWriter(target) as writer:
            for some in numbers:
                for tokens in made(pipeline, labels, some, options.seed, "tokens", **settings):
                    writer.add(tokens)
    else:
        images = np.concatenate([made(pipeline, labels, some, options.seed, "np", **settings) for some in numbers])
        _square(images).save(target)
    console.out(str(target))
    return 0


def _square(images: np.ndarray) -> Image.Image:
    """Images (N, H, W, 3) in [0, 1] as rows of one, as square as it can be; what is left over is black."""
    columns = ceil(len(images) ** 0.5)
    rows = ceil(len(images) / columns)
    padded = np.concatenate([images, np.zeros((rows * columns - len(images), *images.shape[1:]), images.dtype)])
    grid = padded.reshape(rows, columns, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
    height, width = rows * images.shape[1], columns * images.shape[2]
    return Image.fromarray(np.rint(grid.reshape(height, width, 3) * 255).astype(np.uint8))
