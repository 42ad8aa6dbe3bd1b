"""Reading weights: our own folders, the published AToken files, and SigLIP2 towers.

Every foreign layout is one key map, and loading is strict: an error lists the keys that are missing, unexpected or of
another shape. Weights are read from safetensors or by ``torch.load(weights_only=True)``, never unpickled freely.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from atoken import gaussian_decoder
from atoken.errors import CheckpointError
from atoken.foreign import (
    OFFICIAL_FIXED,
    OFFICIAL_GAUSSIANS,
    OFFICIAL_KEYS,
    OFFICIAL_SIZES,
    SIGLIP2_KEYS,
    TEXT_SIZES,
)
from atoken.model import ATokenConfig, ATokenModel
from atoken.presets import FSQ_LEVELS

StateDict = Mapping[str, Tensor]

# Options of transformers that say which folder of which copy of a hub id is meant.
WHERE = {"subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download"}


def load_official(
    weights: str | Path | StateDict,
    config: str | Path | Mapping[str, Any] | None,
    gaussian_weights: str | Path | StateDict | None = None,
    gaussian_config: str | Path | Mapping[str, Any] | None = None,
) -> ATokenModel:
    """The published tokenizer (continuous, discrete or early stage) as an ``ATokenModel``, in fp32 on the CPU.

    weights: a ``.pt`` or ``.safetensors`` path, or a state dict. config: the path of the published YAML, or its
    ``arch_cfg`` block; None is the ``.yaml`` next to the weights. gaussian_weights, gaussian_config: the same for the
    separate Gaussian decoder (of its YAML, the ``model`` block). ``logit_scale`` and ``logit_bias`` are not in the
    files; they get the values of the config. Raises: CheckpointError (keys that are missing, unexpected or of another
    shape, by name).
    """
    for path in (weights, gaussian_weights):
        if isinstance(path, str | Path) and not Path(path).is_file():
            raise CheckpointError(f"There is no weight file {path}; pass the path of a published file.")
    if gaussian_weights is not None:
        gaussian_config = _configuration(gaussian_weights, gaussian_config)
    elif gaussian_config is not None:
        raise CheckpointError("There is a configuration of the Gaussian decoder, but no weights; pass them, too.")
    ours = official_config(_configuration(weights, config), gaussian_config)
    state = {_renamed(key, OFFICIAL_KEYS): value for key, value in read_state(weights).items()}
    state.setdefault("logit_scale", torch.tensor(ours.logit_scale_init))
    state.setdefault("logit_bias", torch.tensor(ours.logit_bias_init))
    if gaussian_weights is not None:
        state |= _gaussian_state(read_state(gaussian_weights))
    with torch.device("meta"):
        model = ATokenModel(ours)
    return fill(model, state, "the published checkpoint")


def _configuration(
    weights: str | Path | StateDict, config: str | Path | Mapping[str, Any] | None
) -> str | Path | Mapping[str, Any]:
    if config is not None:
        return config
    if isinstance(weights, Mapping):
        raise CheckpointError("Published weights in memory need their configuration; pass it, too.")
    return Path(weights).with_suffix(".yaml")


def _gaussian_state(theirs: StateDict) -> dict[str, Tensor]:
    """The Gaussian decoder's weights by our names, without its training loss and the offsets, which we compute."""
    state = {key: value for key, value in theirs.items() if not key.startswith("lpips_loss.")}
    spread = state.pop("offset_perturbation", None)
    if spread is not None and not torch.allclose(spread.float(), torch.tensor(gaussian_decoder.spread()), atol=1e-5):
        raise CheckpointError(
            "These weights are of a Gaussian decoder with other offsets (offset_perturbation); use the published one."
        )
    return {_renamed(f"gaussian_decoder.{key}", OFFICIAL_KEYS): value for key, value in state.items()}


def official_config(
    config: str | Path | Mapping[str, Any], gaussian_config: str | Path | Mapping[str, Any] | None = None
) -> ATokenConfig:
    """The published ``arch_cfg`` (a YAML path, or the block) and that of the Gaussian decoder as an ``ATokenConfig``.

    Raises: CheckpointError.
    """
    blocks = "model", "model_cfg", "arch_cfg"
    arch = dict(config if isinstance(config, Mapping) else _yaml_block(Path(config), *blocks))
    try:
        sizes = {
            f"{side}_{ours}": int(arch.pop(f"{side}_{theirs}"))
            for side in ("encoder", "decoder")
            for theirs, ours in OFFICIAL_SIZES.items()
        }
        latents, patch = int(arch.pop("latent_channels")), tuple(arch.pop("patch_size"))
    except KeyError as missing:
        raise CheckpointError(f"The published configuration lacks {missing}; is this the arch_cfg block?") from missing
    levels = FSQ_LEVELS if arch.pop("use_quantizer", False) else None
    _refuse_unsupported(arch, OFFICIAL_FIXED | {"quantizer_feature_dim": latents})
    gaussians = None if gaussian_config is None else _official_gaussians(gaussian_config)
    try:
        return ATokenConfig(
            patch_size=patch, latent_channels=latents, fsq_levels=levels, gaussian_decoder=gaussians, **sizes
        )
    except ValueError as error:
        raise CheckpointError(f"The published configuration is inconsistent: {_first_line(error)}") from error


