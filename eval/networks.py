"""Published networks whose features are compared: Inception, EfficientNet-Lite0, I3D, and any TorchScript file.

Nothing is downloaded: published weights are in a folder that the user names, or in the cache that ``atoken fetch``
fills, and must have the pinned SHA-256.

    FOLDER/weights-inception-2015-12-05-6726825d.pth   Inception, for FID, sFID, Inception Score, precision and recall
    FOLDER/i3d-kinetics-400.ckpt                       I3D, for FVD (``atoken fetch i3d``)
    FOLDER/i3d_torchscript.pt                          the same in TorchScript, if the other is not there
    FOLDER/efficientnet-lite0-57934424.pth             EfficientNet-Lite0 (``atoken fetch efficientnet-lite0``)

Letters: ``B`` images or videos, ``T`` frames, ``D`` width of features, ``S`` the pixels of a side.
"""

from __future__ import annotations

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.errors import AtokenError, CheckpointError, MissingExtraError
from atoken.metrics.efficientnet import EFFICIENTNET_FILE, SIDE, load_efficientnet
from atoken.metrics.i3d import FEWEST, I3D_WEIGHTS, load_i3d
from atoken.metrics.pinned import PinnedFile
from atoken.metrics.vgg import resized
from atoken.modalities.pixels import to_values
from eval.torchvision_step import mend_torchvision

Features = dict[str, np.ndarray]  # by kind, (B, D): "pooled", and where there are any "spatial" and "probabilities"

BATCH = 64  # images, or 1 video, that a network sees at once
INCEPTION = PinnedFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "Inception, for FID, sFID, Inception Score, precision and recall",
    "download https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
)
I3D_FILE = PinnedFile(
    "i3d_torchscript.pt",
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
    "I3D, for FVD",
    "take the file that StyleGAN-V's src/metrics/frechet_video_distance.py names",
)
SPATIAL = 7  # channels of a map of features that make spatial features, as in ADM's evaluator


class Network(Protocol):
    """A frozen network. kinds: which features it gives. videos: a row of features is of a video, not of a frame."""

    name: str
    checksum: str  # SHA-256 of its weights
    record: Mapping[str, str]  # for the protocol: how it prepares frames
    kinds: frozenset[str]
    videos: bool

    def features(self, frames: Sequence[np.ndarray]) -> Features:
        """Of videos (T, H, W, 3) uint8 of any sizes: a row for each, or for each frame, in order.

        Raises: AtokenError for what it cannot take.
        """


