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

from atoken.data.synthetic import labelled, placed
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


# Captions of labelled images say more than the prompt. Scenes have shapes, colours and grounds that ``placed`` lacks.
captioned_images = partial(captioned, "labelled-image", labelled.labelled_image, FIGURE_PROMPTS)
scenes = partial(captioned, "scene", labelled.scene, ())


def asked(
    name: str,
    make: Callable[..., Any],
    sizes: Sequence[tuple[int, ...]],
    choose: Callable[[int], tuple[int, Sequence[str]] | None],
    seed: int,
    many: int,
) -> Listing:
    """Of the first ``many`` of a series those with a choice, from ``choose``: which caption is right, and all."""
    plain = series(name, make, sizes, (), seed, many).entries
    chosen = [(entry, choice) for number, entry in enumerate(plain) if (choice := choose(number))]
    return Listing([replace(entry, label=label, captions=tuple(captions)) for entry, (label, captions) in chosen])


def _motion(number: int, kept: Callable[[str, str], bool]) -> tuple[int, list[str]] | None:
    """The captions of the own motion and of those that are ``kept`` beside it; None where it would be alone."""
    label, own = placed.motion_of(number)
    found = [motion for motion in placed.MOTIONS if kept(motion, placed.MOTIONS[own])]
    captions = [f"{FIGURE_PROMPTS[label]} {motion}" for motion in found]
    return (found.index(placed.MOTIONS[own]), captions) if len(found) > 1 else None


def _count(number: int) -> tuple[int, list[str]]:
    label, count = placed.count_of(number)
    return count - 1, [placed.counted(label, each) for each in range(1, placed.MOST + 1)]


def _relation(number: int) -> tuple[int, list[str]]:
    first, second, own = placed.relation_of(number)
    captions = [f"{FIGURE_PROMPTS[first]} {relation} {FIGURE_PROMPTS[second]}" for relation in placed.RELATIONS]
    return [*placed.RELATIONS].index(own), captions


def _order(number: int) -> tuple[int, list[str]]:
    first, second, own = placed.relation_of(number)
    return 0, [f"{FIGURE_PROMPTS[a]} {own} {FIGURE_PROMPTS[b]}" for a, b in ((first, second), (second, first))]


# Whole rounds of motions, numbers and places; each motion comes in every size.
_MOVING_SIZES = [_SIZES[number // len(placed.MOTIONS)] for number in range(len(_SIZES) * len(placed.MOTIONS))]
_MOVING = partial(asked, "moving", placed.moving_video, _MOVING_SIZES, many=216)
_COUNTED = partial(asked, "counted", placed.counted_image, [(side, side) for side in SIDES], many=384)
_PLACED = partial(asked, "placed", placed.placed_image, [(side, side) for side in SIDES], many=384)
motions = partial(_MOVING, partial(_motion, kept=lambda _, own: True))
directions = partial(_MOVING, partial(_motion, kept=lambda one, own: one.split()[2:] == own.split()[2:]))
speeds = partial(_MOVING, partial(_motion, kept=lambda one, own: one.split()[:2] == own.split()[:2]))
counts = partial(_COUNTED, _count)
relations = partial(_PLACED, _relation)
orders = partial(_PLACED, _order)


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
