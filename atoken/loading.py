"""``load``: a tokenizer from a bundled name, a folder, a published weight file, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from atoken import checkpoint
from atoken.errors import CheckpointError
from atoken.media.source import missing
from atoken.placement import checked_device, checked_dtype
from atoken.presets import BUNDLED, PRESETS, folder_of, name_of
from atoken.text import TextTokenizer
from atoken.tokenizer import Tokenizer

WEIGHT_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


def load(
    source: str | Path = "nano",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    config: str | Path | None = None,
    gaussians: str | Path | None = None,
    gaussian_config: str | Path | None = None,
) -> Tokenizer:
    """Load a tokenizer: a bundled name, a folder, a published weight file, or a hub id ("owner/name").

    device: "auto" takes CUDA where there is one, else the CPU. dtype: float32 or bfloat16, of torch or as a string;
    "auto" is bfloat16 on CUDA and float32 elsewhere. config: of a published ``.pt``/``.safetensors`` file, its YAML;
    where left out, the file of the same name with ``.yaml``. gaussians, gaussian_config: the same two of the published
    Gaussian decoder, for 3D. A folder without the files of its text tokenizer gives a tokenizer without texts.
    Raises: CheckpointError.
    """
    place = checked_device(device)
    precision = checked_dtype(dtype, place)
    path = folder_of(source)
    if path.is_file() or path.suffix in WEIGHT_FILES:
        model = checkpoint.load_official(path, config, gaussians, gaussian_config)
        return Tokenizer(model, name_of(path)).to(place, precision)
    if not path.is_dir() and not _is_hub_id(source):
        raise CheckpointError(_unknown(str(source)))
    folder = path if path.is_dir() else str(source)
    model = checkpoint.load_folder(folder, dtype=torch.float32)
    texts = TextTokenizer.load(folder, model.text_length) if model.text_length and TextTokenizer.is_in(folder) else None
    return Tokenizer(model, name_of(path), texts, folder).to(place, precision)


def _is_hub_id(source: str | Path) -> bool:
    """Whether this is owner/name, and not a path into a folder that is here."""
    named = isinstance(source, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source)
    return bool(named) and not Path(str(source)).parent.is_dir()


def _unknown(source: str) -> str:
    bundled = ", ".join(sorted(folder.name for folder in BUNDLED.glob("*/")))
    if source in PRESETS:
        return f"{source} is a size without bundled weights; pass the path of a weight file. Bundled: {bundled}."
    if "/" in source:
        reason = missing(source, f"pass one that save_pretrained wrote, or a bundled name ({bundled})")
        return f"There is no folder {source}; {reason}."
    return f"There is no model {source!r}: pass a bundled name ({bundled}), a folder, a weight file, or a hub id."
