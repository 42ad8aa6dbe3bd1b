"""The autoencoders of diffusers (SD-VAE, Wan, ...), from a folder on disk. Nothing is downloaded or unpickled.

Latents are decoded as the encoder gave them: ``scaling_factor``, ``shift_factor``, ``latents_mean`` and ``latents_std``
bring latents to unit variance for a generator and back, so that between encoder and decoder they cancel out.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from atoken.errors import AtokenError, CheckpointError, MissingExtraError
from atoken.modalities.pixels import to_uint8, to_values
from eval.contract import Item, Output
from eval.models.pixels import (
    DTYPES,
    Block,
    PixelModel,
    checksum,
    cut,
    draw,
    failing,
    frames_of,
    how_drawn,
    padded,
    rounded,
)

BATCH = 16  # images of one size, or frames of a video, that an image model gets at once
_SIDE, _FRAMES = 64, 16  # of the input that measures a ratio which the model does not state
_SPATIAL = ("spatial_compression_ratio", "scale_factor_spatial")
_TEMPORAL = ("temporal_compression_ratio", "scale_factor_temporal", "time_compression_ratio")
_REFUSED = {
    "ATokenAutoencoder": "it is AToken's own, so pass the folder alone, without diffusers:",
    "AutoencoderRAE": "its pixels are not in [-1, 1]",
    "ConsistencyDecoderVAE": "its decoder draws random numbers",
}


@dataclass(frozen=True)
class Shape:
    """What a model takes. video: (B, 3, T, H, W), else (B, 3, H, W), frame by frame. causal: T = 1 + k block[0]."""

    video: bool
    block: Block
    causal: bool = False


class Autoencoder(PixelModel):
    """A model of diffusers with an encoder and a decoder, or the ``vae`` of a pipeline's folder.

    An image is a video of one frame to a video model; a video is a batch of frames to an image model. Sides are padded
    by their edge to the model's multiple (frames of a causal model to 1 + k times its ratio) and cut again. ``size`` is
    the plain bytes of the latents in float32; None for a model that quantises, whose indices it does not return.
    sample: draws the latents from the posterior with this seed instead of taking its mean.
    Raises: MissingExtraError; CheckpointError for a folder that holds no such model in safetensors.
    """

    def __init__(
        self, folder: str | Path, *, device: str = "auto", dtype: str = "float32", sample: int | None = None
    ) -> None:
        path = Path(folder)
        self.name = path.resolve().name
        path = path / "vae" if (path / "model_index.json").is_file() else path
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.model, self.sample = loaded(path, dtype).to(self.device), sample
        self.shape = shape_of(self.model, self.name)
        self.quantises = hasattr(self.model, "quantize")
        self.record = {
            "model": type(self.model).__name__,
            "fingerprint": checksum(path / "config.json", *sorted(path.glob("*.safetensors"))),
            "dtype": dtype,
            **how_drawn(sample),
            "padding": " x ".join(map(str, self.shape.block)) + ", the first frame alone" * self.shape.causal,
            "bytes": "not counted" if self.quantises else "latents as float32, without header",
        }

    def reconstruct(self, items: Sequence[Item]) -> list[Output]:
        """Encode and decode images of one size together. Raises: AtokenError for an asset, or where the model fails."""
        outputs = []
        for shape, alike in groupby(items, key=lambda item: frames_of(item, self.name).shape):
            same, step = list(alike), BATCH if shape[0] == 1 else 1  # videos go alone
            for start in range(0, len(same), step):
                outputs += self._reconstructed(same[start : start + step])
        return outputs

    def _output(self, item: Item) -> Output:
        return self.reconstruct([item])[0]

    @torch.inference_mode()
    def _reconstructed(self, batch: Sequence[Item]) -> list[Output]:
        frames = [frames_of(item, self.name) for item in batch]
        whole = [padded(one, self.shape.block, first_alone=self.shape.causal) for one in frames]
        values = torch.stack([to_values(one) for one in whole]).to(self.device, self.model.dtype)  # (B, T, H, W, 3)
        count, length = values.shape[:2]
        values = (values if self.shape.video else values.flatten(0, 1)).movedim(-1, 1)
        keys = [item.key for item in batch for _ in range(len(values) // count)]
        noise = [] if self.sample is None else [draw(self.sample, key) for key in keys]
        pieces, size = [], 0
        for start in range(0, len(values), BATCH):
            part = values[start : start + BATCH]
            latents = latents_of(self.model, part, self.name, noise[start : start + BATCH])
            latents, more = rounded(latents, "float32")
            pieces.append(decoded_by(self.model, latents, self.name, frames=len(part) if length > 1 else 1))
            size += more
        values = torch.cat(pieces).movedim(1, -1)
        back = values if self.shape.video else values.unflatten(0, (count, length))
        prediction = [cut(to_uint8(one), like, self.name) for one, like in zip(back, frames, strict=True)]
        bytes_of_one = None if self.quantises else size // count
        return [Output(*three, size=bytes_of_one) for three in zip(batch, frames, prediction, strict=True)]


def loaded(folder: Path, dtype: str) -> Any:
    """The model of a folder, by the class that its config.json names. Raises: MissingExtraError, CheckpointError."""
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusers", "Measuring an autoencoder of diffusers") from error
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no config.json of a diffusers model; name the model's folder."
        ) from error
    known = isinstance(name, str) and name.startswith(("Auto", "Asym", "VQ"))
    kind = getattr(diffusers, name, None) if known else None
    if kind is None or not hasattr(kind, "encode") or name in _REFUSED:
        reason = _REFUSED.get(name, f"diffusers {diffusers.__version__} has no such autoencoder")
        raise CheckpointError(f"{folder} holds a {name!r}, which cannot be measured: {reason}.")
    try:
        model, found = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no complete {name} in safetensors, the only format read.") from error
    if found["missing_keys"]:  # diffusers would leave these random
        missing = found["missing_keys"]
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}.")
    return model.to(DTYPES[dtype]).eval()


def latents_of(model: Any, values: Tensor, name: str, noise: Sequence[torch.Generator] = ()) -> Tensor:
    """The posterior's mean, or a draw of it with ``noise``; the latents of a model that has no posterior."""
    with failing(name, values):
        output = model.encode(values)
        posterior = getattr(output, "latent_dist", None)
        if posterior is None and noise:
            raise AtokenError(f"{name} has no posterior to draw from; leave sample out.")
        if posterior is None:
            return output[0]
        return posterior.sample(generator=list(noise)) if noise else posterior.mode()


