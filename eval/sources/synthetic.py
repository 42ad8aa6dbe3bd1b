"""Data sets that are made on the spot, of a seed that training never uses, and the photographs of scikit-image.

Names hold seed, number and size, so that they are all that the hash of the data needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from atoken.data.synthetic.labelled import (
    FIGURE_PROMPTS,
    SOLID_PROMPTS,
    class_of,
    labelled_asset,
    labelled_image,
    labelled_video,
    scene,
)
from atoken.data.synthetic.procedural import SyntheticAsset, SyntheticFrames, make_asset, make_image, make_video
from atoken.errors import MissingExtraError
from atoken.io import Image, Mesh, Video
from eval.sources.entry import Entry, Listing

SEED = 1_000_003
IMAGES, VIDEOS, ASSETS = 256, 48, 24  # to be reconstructed
SIDE, VIDEO_SIDE, FRAMES = 256, 128, 16
NAMED_IMAGES, NAMED_VIDEOS, NAMED_ASSETS, TEXTS = 384, 192, 48, 200  # whole rounds of the 48 classes
SIDES, LENGTHS, TEXT_SIDE = (64, 80, 96, 112, 128), (8, 12, 16), 128  # of labelled ones, in turn

MadeImage = Callable[[int, int, int, int], SyntheticFrames]


def made_images(_: Path, many: int = IMAGES) -> Listing:
    """Procedural images of 256x256."""
    return Listing(tuple(_image("image", make_image, number, SIDE) for number in range(many)))


def made_videos(_: Path) -> Listing:
    """Procedural videos of 16 frames of 128x128."""
    return Listing(tuple(_video("video", make_video, number, FRAMES, VIDEO_SIDE) for number in range(VIDEOS)))


def made_assets(_: Path) -> Listing:
    """Procedural meshes."""
    return Listing(tuple(_asset("asset", make_asset, number) for number in range(ASSETS)))


def named_images(_: Path) -> Listing:
    """Labelled images of five sizes."""
    sides = [(number, SIDES[number % len(SIDES)]) for number in range(NAMED_IMAGES)]
    entries = [_image("labelled-image", labelled_image, number, side, class_of(number)) for number, side in sides]
    return Listing(tuple(entries), FIGURE_PROMPTS)


def named_videos(_: Path) -> Listing:
    """Labelled videos of five sizes and three lengths."""
    entries = [
        _video(
            "labelled-video", labelled_video, number, LENGTHS[number % len(LENGTHS)], SIDES[number % len(SIDES)],
            class_of(number),
        )
        for number in range(NAMED_VIDEOS)
    ]  # fmt: skip
    return Listing(tuple(entries), FIGURE_PROMPTS)


def named_assets(_: Path, many: int = NAMED_ASSETS) -> Listing:
    """Labelled meshes: few, since with all its voxels one takes a CPU half a minute."""
    entries = [_asset("labelled-asset", labelled_asset, number, class_of(number)) for number in range(many)]
    return Listing(tuple(entries), SOLID_PROMPTS)


def captioned_images(_: Path) -> Listing:
    """Labelled images whose captions say more than the prompt, and differ."""
    return _different("labelled-image", labelled_image, FIGURE_PROMPTS)


def scenes(_: Path) -> Listing:
    """Images of several figures, with captions that differ; no training had such."""
    return _different("scene", scene)


def photographs(_: Path) -> Listing:
    """The seven photographs that scikit-image bundles. Raises: MissingExtraError."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("scikit-image", "dev", "The task of seven photographs") from error
    names = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")
    found: dict[str, Callable[[], np.ndarray]] = {name: getattr(data, name) for name in names}
    found["motorcycle_left"] = lambda: data.stereo_motorcycle()[0]
    return Listing(tuple(Entry(f"scikit-image/{name}", partial(_read, get)) for name, get in sorted(found.items())))


def _image(kind: str, make: MadeImage, number: int, side: int, label: int | None = None) -> Entry:
    return Entry(f"{kind}/{SEED}/{number:05d}/{side}x{side}", partial(_still, make, number, side), label)


def _video(
    kind: str, make: Callable[..., SyntheticFrames], number: int, frames: int, side: int, label: int | None = None
) -> Entry:
    return Entry(
        f"{kind}/{SEED}/{number:05d}/{frames}x{side}x{side}", partial(_moving, make, number, frames, side), label
    )


def _asset(kind: str, make: Callable[[int, int], SyntheticAsset], number: int, label: int | None = None) -> Entry:
    return Entry(f"{kind}/{SEED}/{number:05d}", partial(_mesh, make, number), label)


def _different(kind: str, make: MadeImage, without: Iterable[str] = ()) -> Listing:
    """The first images of a series whose captions differ from each other and from those of ``without``."""
    seen, entries = set(without), []
    for number in count():
        caption = make(SEED, number, TEXT_SIDE, TEXT_SIDE).caption
        if caption not in seen:
            seen.add(caption)
            plain = _image(kind, make, number, TEXT_SIDE)
            entries.append(Entry(plain.key, plain.media, None, (caption,)))
        if len(entries) == TEXTS:
            break
    return Listing(tuple(entries))


def _still(make: MadeImage, number: int, side: int) -> Image:
    return Image(make(SEED, number, side, side).frames[0])


def _moving(make: Callable[..., SyntheticFrames], number: int, frames: int, side: int) -> Video:
    return Video(make(SEED, number, frames, side, side).frames)


def _mesh(make: Callable[[int, int], SyntheticAsset], number: int) -> Mesh:
    return make(SEED, number).mesh


def _read(get: Callable[[], np.ndarray]) -> Image:
    return Image(np.ascontiguousarray(get()))
