"""Features of media that the frozen tower made once, kept in a folder: later epochs and runs read no pixels.

A file is named after the contents of its media item and all that decides what the tower makes of them, so that a
folder serves any runs, and several ranks at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from atoken.atomic import atomic_path
from atoken.errors import CheckpointError
from mllm.conversation import Conversation, MediaItem
from mllm.inputs import MediaInputs
from mllm.processor import ATokenVLProcessor
from mllm.questions.synthetic import Generated


@dataclass(frozen=True)
class FeatureFolder:
    """``origin``: what decides the features beside the media: the tower's fingerprint, its layer, its precision."""

    path: Path
    origin: str

    def with_features(self, conversation: Conversation, processor: ATokenVLProcessor) -> Conversation:
        """The conversation with its media read: as features that are there, or as patches, with ``file`` to keep them.

        Raises: AtokenError, which names the conversation.
        """

        def read(item: MediaItem) -> MediaItem:
            contents = _digest(item.source)
            if contents is None:
                return item
            settings = [self.origin, processor.pooling, processor.image_processor.to_dict(), item.modality]
            said = json.dumps([*settings, dict(item.options), contents], sort_keys=True, default=str)
            name = hashlib.sha256(said.encode()).hexdigest()
            file = self.path / name[:2] / f"{name[2:]}.safetensors"
            found = _kept(file) or replace(processor.read(item, conversation.key), file=file)
            return replace(item, source=found, options={})

        messages = (
            replace(one, content=tuple(read(piece) if isinstance(piece, MediaItem) else piece for piece in one.content))
            for one in conversation.messages
        )
        return replace(conversation, messages=tuple(messages))


def keep(media: Iterable[MediaInputs]) -> None:
    """Write the features of media that have a file which is not there. Raises: CheckpointError (a full disk, say)."""
    for one in media:
        if one.file is None or one.features is None or one.file.exists():
            continue
        one.file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"layout": one.layout, "features": one.features, "centres": one.centres}
        found = {name: tensor.contiguous().cpu() for name, tensor in tensors.items() if tensor is not None}
        about = {"modality": one.modality, "size": json.dumps(one.size)}
        with atomic_path(one.file, CheckpointError, durable=False) as temporary:
            save_file(found, temporary, about)


def _kept(file: Path) -> MediaInputs | None:
    """Those of a file; None where there is none, or one that a power cut has left incomplete."""
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError):
        return None
    return MediaInputs(about["modality"], tuple(json.loads(about["size"])), **tensors)


def _digest(source: Any) -> str | None:
    """Of the contents of a file, of bytes, pixels or frames, or of how it is generated; None of anything else."""
    if isinstance(source, Generated):
        return json.dumps(asdict(source))
    if isinstance(source, str | Path):
        try:
            with Path(source).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:  # whoever reads it says why, or it is a folder
            return None
    if isinstance(source, list | tuple):
        digests = [_digest(frame) for frame in source]
        return None if None in digests else json.dumps(digests)
    if isinstance(source, Image | np.ndarray):
        pixels = np.ascontiguousarray(source)
        return f"{pixels.shape} {pixels.dtype} {hashlib.sha256(pixels.data).hexdigest()}"
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else None
