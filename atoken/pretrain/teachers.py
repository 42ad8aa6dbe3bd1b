"""The frozen networks that a tokenizer learns from: loaded once, checked, and outside of every module.

``Teachers`` is not an ``nn.Module``, so that a module that holds one does not register, shard or save its networks.
Nothing is downloaded: files come from a folder that the user names, that of ``atoken fetch`` also from its cache, and
whole models also from the Hugging Face cache, where they must have the pinned SHA-256. Shape letters: ``B`` samples,
``E`` width of a tower's vectors, ``S`` pixels of a side, ``L`` ids of a text.

    FOLDER/vgg16-397923af.pth   VGG-16, for LPIPS and the Gram loss
    FOLDER/vgg.pth              the linear heads of LPIPS
    FOLDER/alex_shift_tolerant.pth  ST-LPIPS, if not from the cache
    FOLDER/clip/                the image tower of the CLIP-perceptual loss, if not from the cache
    FOLDER/siglip2/             the teacher of image-text similarities, if not from the cache

A whole model in the folder may differ from the published one (a SigLIP2 of another size, for example): it is not
checked, and ``Teachers.record`` has its SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.nn.utils.rnn import pad_sequence

from atoken.checkpoint import load_transformers
from atoken.errors import CheckpointError
from atoken.metrics.pinned import sha256_of
from atoken.metrics.stlpips import STLPIPS, STLPIPS_FILES, load_stlpips
from atoken.metrics.vgg import VGG16, Heads, load_vgg
from atoken.tokens import SparseTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Siglip2Model

Name = Literal["vgg", "clip", "siglip", "stlpips"]
WITHOUT = "or train with --teachers none"


@dataclass(frozen=True)
class PinnedModel:
    """A published model on the Hugging Face hub, and the subfolder of the user's folder that replaces it."""

    subfolder: str
    repository: str
    revision: str
    sha256: str  # of its model.safetensors
    purpose: str


CLIP = PinnedModel(
    "clip", "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb", "the image tower of the CLIP-perceptual loss",
)  # fmt: skip
SIGLIP2 = PinnedModel(
    "siglip2", "google/siglip2-so400m-patch16-naflex", "cc24074f717b612951c2dead130904ab9b65a81e",
    "11a61a2068800d5f4f35cb041c1fea25de86ce87725e4c97a9ed046d0b22c076", "the teacher of image-text similarities",
)  # fmt: skip


@dataclass(frozen=True)
class ImageTower:
    """A transformers image tower with a pooled output, and mean and deviation, in 0..1, that normalise its inputs."""

    model: PreTrainedModel
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Teachers:
    """The teachers of a run; ``NO_TEACHERS`` has none. record: SHA-256 by file, for the record of the run."""

    vgg: VGG16 | None = None
    heads: Heads | None = None
    clip: ImageTower | None = None
    siglip: Siglip2Model | None = None
    stlpips: STLPIPS | None = None
    record: Mapping[str, str] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Teachers:
        """The same teachers on another device; networks are moved, not copied."""
        clip = None if self.clip is None else self.clip.model
        for network in (self.vgg, clip, self.siglip, self.stlpips):
            if network is not None:
                network.to(device)
        return replace(self, heads=self.heads and tuple(head_C.to(device) for head_C in self.heads))

    @property
    def names(self) -> set[str]:
        """The names of those that are loaded, as in ``load_teachers``."""
        return {name for name in get_args(Name) if getattr(self, name) is not None}


NO_TEACHERS = Teachers()


def load_teachers(names: Collection[Name], folder: str | Path | None = None) -> Teachers:
    """Load teachers, frozen, fp32, on the CPU; not to be called while an engine constructs a sharded model.

    names: "vgg" (with the heads of LPIPS), "clip", "siglip", "stlpips". folder: see the head of this file.
    Raises: CheckpointError (a file is missing, damaged or not the published one), with its purpose and how to get it.
    """
    folder = None if folder is None else Path(folder)
    record: dict[str, str] = {}
    vgg = heads = clip = siglip = stlpips = None
    if "vgg" in names:
        vgg, heads, record = load_vgg(folder, WITHOUT)
    if "clip" in names:
        clip = _image_tower(_folder_of(CLIP, folder, record))
    if "siglip" in names:
        from transformers import Siglip2Model

        siglip = _load({"siglip2": Siglip2Model}, _folder_of(SIGLIP2, folder, record))
    if "stlpips" in names:
        stlpips, file = load_stlpips(folder, otherwise=WITHOUT), STLPIPS_FILES["alex"]
        record[file.name] = file.sha256
    return Teachers(vgg, heads, clip, siglip, stlpips, record)


