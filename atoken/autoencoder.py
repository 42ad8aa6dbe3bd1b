"""``ATokenAutoencoder``: the tokenizer with the habits of diffusers' autoencoders, for images and videos.

Letters: ``B`` samples, ``C`` latent channels, ``T``, ``H``, ``W`` frames, rows and columns of pixels; ``t``, ``h``,
``w`` those of latents, T / 4, H / 16 and W / 16, rounded up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from atoken.checkpoint import WHERE, fingerprint, load_folder, model_folder
from atoken.errors import MissingExtraError
from atoken.model import ATokenConfig, ATokenModel
from atoken.patches import to_grid
from atoken.presets import folder_of
from atoken.statistics import LatentStatistics, measured_in

_SURE = -30.0  # the logarithm of the smallest variance that diffusers distinguishes
# Options of diffusers' from_pretrained that change nothing here: weights are safetensors and loaded strictly.
_WITHOUT_EFFECT = {
    "use_safetensors", "low_cpu_mem_usage", "offload_state_dict", "offload_folder", "max_memory", "disable_mmap",
    "use_flashpack",
}  # fmt: skip


class _Missing(nn.Module):
    """The base of the autoencoder where diffusers is not installed."""

    def __init__(self) -> None:
        raise MissingExtraError("diffusers", "diffusers", "ATokenAutoencoder")


def _bases() -> tuple[type, ...]:
    try:
        from diffusers import ConfigMixin, ModelMixin
        from diffusers.models.autoencoders.vae import AutoencoderMixin
    except ImportError:
        return (_Missing,)
    return ModelMixin, AutoencoderMixin, ConfigMixin


_BASES = _bases()
ModelMixin = _BASES[0]  # diffusers looks for it in the module that a pipeline's folder names as the home of its vae


class ATokenAutoencoder(*_BASES):  # type: ignore[misc]
    """A drop-in ``vae`` for pipelines and training code of diffusers, around an ``ATokenModel``.

    ``config`` has the model's sizes and what pipelines read: ``latent_channels`` and ``z_dim``, the two compression
    ratios (16 and 4) by their various names, ``latents_mean`` and ``latents_std`` (one number a channel), and
    ``shift_factor`` and ``scaling_factor`` (the same of all channels together). Without ``statistics`` the first two
    are None, and the others 0 and 1.

    ``enable_slicing`` runs one sample at a time. ``enable_tiling`` changes nothing: videos are always tiled in time, as
    the model was trained, and a frame is never cut, since all its tokens attend to one another.
    diffusers loads a pipeline's folder with such a ``vae`` once this module is imported, and not before.
    Raises: MissingExtraError without diffusers.
    """

    _supports_gradient_checkpointing = True  # of both sides, in training mode
    use_slicing = use_tiling = False

    def __init__(self, model: ATokenModel, statistics: LatentStatistics | None = None) -> None:
        super().__init__()
        self.model = model
        config = model.config.to_dict()
        sizes = {key: config[key] for key in ATokenConfig.__annotations__}
        self.register_to_config(model_type=ATokenConfig.model_type, **sizes, **_read_by_pipelines(model, statistics))
        self.temporal_compression_ratio, self.spatial_compression_ratio = model.config.patch_size[:2]
        # An encoder that was never trained to be drawn from, as nano's, gives each token the deviation 1: pure noise.
        drawn = model.to_latent.weight[model.config.latent_channels :].any()
        self.deterministic = model.quantiser is not None or not bool(drawn)

    @property
    def statistics(self) -> LatentStatistics | None:
        """``latents_mean`` and ``latents_std`` of the config, to normalise latents and back; None if it has none."""
        mean, std = self.config.latents_mean, self.config.latents_std
        return None if mean is None else LatentStatistics(tuple(mean), tuple(std))

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """``latent_dist`` (B, C, h, w) of images (B, 3, H, W), or (B, C, t, h, w) of videos (B, 3, T, H, W).

        Pixels are in [-1, 1]. Sides that are no multiple of 16 are padded by their edge, frames that are no multiple of
        4 with grey. The distribution is diffusers' ``DiagonalGaussianDistribution``. If the model is ``deterministic``,
        its ``std`` is 0: mean, mode and every sample are the latents, quantised in a discrete model.
        Raises: TensorError.
        """
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from diffusers.models.modeling_outputs import AutoencoderKLOutput

        self._onload()
        parameters = torch.cat([self._parameters_of(part) for part in self._slices(x)])
        posterior = DiagonalGaussianDistribution(parameters, self.deterministic)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _parameters_of(self, x: Tensor) -> Tensor:
        """Mean and logarithm of the variance, (B, 2 C, h, w) or (B, 2 C, t, h, w)."""
        encoded = self.model.encode_pixels(x)
        latents, logvar = encoded.latents.feats, encoded.posterior.logvar
        if self.deterministic:
            logvar = torch.full_like(logvar, _SURE)
        grid = cast(Tensor, to_grid(encoded.latents.with_feats(torch.cat([latents, logvar], dim=1))))  # one size
        return (grid[:, :, 0] if x.ndim == 4 else grid).to(self.dtype)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """``sample`` (B, 3, 16 h, 16 w) of latents (B, C, h, w), or (B, 3, 4 t, 16 h, 16 w) of (B, C, t, h, w).

        Nominally in [-1, 1]. generator: not used, pipelines pass it. Raises: TensorError.
        """
        from diffusers.models.autoencoders.vae import DecoderOutput

        self._onload()
        sample = torch.cat([cast(Tensor, self.model.decode_latents(part)) for part in self._slices(z)])
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Encode and decode; ``sample`` of the shape of the input, whose padding is cut off again."""
        posterior = self.encode(sample).latent_dist
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        output = self.decode(latents)
        output.sample = output.sample[(..., *(slice(size) for size in sample.shape[2:]))]
        return output if return_dict else (output.sample,)

    def _slices(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split(1) if self.use_slicing else (values,)

    def _onload(self) -> None:
        """Bring the weights to the device where accelerate has offloaded them: its hook is on ``forward`` alone."""
        hook: Any = getattr(self, "_hf_hook", None)
        if hasattr(hook, "pre_forward"):
            hook.pre_forward(self)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """Load a folder or hub id that ``save_pretrained`` wrote, that of any AToken model, or a bundled model by name.

        Statistics are those of ``config.json``, which a generator was trained with, or else those of ``latents.json``.
        options: ``torch_dtype``, ``subfolder``, ``variant``, ``revision``, ``device_map`` and the like of diffusers.
        Raises: CheckpointError, MissingExtraError.
        """
        given = {name: value for name, value in options.items() if value is not None and name not in _WITHOUT_EFFECT}
        dtype = given.pop("torch_dtype", None) or given.pop("dtype", None)
        path = folder_of(pretrained_model_name_or_path)
        folder = path if path.is_dir() else str(pretrained_model_name_or_path)
        model = load_folder(folder, dtype=torch.float32, **given)
        own, config = _read_by_pipelines(model, None), model.config.to_dict()
        saved = {name: config[name] for name in own.keys() & config.keys()}
        where = {name: given[name] for name in WHERE & given.keys()}
        measured = None if "latents_mean" in saved else measured_in(folder, lambda: fingerprint(model), **where)
        model = model.to(dtype) if isinstance(dtype, torch.dtype) else model
        vae = cls(model, measured.statistics if measured else None).eval()
        vae.register_to_config(**saved)
        return vae

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **_: Any) -> Any:
        """A model of the same config, or that of a folder, with new weights; diffusers' ``EMAModel`` asks for one."""
        config = config if isinstance(config, dict) else cls.load_config(config)
        vae = cls(ATokenModel(ATokenConfig(**{key: config[key] for key in ATokenConfig.__annotations__})))
        vae.register_to_config(**{key: value for key, value in config.items() if key in vae.config})
        unused = {key: value for key, value in config.items() if key not in vae.config}
        return (vae, unused) if return_unused_kwargs else vae

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: str = "5GB",
    ) -> None:
        """Write weights, always as safetensors, and config; ``atoken.load`` reads the folder, too.

        Raises: CheckpointError.
        """
        if is_main_process:
            with model_folder(save_directory) as part:
                self.model.save_pretrained(part, max_shard_size, variant=variant)
                self.save_config(part)


def _read_by_pipelines(model: ATokenModel, statistics: LatentStatistics | None) -> dict[str, Any]:
    """What pipelines of diffusers read of a ``vae.config``, whose names differ from one to the next."""
    frames, side, _ = model.config.patch_size
    mean, std = (0.0, 1.0) if statistics is None else statistics.overall
    return {
        "z_dim": model.config.latent_channels,  # Wan
        "spatial_compression_ratio": side,
        "temporal_compression_ratio": frames,
        "scale_factor_spatial": side,  # Wan
        "scale_factor_temporal": frames,
        "block_out_channels": [model.config.encoder_width] * side.bit_length(),  # 2 ** (length - 1) is the ratio
        "latents_mean": None if statistics is None else list(statistics.mean),
        "latents_std": None if statistics is None else list(statistics.std),
        "shift_factor": mean,  # Flux, SD 3
        "scaling_factor": 1.0 / std,  # Stable Diffusion, DiT
        "force_upcast": False,  # SD XL
    }
