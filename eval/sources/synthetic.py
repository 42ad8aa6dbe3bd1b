"""Data sets that are drawn from a seed, and the photographs of scikit-image.

Keys hold seed, number and size, so that the hash of the data needs nothing else. Each function but ``photographs``
gives the listing of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from atoken.data.synthetic import labelled
from atoken.data.synthetic.labelled import FIGURE_PROMPTS, SOLID_PROMPTS, class_of
from atoken.data.synthetic.procedural import make_asset, make_image, make_video
from atoken.errors import MissingExtraError
from atoken.io import Image, Mesh, Video
from eval.sources.entry import Entry, Listing

SEED = 1_000_003  # unless --seed says otherwise; no training uses it
SIDES, LENGTHS = (64, 80, 96, 112, 128), (8, 12, 16)  # of labelled images and videos, in turn
TEXTS, TEXT_SIDE = 200, 128  # of images with captions
CODED_IMAGES = 327  # which, with the photographs, have 100,000 tokens


def series(
    name: str, make: Callable[..., Any], sizes: Sequence[tuple[int, ...]], classes: Sequence[str], seed: int, many: int
) -> Listing:
    """The first ``many`` of a series, of the sizes and, if it has any, of the classes in turn.

    Sizes are (H, W) of images, (T, H, W) of videos, () of meshes.
    """
    entries = []
    for number in range(many):
        size = sizes[number % len(sizes)]
        key = f"{name}/{seed}/{number:05d}/{'x'.join(map(str, size))}".rstrip("/")
        label = class_of(number) if classes else None
        entries.append(Entry(key, partial(_drawn, make, seed, number, *size), label))
    return Listing(entries, tuple(classes))


images = partial(series, "image", make_image, [(256, 256)], (), many=256)
videos = partial(series, "video", make_video, [(16, 128, 128)], (), many=48)
assets = partial(series, "asset", make_asset, [()], (), many=24)
# Whole rounds of the 48 classes; few meshes, since with all its voxels one takes a CPU half a minute.
_SIZES = [(LENGTHS[number % 3], SIDES[number % 5], SIDES[number % 5]) for number in range(15)]
labelled_images = partial(
    series, "labelled-image", labelled.labelled_image, [(side, side) for side in SIDES], FIGURE_PROMPTS, many=384
)
labelled_videos = partial(series, "labelled-video", labelled.labelled_video, _SIZES, FIGURE_PROMPTS, many=192)
labelled_assets = partial(series, "labelled-asset", labelled.labelled_asset, [()], SOLID_PROMPTS, many=48)


def _drawn(make: Callable[..., Any], seed: int, number: int, *size: int) -> Image | Video | Mesh:
    drawn = make(seed, number, *size)
    if not size:
        return drawn.mesh
    return Image(drawn.frames[0]) if len(size) == 2 else Video(drawn.frames)


def captioned(name: str, make: Callable[..., Any], without: Sequence[str], seed: int) -> Listing:
    """The first images of a series whose captions differ from each other and from those of ``without``."""
    first: dict[str, int] = {}
    numbers = count()
    while len(first) < TEXTS:
        number = next(numbers)
        caption = make(seed, number, TEXT_SIDE, TEXT_SIDE).caption
        if caption not in without:
            first.setdefault(caption, number)
    plain = series(name, make, [(TEXT_SIDE, TEXT_SIDE)], (), seed, number + 1).entries
    return Listing([replace(plain[number], captions=(caption,)) for caption, number in first.items()])


# Captions of labelled images say more than the prompt. No training uses scenes, images of several figures.
captioned_images = partial(captioned, "labelled-image", labelled.labelled_image, FIGURE_PROMPTS)
scenes = partial(captioned, "scene", labelled.scene, ())


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


def _read(get: Callable[[], np.ndarray]) -> Image:
    return Image(np.ascontiguousarray(get()))


def coded_images(seed: int) -> Listing:
    """The photographs and procedural images, for the usage of codes. Raises: MissingExtraError."""
    return Listing([*photographs().entries, *images(seed, many=CODED_IMAGES).entries])
