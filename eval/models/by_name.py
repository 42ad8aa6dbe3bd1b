"""What ``--model`` names: a tokenizer of AToken, or KIND:WHICH of another kind of model."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from atoken.errors import AtokenError
from atoken.tokenizer import Tokenizer, load
from eval.contract import Model
from eval.models.autoencoders import Autoencoder
from eval.models.codecs import FORMATS, ImageCodec
from eval.models.pca import PCA
from eval.models.tokenizer import AToken, Pool
from eval.models.torchscript import TorchScript
from eval.models.video_codecs import FORMATS as VIDEO_FORMATS
from eval.models.video_codecs import VideoCodec

Choose = Callable[[str, argparse.Namespace], Model]


def _image_codec(format: str) -> Choose:
    return lambda quality, _: ImageCodec(format, int(_number(quality, "quality")))


def _video_codec(format: str) -> Choose:
    return lambda crf, _: VideoCodec(format, crf=_number(crf, "CRF"))


def _autoencoder(folder: str, options: argparse.Namespace) -> Autoencoder:
    """FOLDER of diffusers."""
    device = device_of(options)
    dtype = options.dtype if options.dtype != "auto" else "bfloat16" if device.startswith("cuda") else "float32"
    return Autoencoder(folder, device=device, dtype=dtype, sample=options.sample)


def _torchscript(which: str, options: argparse.Namespace) -> TorchScript:
    """FOLDER@FRAMESxROWSxCOLUMNS: ``encoder.jit`` and ``decoder.jit``, as Cosmos has them, and their block."""
    folder, _, block = which.rpartition("@")
    sides = re.fullmatch(r"(\d+)x(\d+)x(\d+)", block)
    if not folder or not sides:
        raise AtokenError(f"{which!r} is not FOLDER@FRAMESxROWSxCOLUMNS, such as Cosmos-CV4x8x8@4x8x8.")
    frames, rows, columns = map(int, sides.groups())
    files = Path(folder) / "encoder.jit", Path(folder) / "decoder.jit"
    return TorchScript(
        *files, trust=options.trust, device=device_of(options), video=frames > 1, block=(frames, rows, columns)
    )


def _pca(components: str, _: argparse.Namespace) -> PCA:
    """NUMBER of components of patches of images."""
    return PCA.of_images(components=int(_number(components, "number of components")))


KINDS: dict[str, Choose] = {
    **{format: _image_codec(format) for format in FORMATS},
    **{format: _video_codec(format) for format in VIDEO_FORMATS},
    "diffusers": _autoencoder,
    "torchscript": _torchscript,
    "pca": _pca,
}


def model_of(options: argparse.Namespace, pool: Pool = "whole") -> Model:
    """The model that the options ask for; ``pool``: as in ``AToken``. Raises: AtokenError."""
    kind, colon, which = options.model.partition(":")
    if colon and kind not in KINDS:
        raise AtokenError(f"There is no kind of model {kind!r}; take one of: {', '.join(KINDS)}.")
    if colon:
        return KINDS[kind](which, options)
    return AToken(tokenizer_of(options), sample=options.sample, pool=pool)


def tokenizer_of(options: argparse.Namespace) -> Tokenizer:
    """The tokenizer of AToken that the options ask for. Raises: CheckpointError."""
    files = options.config, options.gaussians, options.gaussian_config
    return _loaded(options.model, device_of(options), options.dtype, *files)


@lru_cache(maxsize=1)
def _loaded(model: str, device: str, dtype: str, *files: str | None) -> Tokenizer:
    """Once for all tasks."""
    config, gaussians, gaussian_config = files
    return load(model, device=device, dtype=dtype, config=config, gaussians=gaussians, gaussian_config=gaussian_config)


def device_of(options: argparse.Namespace) -> str:
    """Where networks run; of several ranks on a machine, each on a GPU of its own."""
    if options.device != "auto":
        return str(options.device)
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def file_name(model: str) -> str:
    """The name of a model, fit for a folder."""
    return re.sub(r"[^\w.+-]+", "-", model).strip("-.") or "model"


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise AtokenError(f"{text!r} is no {what}; it is a number, such as 30.") from error