def _official_gaussians(config: str | Path | Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the Gaussian decoder from its published configuration. Raises: CheckpointError."""
    arch = dict(config if isinstance(config, Mapping) else _yaml_block(Path(config), "model"))
    arch.pop("class_name", None)
    try:
        sizes = {ours: int(arch.pop(theirs)) for theirs, ours in OFFICIAL_SIZES.items()}
    except KeyError as missing:
        raise CheckpointError(f"The published configuration of the Gaussian decoder lacks {missing}.") from missing
    _refuse_unsupported(arch, OFFICIAL_GAUSSIANS)
    return sizes


def _refuse_unsupported(arch: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if wrong := {key: value for key, value in arch.items() if key not in known or known[key] != value}:
        raise CheckpointError(f"The published configuration has values that this model does not support: {wrong}.")


def from_siglip2(siglip2_vision_model: torch.nn.Module, config: ATokenConfig) -> ATokenModel:
    """A tokenizer whose encoder and pooling head are a transformers ``Siglip2VisionModel`` (naflex, patch 16).

    The patch weights of frames 1 to 3 are zero, so that images are read as in SigLIP2 (paper section 3.2); the latent
    projection and the decoder are newly initialised. If ``config.rope`` is off, features and pooled vector of an image
    are those of SigLIP2. Raises: CheckpointError if the tower does not fit ``config``.
    """
    model = ATokenModel(config)
    state = _siglip2_state(siglip2_vision_model.state_dict(), config)
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(("encoder.", "pool."))}
    return fill(model, own | state, "the SigLIP2 vision tower")


def with_text(model: ATokenModel, siglip2_text_model: PreTrainedModel) -> ATokenModel:
    """The same model with a transformers ``Siglip2TextModel``, unchanged, as its text side.

    Raises: CheckpointError if its vectors are not as wide as the pooled ones.
    """
    config = siglip2_text_model.config
    if config.projection_size != model.config.encoder_width:
        raise CheckpointError(
            f"The text tower gives vectors of {config.projection_size}, the encoder of {model.config.encoder_width}; "
            "use the SigLIP2 of the same size."
        )
    model.config.text = {name: getattr(config, name) for name in TEXT_SIZES}
    model.text_tower = siglip2_text_model
    return model.eval()


def _siglip2_state(theirs: StateDict, config: ATokenConfig) -> dict[str, Tensor]:
    parts = {key.removeprefix("vision_model."): value for key, value in theirs.items()}
    for which in ("weight", "bias"):
        for layer in {key.rsplit(".self_attn.", 1)[0] for key in parts if ".self_attn.q_proj." in key}:
            attention = [parts.pop(f"{layer}.self_attn.{name}_proj.{which}", None) for name in "qkv"]
            parts |= _joined(f"{layer}.attention.qkv.{which}", attention)
        q_and_kv = parts.pop(f"head.attention.in_proj_{which}", None)
        if q_and_kv is not None:
            width = len(q_and_kv) // 3
            parts |= {f"head.q.{which}": q_and_kv[:width], f"head.kv.{which}": q_and_kv[width:]}
    state = {_renamed(key, SIGLIP2_KEYS): value for key, value in parts.items()}
    if "pool.probe" in state:
        state["pool.probe"] = state["pool.probe"].flatten()
    if "encoder.inputs.weight" in state:
        one_frame = state["encoder.inputs.weight"]
        later = one_frame.new_zeros(len(one_frame), max(0, config.patch_values - one_frame.shape[1]))
        state["encoder.inputs.weight"] = torch.cat([one_frame, later], dim=1)
    return state


def _joined(key: str, parts: list[Tensor | None]) -> dict[str, Tensor]:
    """q, k and v as one matrix; nothing if a part is missing, so that the strict check reports the key."""
    present = [part for part in parts if part is not None]
    return {key: torch.cat(present)} if len(present) == len(parts) else {}


def fill(model: ATokenModel, state: StateDict, source: str) -> ATokenModel:
    """Load ``state`` strictly into ``model``, which may be on the meta device. Raises: CheckpointError."""
    expected = model.state_dict()
    wrong = [f"missing {key}" for key in sorted(expected.keys() - state.keys())]
    wrong += [f"unexpected {key}" for key in sorted(state.keys() - expected.keys())]
    wrong += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise CheckpointError(f"The weights of {source} do not fit the model: {', '.join(wrong[:8])}{more}.")
    model.load_state_dict({key: value.detach().clone() for key, value in state.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def load_folder(folder: str | Path, **options: Any) -> ATokenModel:
    """The model of a folder or hub id that ``save_pretrained`` wrote, strictly. options: of ``from_pretrained``.

    Raises: CheckpointError (no model in the folder, a damaged file, weights that do not fit).
    """
    try:
        where = {name: options[name] for name in WHERE & options.keys()}
        found, mine = PreTrainedConfig.get_config_dict(folder, **where)[0].get("model_type"), ATokenConfig.model_type
        if found is None:
            raise ValueError("it has no config.json that names a model_type.")
        if found != mine:
            raise ValueError(f"its config.json is of type {found}, not {mine}; for a tower use ATokenVisionModel.")
        with quiet_transformers():
            model, info = ATokenModel.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"Cannot load a model from {folder}: {_first_line(error)}") from error
    wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(key)}
    if wrong:
        raise CheckpointError(f"The weights in {folder} do not fit its config.json: {wrong}.")
    return model.eval()


def load_transformers(folder: str | Path, classes: Mapping[str, type[PreTrainedModel]]) -> PreTrainedModel:
    """The fp32 model of a local transformers folder; ``classes`` maps the model_type in its config.json to a class.

    Raises: CheckpointError with a clause without a full stop, to which the caller adds what the model is for.
    """
    try:
        model_type = PreTrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("model_type")
        if model_type is None:
            raise ValueError("it has no config.json that names a model_type")
        if model_type not in classes:
            raise ValueError(f"its config.json is of type {model_type}, not {' or '.join(classes)}")
        with quiet_transformers():
            model, info = classes[model_type].from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        if info["missing_keys"]:  # transformers would initialise these at random
            raise ValueError(f"it lacks {min(info['missing_keys'])}")
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(_first_line(error).rstrip(".")) from error
    return model


@contextmanager
def model_folder(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder, whose files are moved into ``folder`` on success; on failure nothing of them is left.

    transformers prints nothing meanwhile. Raises: CheckpointError (it cannot be written).
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", suffix=".part", dir=target) as part, quiet_transformers():
            yield Path(part)
            for file in Path(part).iterdir():
                file.replace(target / file.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write {folder}: {getattr(error, 'strerror', None) or error}.") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off the progress bars and tables of unused weights that transformers prints, even into files and pipes."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def fingerprint(model: ATokenModel) -> str:
    """SHA-256 (hex) of architecture and weights, rounded to bf16, so that it does not depend on the dtype in use."""
    config = model.config.to_dict()
    sizes = {key: config[key] for key in sorted(ATokenConfig.__annotations__) if key in config}
    for part in ("gaussian_decoder", "text"):
        if sizes[part] is None:
            del sizes[part]  # fingerprints are older than these fields
    return weights_digest(model, sizes)


def weights_digest(model: torch.nn.Module, sizes: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what a model is made of and its weights, rounded to bf16."""
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().to("cpu", torch.bfloat16).flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _renamed(key: str, patterns: Mapping[str, str]) -> str:
    for theirs, ours in patterns.items():
        key = re.sub(theirs, ours, key)
    return key


def read_state(weights: str | Path | StateDict, *inside: str) -> StateDict:
    """A state dict, or that of a ``.pt`` or ``.safetensors`` file, which is never unpickled freely.

    inside: of a file that holds several, the first of these names that it has. Raises: CheckpointError.
    """
    if isinstance(weights, Mapping):
        return weights
    path = Path(weights)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = next((state[name] for name in inside if isinstance(state, Mapping) and name in state), state)
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"Cannot read weights from {path}: {_first_line(error)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} does not hold a flat dictionary of tensors; pass the published weight file.")
    return state


def _yaml_block(path: Path, *names: str) -> Mapping[str, Any]:
    try:
        block = functools.reduce(lambda outer, name: outer[name], names, yaml.safe_load(path.read_text()))
    except OSError as error:
        raise CheckpointError(
            f"Cannot read {path}, the configuration of published weights: {error.strerror}; name it with --config."
        ) from error
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a published configuration (no {'.'.join(names)} in it).") from error
    if not isinstance(block, Mapping):
        raise CheckpointError(f"{path} is not a published configuration ({'.'.join(names)} is not a block).")
    return block


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
