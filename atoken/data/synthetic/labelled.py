"""Labelled training data: one object of a class in each image, video or asset; and images of several objects.

A class is a colour and a shape; each modality has 48. The class of sample ``index`` is ``index`` modulo 48, so that 48
consecutive samples have every class once, and no two of them the same prompt. The shape changes from each sample to
the next: six in a row have all shapes, which are harder to distinguish than colours. The colours can be distinguished
after the tone curves of ``scenes.developer``, the shapes at any angle. Everything else varies: position, size, angle,
texture and background, whose colour may be close to that of the object. A sample depends on (seed, index) and its size
alone, as in ``procedural``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from atoken.data.synthetic import scenes, solids
from atoken.data.synthetic.artificial import drawing, figure_painter
from atoken.data.synthetic.natural import backdrop
from atoken.data.synthetic.procedural import SyntheticAsset, SyntheticFrames, generator, with_sensor_noise
from atoken.data.synthetic.textures import Surface
from atoken.data.synthetic.words import COLOURS, article

TINTS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
FIGURES = ("circle", "square", "triangle", "star", "ring", "cross")  # a rotated diamond is nearly a square
SOLIDS = ("ball", "box", "cone", "ring", "star", "cross")
FIGURE_PROMPTS = tuple(article(f"{tint} {figure}") for tint in TINTS for figure in FIGURES)  # by class
SOLID_PROMPTS = tuple(article(f"{tint} {solid}") for tint in TINTS for solid in SOLIDS)
WAYS = len(FIGURE_PROMPTS)  # classes of each modality

# Numbers of the random streams; ``procedural`` and ``placed`` have others.
_IMAGE, _VIDEO, _MESH, _SCENE, _GROUNDED = 3, 4, 5, 6, 7
_RADII = 0.28, 0.45  # of a figure, as a share of the shorter side
_BARE = 0.5  # share of the captions that are the prompt alone
_ALIKE = 48  # consecutive images of one class


def class_of(index: int) -> int:
    """The class of a labelled sample: the index of its prompt in ``FIGURE_PROMPTS`` or ``SOLID_PROMPTS``."""
    return index % WAYS


def grounded_class(index: int) -> int:
    """The class of a grounded sample."""
    return class_of(index // _ALIKE)


def labelled_image(seed: int, index: int, height: int, width: int) -> SyntheticFrames:
    """Image ``index`` of the series ``seed``, of one figure: frames (1, height, width, 3)."""
    return _shown(generator(seed, index, _IMAGE), class_of(index), 1, height, width)


def grounded_image(seed: int, index: int, height: int, width: int) -> SyntheticFrames:
    """As ``labelled_image``, but of the same class as its neighbours, which differ in their backgrounds alone.

    Among images of different classes, the class is enough to match a caption, and the background would not be learned.
    """
    return _shown(generator(seed, index, _GROUNDED), grounded_class(index), 1, height, width, bare=0)


def labelled_video(seed: int, index: int, frames: int, height: int, width: int) -> SyntheticFrames:
    """Video ``index`` of the series ``seed``, of one figure that moves: frames (frames, height, width, 3)."""
    return _shown(generator(seed, index, _VIDEO), class_of(index), frames, height, width)


def labelled_asset(seed: int, index: int) -> SyntheticAsset:
    """Mesh ``index`` of the series ``seed``, of one solid."""
    rng, (tint, shape) = generator(seed, index, _MESH), divmod(class_of(index), len(SOLIDS))
    solid, name = solids.shape(rng, SOLIDS[shape])
    paint = "plain" if rng.random() < 0.4 else "textured"  # a gradient would have a second colour
    surface = Surface(rng, solids.TEXTURE, solids.TEXTURE)
    mesh, word = solids.painted(surface, solid, _rgb(TINTS[tint]), paint)
    caption = article(" ".join(filter(None, [word if rng.random() > _BARE else "", TINTS[tint], name])))
    return SyntheticAsset(solids.centred(mesh, rng.uniform(0, 2 * np.pi)), caption)


def scene(seed: int, index: int, height: int, width: int) -> SyntheticFrames:
    """Image ``index`` of the series ``seed``: two or three columns of one to three figures.

    They have all figures and colours. A caption: "a red ring left of two blue stars on ...".
    """
    rng, caption = generator(seed, index, _SCENE), ""
    while " left of " not in caption:  # a drawing of one column
        surface = Surface(rng, height, width)
        canvas, caption = drawing(surface)
    return SyntheticFrames(with_sensor_noise(rng, scenes.developer(surface)(canvas)[None]), caption)


def _shown(
    rng: np.random.Generator, label: int, frames: int, height: int, width: int, bare: float = _BARE
) -> SyntheticFrames:
    """A figure on a background; in a video it moves in a straight line. bare: share of captions without background."""
    side = min(height, width)
    ground, words = backdrop(Surface(rng, height, width))
    radius, angle = rng.uniform(*_RADII) * side, rng.uniform(-np.pi, np.pi)
    start, end = radius + rng.random((2, 2)) * (np.array((width, height)) - 2 * radius)
    path = start + np.linspace(0, 1, frames)[:, None] * (end - start)
    images = painted_on(rng, ground, [Figure(label, path, radius, angle)])
    where = "" if rng.random() < bare else f"{' moving over' if frames > 1 else ' on'} {words}"
    return SyntheticFrames(with_sensor_noise(rng, images), FIGURE_PROMPTS[label] + where)


@dataclass(frozen=True)
class Figure:
    """A figure of the class ``label``: ``path`` (T, 2), its centre (x, y) in each frame, and ``radius`` in pixels."""

    label: int
    path: np.ndarray
    radius: float
    angle: float  # radians


def painted_on(rng: np.random.Generator, ground: Image.Image, figures: Sequence[Figure]) -> np.ndarray:
    """The figures on a ground that stays still, as one camera sees them: (T, H, W, 3) uint8."""
    surface = Surface(np.random.default_rng(int(rng.integers(2**32))), ground.height, ground.width)  # of the figures
    painters = []
    for figure in figures:
        tint, shape = divmod(figure.label, len(FIGURES))
        painters.append(figure_painter(surface, FIGURES[shape], _rgb(TINTS[tint])))
    develop, images = scenes.developer(surface), []
    for frame in range(len(figures[0].path)):
        canvas = ground.copy()
        for paint, figure in zip(painters, figures, strict=True):
            paint(canvas, figure.path[frame], figure.radius, figure.angle)
        images.append(develop(canvas))
    return np.stack(images)


def _rgb(tint: str) -> np.ndarray:
    return np.array(COLOURS[tint], np.float32)
