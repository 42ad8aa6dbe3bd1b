"""The model under test that ``--model`` names: a tokenizer of AToken, or TYPE:WHICH of another type of model."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from atoken.errors import AtokenError
from atoken.loading import load
from atoken.tokenizer import Tokenizer
from eval.contract import Model
from eval.generation import network_of
from eval.measures import IMAGES
from eval.models.answers import VisionLanguage
from eval.models.autoencoders import Autoencoder
from eval.models.codecs import FORMATS, ImageCodec
from eval.models.features import Features
from eval.models.pca import PCA
from eval.models.tokenizer import AToken
from eval.models.torchscript import TorchScriptModel
from eval.models.video_codecs import FORMATS as VIDEO_FORMATS
from eval.models.video_codecs import VideoCodec
from eval.sources.entry import Prepared
from eval.tasks import TASKS


def _autoencoder(folder: str, options: argparse.Namespace) -> Autoencoder:
    """FOLDER of diffusers."""
    device = device_of(options)
    dtype = options.dtype if options.dtype != "auto" else "bfloat16" if device.startswith("cuda") else "float32"
    return Autoencoder(folder, device=device, dtype=dtype, sample=options.sample)


def _torchscript(which: str, options: argparse.Namespace) -> TorchScriptModel:
    """FOLDER@FRAMESxROWSxCOLUMNS: ``encoder.jit`` and ``decoder.jit``, as Cosmos has them, and their block."""
    folder, _, block = which.rpartition("@")
    sides = re.fullmatch(r"(\d+)x(\d+)x(\d+)", block)
    if not folder or not sides:
        raise AtokenError(f"{which!r} is not FOLDER@FRAMESxROWSxCOLUMNS, such as Cosmos-CV4x8x8@4x8x8.")
    frames, rows, columns = map(int, sides.groups())
    files = Path(folder) / "encoder.jit", Path(folder) / "decoder.jit"
    return TorchScriptModel(
        *files, trust=options.trust, device=device_of(options), video=frames > 1, block=(frames, rows, columns)
    )


def _codec(format: str, quality: str, _: argparse.Namespace) -> ImageCodec | VideoCodec:
    if format in FORMATS:
        return ImageCodec(format, int(_number(quality, "quality")))
    return VideoCodec(format, _number(quality, "CRF"))


def _pca_of(task: str, components: str, options: argparse.Namespace) -> PCA:
    """Of the very images of a task, which are read once."""
    return _fitted(task, getattr(options, "data", "."), int(_number(components, "number")))


@lru_cache(maxsize=1)
def _fitted(task: str, root: str, components: int) -> PCA:
    items = Prepared(TASKS[task].listing(Path(root), None).entries, TASKS[task].prepare)
    return PCA.of_items(items, task, components)


_asked = lru_cache(maxsize=1)(VisionLanguage)  # once for all tasks

TYPES: dict[str, Callable[[str, argparse.Namespace], Model]] = {
    **{format: partial(_codec, format) for format in (*FORMATS, *VIDEO_FORMATS)},
    "diffusers": _autoencoder,
    "torchscript": _torchscript,
    "features": lambda name, options: Features(
        network_of(name, options.weights, device_of(options), trust=options.trust)
    ),
    "vl": lambda name, options: _asked(name, device=device_of(options), dtype=options.dtype),
    "pca": lambda components, _: PCA.of_images(int(_number(components, "number"))),
    **{f"pca-of-{task}": partial(_pca_of, task) for task in TASKS if TASKS[task].metrics is IMAGES},
}


def model_of(options: argparse.Namespace, **settings: Any) -> Model:
    """The model that the options ask for; ``settings``: further arguments of ``AToken``. Raises: AtokenError."""
    name, colon, which = options.model.partition(":")
    if which.startswith("//"):  # an address, of which loading says what is wrong
        colon = ""
    if colon and name not in TYPES:
        raise AtokenError(f"There is no type of model {name!r}; choose one of: {', '.join(TYPES)}.")
    if colon:
        return TYPES[name](which, options)
    return AToken(tokenizer_of(options), sample=options.sample, **settings)


def tokenizer_of(options: argparse.Namespace) -> Tokenizer:
    """The tokenizer of AToken that the options ask for. Raises: CheckpointError."""
    files = {name: getattr(options, name) for name in ("config", "gaussians", "gaussian_config")}
    return _loaded(options.model, device=device_of(options), dtype=options.dtype, **files)


_loaded = lru_cache(maxsize=1)(load)  # once for all tasks


def device_of(options: argparse.Namespace) -> str:
    """Where networks run; each of several ranks on a machine has a GPU of its own."""
    if options.device != "auto":
        return str(options.device)
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def file_name(given: str) -> str:
    """A model or folder as the user named it, fit for a folder's name: jpeg-80; runs-tune, of runs/tune/model.

    A path is named from the working folder if it lies below that, else from the root, so that no two are called alike.
    """
    path = Path(given).resolve()
    if Path(given).exists():
        inside = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        path = inside.parent if inside.name == "model" else inside
        given = str(path) if path.name else Path.cwd().name
    return re.sub(r"[^\w.+-]+", "-", given).strip("-.") or "model"


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise AtokenError(f"{text!r} is not a {what}; write a number, such as 30.") from error