def decoded_by(model: Any, latents: Tensor, name: str, *, frames: int) -> Tensor:
    """Images (B, 3, H, W) or videos (B, 3, T, H, W); ``frames`` for an image model whose decoder looks along time."""
    along_time = {"num_frames": frames} if "num_frames" in inspect.signature(model.decode).parameters else {}
    with failing(name, latents):
        return model.decode(latents, **along_time).sample


@torch.inference_mode()
def shape_of(model: Any, name: str) -> Shape:
    """What a model takes: as its config states, or measured on a grey input. Raises: AtokenError."""
    video = any(isinstance(part, nn.Conv3d) for part in getattr(model, "encoder", model).modules())
    grey = torch.zeros(1, 3, *((1,) if video else ()), _SIDE, _SIDE, dtype=model.dtype, device=model.device)
    side = _stated(model, _SPATIAL) or _SIDE // latents_of(model, grey, name).shape[-1]
    if not video:
        return Shape(video, (1, side, side))
    grey = torch.zeros(1, 3, 1, 2 * side, 2 * side, dtype=model.dtype, device=model.device)
    try:
        causal = decoded_by(model, latents_of(model, grey, name), name, frames=1).shape[2] == 1
    except AtokenError:  # it takes only whole groups of frames
        causal = False
    ratio = _stated(model, _TEMPORAL)
    if ratio is None:
        several = grey.expand(-1, -1, _FRAMES + causal, -1, -1)
        ratio = _FRAMES // (latents_of(model, several, name).shape[2] - causal)
    return Shape(video, (ratio, side, side), causal)


def _stated(model: Any, names: Sequence[str]) -> int | None:
    found = (vars(model).get(name, model.config.get(name)) for name in names)
    return next((int(value) for value in found if value is not None), None)