def image_features(tower: ImageTower, images_B3SS: Tensor) -> Tensor:
    """(B, E) projected, else pooled, features of images in [-1, 1], of any size that the tower accepts."""
    mean, std = (images_B3SS.new_tensor(each, dtype=torch.float32)[:, None, None] for each in (tower.mean, tower.std))
    values_B3SS = ((images_B3SS.float() + 1) / 2 - mean) / std
    found = tower.model(pixel_values=values_B3SS, interpolate_pos_encoding=True)
    return found.image_embeds if "image_embeds" in found else found.pooler_output


def cosine_distance(prediction_BE: Tensor, target_BE: Tensor) -> Tensor:
    """(B,) fp32: 1 - cosine. Our choice for the CLIP-perceptual loss: the paper names neither network nor distance."""
    return 1 - F.cosine_similarity(prediction_BE.float(), target_BE.float())


@torch.no_grad()
def siglip_images(siglip: Siglip2Model, tokens: SparseTokens) -> Tensor:
    """(B, E) unit vectors of images: tokens of one time step, on full grids, row by row.

    The first frame of a token has the values of a patch of SigLIP2, in its order (paper section 3.2).
    """
    frame_ND = tokens.feats[:, : 3 * siglip.config.vision_config.patch_size**2]
    lengths = torch.tensor(tokens.lengths, device=frame_ND.device)
    found = siglip.get_image_features(
        pixel_values=pad_sequence(list(frame_ND.split(tokens.lengths)), batch_first=True),
        pixel_attention_mask=(torch.arange(max(tokens.lengths), device=frame_ND.device) < lengths[:, None]).long(),
        spatial_shapes=(tokens.reduce_coords("amax")[:, 1:3] + 1).cpu(),  # read on the host, image by image
    )
    return F.normalize(found.pooler_output.float(), dim=1)


@torch.no_grad()
def siglip_texts(siglip: Siglip2Model, ids_BL: Tensor) -> Tensor:
    """(B, E) unit vectors of texts, as ids padded to SigLIP2's length; padding is not masked, as in its training."""
    return F.normalize(siglip.get_text_features(input_ids=ids_BL).pooler_output.float(), dim=1)


def _folder_of(model: PinnedModel, folder: Path | None, record: dict[str, str]) -> Path:
    """The folder of a model: the user's subfolder, else the cache with the pinned weights. Raises: CheckpointError."""
    if folder is not None and (own := folder / model.subfolder).is_dir():
        record |= {f"{model.subfolder}/{file.name}": sha256_of(file) for file in sorted(own.glob("*.safetensors"))}
        return own
    cached, name = _cached(model), f"{model.repository}@{model.revision}/model.safetensors"
    record[name] = sha256_of(cached)
    if record[name] != model.sha256:
        raise CheckpointError(f"{cached} is damaged ({model.purpose}): delete it, {_how(model)}, {WITHOUT}.")
    return cached.parent


def _cached(model: PinnedModel) -> Path:
    from transformers.utils import cached_file

    try:
        found = cached_file(model.repository, "model.safetensors", revision=model.revision, local_files_only=True)
    except OSError as error:
        where = (
            f"it is neither in a subfolder {model.subfolder} of the folder of teachers nor in the Hugging Face cache"
        )
        raise CheckpointError(f"No {model.repository} ({model.purpose}; {where}): {_how(model)}, {WITHOUT}.") from error
    return Path(found)


def _how(model: PinnedModel) -> str:
    return f'get it by hf download {model.repository} --revision {model.revision} --include "*.json" "*.safetensors"'


def _image_tower(folder: Path) -> ImageTower:
    from transformers import CLIPVisionModelWithProjection, SiglipVisionModel

    clip, siglip = CLIPVisionModelWithProjection, SiglipVisionModel
    classes = {"clip": clip, "clip_vision_model": clip, "siglip": siglip, "siglip_vision_model": siglip}
    model = _load(classes, folder)
    try:
        values = json.loads((folder / "preprocessor_config.json").read_text())
        return ImageTower(model, tuple(values["image_mean"]), tuple(values["image_std"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        missing = "a preprocessor_config.json with image_mean and image_std"
        raise CheckpointError(f"{folder} lacks {missing}: put that of the model there, {WITHOUT}.") from error


def _load(classes: Mapping[str, Any], folder: Path) -> Any:
    """The model of a folder, frozen. Raises: CheckpointError."""
    try:
        model = load_transformers(folder, classes)
    except CheckpointError as error:
        raise CheckpointError(f"No teacher in {folder} ({error}): put the published model there, {WITHOUT}.") from error
    return model.eval().requires_grad_(False)
