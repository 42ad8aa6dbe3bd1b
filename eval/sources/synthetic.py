"""Data sets that are drawn from a seed, and the photographs of scikit-image.

Keys hold seed, number and size, so that the hash of the data needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

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
from atoken.data.synthetic.procedural import make_asset, make_image, make_video
from atoken.errors import MissingExtraError
from atoken.io import Image, Mesh, Video
from eval.sources.entry import Entry, Listing

SEED = 1_000_003  # unless --seed says otherwise; no training uses it
IMAGES, VIDEOS, ASSETS = 256, 48, 24  # to be reconstructed
SIDE, VIDEO_SIDE, FRAMES = 256, 128, 16
LABELLED_IMAGES, LABELLED_VIDEOS, LABELLED_ASSETS, TEXTS = 384, 192, 48, 200  # whole rounds of the 48 classes
SIDES, LENGTHS, TEXT_SIDE = (64, 80, 96, 112, 128), (8, 12, 16), 128  # of labelled ones, in turn
CODED_IMAGES = 327  # which, with the photographs, have 100,000 tokens


def images(seed: int, many: int = IMAGES) -> Listing:
    """Procedural images of 256x256."""
    return Listing([_entry("image", make_image, seed, number, SIDE, SIDE) for number in range(many)])


def videos(seed: int) -> Listing:
    """Procedural videos of 16 frames of 128x128."""
    size = FRAMES, VIDEO_SIDE, VIDEO_SIDE
    return Listing([_entry("video", make_video, seed, number, *size) for number in range(VIDEOS)])


def assets(seed: int) -> Listing:
    """Procedural meshes."""
    return Listing([_entry("asset", make_asset, seed, number) for number in range(ASSETS)])


def labelled_images(seed: int) -> Listing:
    """Labelled images of five sizes."""
    return _labelled("labelled-image", labelled_image, seed, [(side, side) for side in SIDES], LABELLED_IMAGES)


def labelled_videos(seed: int) -> Listing:
    """Labelled videos of five sizes and three lengths."""
    sizes = [(frames, side, side) for frames, side in zip(LENGTHS * len(SIDES), SIDES * len(LENGTHS), strict=True)]
    return _labelled("labelled-video", labelled_video, seed, sizes, LABELLED_VIDEOS)


def labelled_assets(seed: int, many: int = LABELLED_ASSETS) -> Listing:
    """Labelled meshes: few, since with all its voxels one takes a CPU half a minute."""
    return _labelled("labelled-asset", labelled_asset, seed, [()], many, SOLID_PROMPTS)


def captioned_images(seed: int) -> Listing:
    """Labelled images whose captions say more than the prompt, and differ."""
    return _different("labelled-image", labelled_image, seed, FIGURE_PROMPTS)


def scenes(seed: int) -> Listing:
    """Images of several figures, with captions that differ; no training uses such images."""
    return _different("scene", scene, seed)


def photographs(_: object = None) -> Listing:
    """The seven photographs that scikit-image bundles. Raises: MissingExtraError."""
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtraError("scikit-image", "dev", "The task of seven photographs") from error
    names = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina")
    found: dict[str, Callable[[], np.ndarray]] = {name: getattr(data, name) for name in names}
    found["motorcycle_left"] = lambda: data.stereo_motorcycle()[0]
    return Listing([Entry(f"scikit-image/{name}", partial(_read, get)) for name, get in sorted(found.items())])


def coded_images(seed: int) -> Listing:
    """The photographs and procedural images, for the usage of codes. Raises: MissingExtraError."""
    return Listing([*photographs().entries, *images(seed, CODED_IMAGES).entries])


def _entry(
    series: str, make: Callable[..., Any], seed: int, number: int, *size: int, label: int | None = None
) -> Entry:
    key = f"{series}/{seed}/{number:05d}/{'x'.join(map(str, size))}".rstrip("/")
    return Entry(key, partial(_drawn, make, seed, number, *size), label)


def _drawn(make: Callable[..., Any], seed: int, number: int, *size: int) -> Image | Video | Mesh:
    """An image of (H, W), a video of (T, H, W), or a mesh, which has no size."""
    drawn = make(seed, number, *size)
    if not size:
        return drawn.mesh
    return Image(drawn.frames[0]) if len(size) == 2 else Video(drawn.frames)


def _labelled(
    series: str,
    make: Callable[..., Any],
    seed: int,
    sizes: Sequence[tuple[int, ...]],
    many: int,
    classes: Sequence[str] = FIGURE_PROMPTS,
) -> Listing:
    """Entries of the sizes and of the classes in turn."""
    shapes = [(number, *sizes[number % len(sizes)]) for number in range(many)]
    entries = [_entry(series, make, seed, *shape, label=class_of(shape[0])) for shape in shapes]
    return Listing(entries, tuple(classes))


def _different(series: str, make: Callable[..., Any], seed: int, without: Sequence[str] = ()) -> Listing:
    """The first images of a series whose captions differ from each other and from those of ``without``."""
    first: dict[str, int] = {}
    numbers = count()
    while len(first) < TEXTS:
        number = next(numbers)
        caption = make(seed, number, TEXT_SIDE, TEXT_SIDE).caption
        if caption not in without:
            first.setdefault(caption, number)
    plain = {caption: _entry(series, make, seed, number, TEXT_SIDE, TEXT_SIDE) for caption, number in first.items()}
    return Listing([replace(entry, captions=(caption,)) for caption, entry in plain.items()])


def _read(get: Callable[[], np.ndarray]) -> Image:
    return Image(np.ascontiguousarray(get()))
