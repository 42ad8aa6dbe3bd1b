"""How many tokens conversations have, before their media are decoded: what packing has to know of all of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from atoken.data.mixing import Broken
from atoken.data.sources.sample import quiet
from atoken.errors import AtokenError, MediaError, MissingExtraError
from atoken.io import Image, Video, VideoReader
from atoken.io.inputs import as_media
from atoken.media.formats import format_of
from atoken.media.image_formats import FORMATS, open_image, turn_of
from atoken.media.source import missing, name_of, opened, translated
from atoken.modalities import MODALITIES
from atoken.patches import grid
from mllm.conversation import Conversation, MediaItem
from mllm.data.mixture import Mixture
from mllm.inputs import MediaInputs
from mllm.media import frame_indices, frames_asked
from mllm.processor import ATokenVLProcessor
from mllm.questions.synthetic import Generated
from mllm.rendering import render
from mllm.slowfast import Grid, SlowFast, layout_of
from mllm.supervision import IGNORED, labels_of


@dataclass(frozen=True)
class Lengths:
    """Of each conversation of a mixture: ``tokens`` (n,) int32, at most, and ``supervised`` (n,) int32 of its answers.

    Those in ``broken``, and those that are left out, have 0.
    """

    tokens: np.ndarray
    supervised: np.ndarray
    broken: tuple[Broken, ...]


def measure(
    mixture: Mixture,
    processor: ATokenVLProcessor,
    most: int,
    most_broken: float = 0.1,
    modalities: Collection[str] = tuple(MODALITIES),
) -> Lengths:
    """Measure all conversations, each in about a millisecond. Those with media of other modalities are left out.

    Broken are those with more than ``most`` tokens, with nothing to learn, or with a missing file. Raises: AtokenError
    (a larger share than ``most_broken`` is, with the first of them; an extra is missing).
    """
    tokens, supervised, broken = np.zeros(len(mixture), np.int32), np.zeros(len(mixture), np.int32), []
    for number in range(len(mixture)):
        key = f"conversation {number}"
        try:
            conversation = mixture[number]
            key = conversation.key
            if all(item.modality in modalities for item in conversation.media):
                tokens[number], supervised[number] = _length(conversation, processor, most)
        except MissingExtraError:
            raise
        except AtokenError as error:
            broken.append(Broken(number, mixture.name_of(number), key, str(error)))
    if len(broken) > most_broken * len(tokens):
        raise AtokenError(
            f"{len(broken)} of {len(tokens)} conversations are broken, over the limit of {most_broken:.0%}. The first: "
            f"{broken[0].reason}"
        )
    return Lengths(tokens, supervised, tuple(broken))


def _length(conversation: Conversation, processor: ATokenVLProcessor, most: int) -> tuple[int, int]:
    options = {"chat_template": processor.chat_template, "add_generation_prompt": False}
    rendered = render(processor.tokenizer, conversation, **options)
    supervised = sum(label != IGNORED for label in labels_of(processor.tokenizer, rendered))
    if not supervised:
        raise AtokenError(f"{conversation.key} has no answer to learn.")
    with quiet():
        media = [most_tokens(item, processor) for item in conversation.media]
    length = len(rendered.tokens) - len(media) + sum(media)
    if length > most:
        raise AtokenError(f"{conversation.key} has {length:,} tokens, over the budget of {most:,} of a micro-batch.")
    return length, supervised


def most_tokens(item: MediaItem, processor: ATokenVLProcessor) -> int:
    """Tokens of a media item, from its header: exact of images and videos, the most there can be of an asset.

    Raises: AtokenError (a missing or unreadable file).
    """
    settings, images, source = processor.settings, processor.image_processor, item.source
    if isinstance(source, MediaInputs):
        return len(source)
    if item.modality == "asset":
        if isinstance(source, str | Path) and not Path(source).exists():
            raise MediaError(f"Cannot read {source}: {missing(source)}.")
        return settings.asset_tokens + 2
    asked = frames_asked(item, settings)
    frames, height, width = _size(source, item.modality)
    most = settings.image_pixels if item.modality == "image" else settings.video_pixels
    size = images.target_size(height, width, max_pixels=most, min_pixels=min(images.min_pixels, most))
    steps = settings.steps(len(frame_indices(frames, asked)))
    return _tokens(item.modality, (steps, *grid(1, *size)[1:]), settings)


@lru_cache(1 << 12)
def _tokens(modality: str, size: Grid, settings: SlowFast) -> int:
    return len(layout_of(modality, size, settings))


def _size(source: Any, modality: str) -> tuple[int, int, int]:
    """Frames, height and width before anything is resized. Raises: MediaError."""
    if isinstance(source, Generated):
        return (1, *source.size)[-3:]  # type: ignore[return-value] # two or three numbers
    if isinstance(source, list | tuple):
        return (len(source), *_size(source[0], "image")[1:]) if source else (0, 1, 1)
    if isinstance(source, str | Path | bytes):
        return _size_in_file(source, modality)
    media = as_media(source)
    if isinstance(media, Image):
        return 1, *media.pixels.shape[:2]
    if not isinstance(media, Video):
        raise MediaError(f"A {type(media).__name__} was given as {modality}.")
    return len(media.frames), *media.frames.shape[1:3]


def _size_in_file(source: str | Path | bytes, modality: str) -> tuple[int, int, int]:
    if modality == "video":
        with VideoReader(source) as reader:
            frames = reader.expected_frames
            return sum(1 for _ in reader) if frames is None else frames, reader.info.height, reader.info.width
    name = name_of(source)
    with opened(source, name) as file, translated(f"Cannot read {name}"):
        pil = open_image(file, format_of(file, name, FORMATS, "an image"))
        swapped, *_ = turn_of(pil, name)
        return (1, pil.width, pil.height) if swapped else (1, pil.height, pil.width)
