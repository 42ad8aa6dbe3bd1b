"""Images of figures with the class of every pixel, for the segmentation probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from atoken.data.synthetic import scenes
from atoken.data.synthetic.artificial import figure_painter
from atoken.data.synthetic.labelled import FIGURE_PROMPTS, FIGURES, TINTS, WAYS
from atoken.data.synthetic.natural import backdrop
from atoken.data.synthetic.procedural import generator, with_sensor_noise
from atoken.data.synthetic.textures import Surface
from atoken.data.synthetic.words import COLOURS

CLASSES = [tuple(prompt.split()[-2:]) for prompt in FIGURE_PROMPTS]  # (tint, figure) of each class
IGNORED = -1  # the answer of a pixel that does not count
SETS = {  # what is asked about a pixel, as answers by class of ``Masked``; shape and colour only of figures
    "figure": np.array([0] + [1] * WAYS),
    "shape": np.array([IGNORED, *(FIGURES.index(figure) for _, figure in CLASSES)]),
    "colour": np.array([IGNORED, *(TINTS.index(tint) for tint, _ in CLASSES)]),
}

_MASKED = 7  # keeps the random stream apart from those of ``labelled`` and ``procedural``
_MOST = 3  # figures of an image
_RADII = 0.2, 0.4  # of a figure, as a share of the shorter side


@dataclass(frozen=True)
class Masked:
    """``pixels`` (H, W, 3) uint8 and ``classes`` (H, W) int64: 0 is background, else 1 + index in FIGURE_PROMPTS."""

    pixels: np.ndarray
    classes: np.ndarray


def masked_images(seed: int, count: int, side: int) -> Iterator[Masked]:
    """The first images of the series ``seed``, ``side`` pixels square."""
    return (masked_image(seed, index, side, side) for index in range(count))


def masked_image(seed: int, index: int, height: int, width: int) -> Masked:
    """Image ``index`` of the series ``seed``: one to three figures of different classes, later ones in front.

    Drawn as in ``atoken.data.synthetic.labelled``; a pixel belongs to a figure that covers half of it or more.
    """
    rng = generator(seed, index, _MASKED)
    surface, side = Surface(rng, height, width), min(height, width)
    canvas, _ = backdrop(surface)
    classes = np.zeros((height, width), np.int64)
    for label in rng.choice(WAYS, rng.integers(1, _MOST + 1), replace=False):
        tint, shape = CLASSES[label]
        radius, turn = rng.uniform(*_RADII) * side, rng.uniform(-np.pi, np.pi)
        centre = radius + rng.random(2) * (np.array((width, height)) - 2 * radius)
        lay = figure_painter(surface, shape, np.array(COLOURS[tint], np.float32))
        classes[opacity(lay, height, width, centre, radius, turn) >= 0.5] = 1 + label
        lay(canvas, centre, radius, turn)
    developed = np.asarray(scenes.developer(surface)(canvas))  # changes light and sharpness, not positions
    return Masked(with_sensor_noise(rng, developed[None])[0], classes)


def opacity(
    lay: Callable[..., None], height: int, width: int, centre: np.ndarray, radius: float, turn: float
) -> np.ndarray:
    """(H, W): how much of the background a figure of ``figure_painter`` covers there, 0 to 1.

    The same figure is painted on black and on white: what differs is background (Smith & Blinn 1996).
    """
    painted = []
    for ground in (0, 255):
        canvas = Image.new("RGB", (width, height), (ground,) * 3)
        lay(canvas, centre, radius, turn)
        painted.append(np.asarray(canvas, np.float64))
    return 1 - (painted[1] - painted[0]).mean(-1) / 255