class ImageNetwork(ABC):
    """A network that sees every frame as an image; those of one size go together."""

    videos = False

    @abstractmethod
    def _of_one_size(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """Features of uint8 images, by kind."""

    def features(self, frames: Sequence[np.ndarray]) -> Features:
        """Of every frame, in order. Raises: CheckpointError where the network fails; AtokenError for mixed widths."""
        images = [frame for video in frames for frame in video]
        sizes: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            sizes.setdefault(image.shape, []).append(index)
        order, batches = [], []
        for indices in sizes.values():
            for first in range(0, len(indices), BATCH):
                some = indices[first : first + BATCH]
                images_B3HW = torch.from_numpy(np.stack([images[index] for index in some])).movedim(3, 1).contiguous()
                with torch.inference_mode(), _exact():
                    found = self._of_one_size(images_B3HW)
                batches.append({kind: rows.cpu().numpy() for kind, rows in found.items()})
                order += some
        return {kind: rows[np.argsort(order)] for kind, rows in joined(batches).items()}


class Inception(ImageNetwork):
    """The Inception of 2015 as TensorFlow computes it, by torch-fidelity: published FID values use it.

    pooled: (B, 2048). spatial: (B, 2023), the first 7 channels of ``mixed_6/conv``, flattened with channels last, as in
    ADM's evaluator. probabilities: (B, 1008), of logits without bias, as there.
    Raises: CheckpointError, MissingExtraError.
    """

    name, checksum = "inception-2015-12-05", INCEPTION.sha256
    kinds = frozenset({"pooled", "spatial", "probabilities"})
    record: Mapping[str, str] = {"resize": "TensorFlow 1 bilinear to 299, aspect not kept, inside the network"}

    def __init__(self, folder: str | Path | None, device: str = "cpu") -> None:
        clean = io.BytesIO()  # torch-fidelity unpickles its file, so it gets one that was written here
        torch.save(INCEPTION.tensors(folder), clean)
        clean.seek(0)
        mend_torchvision()
        try:
            extractor = importlib.import_module("torch_fidelity").FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingExtraError("torch-fidelity", "inception", "The Inception of published FIDs") from error
        wanted = ["2048", "logits_unbiased"]
        self._network = extractor(self.name, wanted, feature_extractor_weights_path=clean).to(device)
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._look)
        self._device = device

    def _look(self, module: object, inputs: object, map_BDSS: Tensor) -> None:
        self._map_BDSS = map_BDSS

    def _of_one_size(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        pooled_BD, logits_BD = self._network(images_B3HW.to(self._device))
        spatial_BD = self._map_BDSS[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)
        return {"pooled": pooled_BD, "spatial": spatial_BD, "probabilities": logits_BD.double().softmax(1)}


class EfficientNetLite0(ImageNetwork):
    """EfficientNet-Lite0 of ImageNet-1k: pooled (B, 1280), probabilities (B, 1000). Its numbers are not those of FID.

    Raises: CheckpointError.
    """

    name, checksum = "EfficientNet-Lite0", EFFICIENTNET_FILE.sha256
    kinds = frozenset({"pooled", "probabilities"})
    record: Mapping[str, str] = {"resize": f"bilinear with antialiasing to {SIDE}, aspect not kept"}

    def __init__(self, folder: str | Path | None, device: str = "cpu") -> None:
        self._network, self._device = load_efficientnet(folder).to(device), device

    def _of_one_size(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        pooled_BD, logits_BD = self._network(resized(images_B3HW.to(self._device), SIDE) / 127.5 - 1)
        return {"pooled": pooled_BD, "probabilities": logits_BD.double().softmax(1)}


class TorchScriptNetwork(ImageNetwork):
    """A TorchScript file that takes (B, 3, H, W) uint8 images and returns (B, D), pooled features.

    sha256: of the file, so that the numbers can be reproduced. trust: TorchScript runs code of the file, so it must be
    True. Raises: CheckpointError.
    """

    kinds = frozenset({"pooled"})
    record: Mapping[str, str] = {"resize": "none but the network's own"}

    def __init__(self, path: str | Path, sha256: str, *, trust: bool, device: str = "cpu") -> None:
        path = Path(path)
        file = PinnedFile(path.name, sha256, "features of images", f"name the file whose SHA-256 is {sha256}")
        self._network = _script(file.read(path.parent), path, trust=trust, device=device)
        self.name, self.checksum, self._device = path.stem, sha256, device

    def _of_one_size(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        try:
            found = self._network(images_B3HW.to(self._device))
        except (RuntimeError, torch.jit.Error) as error:
            size = "x".join(map(str, images_B3HW.shape[:1:-1]))
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(f"The network {self.name} fails on images of {size} ({reason}).") from error
        if not (isinstance(found, Tensor) and found.ndim > 1 and len(found) == len(images_B3HW)):
            raise CheckpointError(f"The network {self.name} does not return (B, D).")
        return {"pooled": found.flatten(1).float()}


class I3D:
    """The I3D of Kinetics-400: (B, 400), before its softmax.

    From DeepMind's weights, or, where their file is missing, from the TorchScript of StyleGAN-V.
    Frames: the shorter side to 224, bilinear without antialias, and the middle square, as in TokenBench.
    frames: how many of the start of each video, usually 16 for FVD; None: all. Raises: CheckpointError.
    """

    name = "i3d-kinetics-400"
    kinds = frozenset({"pooled"})
    videos = True
    side = 224  # pixels

    def __init__(self, folder: str | Path | None, *, trust: bool, frames: int | None = 16, device: str = "cpu") -> None:
        self._network: Callable[[Tensor], Tensor]
        if I3D_FILE.path(folder) and not I3D_WEIGHTS.path(folder):
            script = _script(I3D_FILE.read(folder), Path(I3D_FILE.name), trust=trust, device=device)
            self._network = partial(script, rescale=False, resize=False, return_features=True)
            self.checksum = I3D_FILE.sha256
        else:
            self._network, self.checksum = load_i3d(folder).to(device), I3D_WEIGHTS.sha256
        self._frames, self._device = frames, device
        self.record: Mapping[str, str] = {
            "resize": f"shorter side to {self.side}, bilinear without antialias, then the middle square",
            "frames": "all" if frames is None else f"the first {frames}",
        }

    def features(self, frames: Sequence[np.ndarray]) -> Features:
        """Of whole videos. Raises: AtokenError for one that has too few frames."""
        needed, rows = max(self._frames or 0, FEWEST), []
        for video_THW3 in frames:
            if len(video_THW3) < needed:
                raise AtokenError(f"A video has {len(video_THW3)} frames, FVD needs {needed}: leave short videos out.")
            values_T3SS = middle_square(video_THW3[: self._frames], self.side)
            video_13TSS = values_T3SS.movedim(0, 1)[None].to(self._device)
            with torch.inference_mode(), _exact():
                found = self._network(video_13TSS)
            rows.append(found.float().cpu().numpy())
        return {"pooled": np.concatenate(rows)}


def middle_square(video_THW3: np.ndarray, side: int) -> Tensor:
    """(T, 3, S, S) fp32 in [-1, 1]: the shorter side to ``side``, bilinear without antialias, and the middle."""
    height, width = video_THW3.shape[1:3]
    scale = side / min(height, width)
    size = (side, ceil(width * scale)) if height < width else (ceil(height * scale), side)
    values_T3HW = to_values(video_THW3).movedim(3, 1)
    values_T3HW = F.interpolate(values_T3HW, size, mode="bilinear", align_corners=False)
    top, left = ((length - side) // 2 for length in size)
    return values_T3HW[:, :, top : top + side, left : left + side].contiguous()


def joined(batches: Sequence[Features]) -> Features:
    """Rows of features, one batch after the other. Raises: AtokenError where their widths differ."""
    try:
        return {kind: np.concatenate([batch[kind] for batch in batches]) for kind in batches[0]}
    except ValueError as error:
        raise AtokenError("A network's features differ in width between sizes: bring images to one size.") from error


def _exact() -> AbstractContextManager[None]:
    """Convolutions in full fp32: TF32 has ten bits, which would show in the numbers."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


def _script(data: bytes, path: Path, *, trust: bool, device: str) -> Any:
    if not trust:
        raise CheckpointError(
            f"{path.name} is TorchScript, which runs the code in it: pass --trust if you trust its source."
        )
    try:
        return torch.jit.load(io.BytesIO(data), map_location=device).eval()
    except RuntimeError as error:
        raise CheckpointError(f"{path.name} is not a TorchScript file that this torch can load.") from error
