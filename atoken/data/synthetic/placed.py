"""Figures whose captions say how many there are, where they are, and where they go.

Neighbours in a series have the same figures and differ in what the series is about, which has to be learned then: the
motion, the number, or the place. No two of 48 consecutive samples fit the caption of one of them. Figures never overlap
and stay inside, and no ground has the colour of a figure. Half of the captions name the ground. A sample depends on
(seed, index) and its size alone, as in ``procedural``.
"""

from __future__ import annotations

import numpy as np

from atoken.data.synthetic.labelled import FIGURE_PROMPTS, FIGURES, TINTS, WAYS, Figure, class_of, painted_on
from atoken.data.synthetic.natural import Painted
from atoken.data.synthetic.procedural import SyntheticFrames, generator, with_sensor_noise
from atoken.data.synthetic.textures import Surface, to_image
from atoken.data.synthetic.words import COLOURS, NUMBERS, article, name_of

_AHEAD = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y
SPEEDS = ("slowly", "fast")
MOTIONS = (*(f"moving {way} {speed}" for way in _AHEAD for speed in SPEEDS), "standing still")
MOST = 4  # figures of a counted image
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # where the first one is

_MOVING, _COUNTED, _PLACED = 8, 9, 10  # numbers of the random streams
# Shares of the shorter side, since images and videos have any size.
_FASTEST = 0.06  # a frame: in 12 frames from one edge to the other, and no farther in more frames
_SHARES = {"slowly": (0.32, 0.4), "fast": (0.9, 1.0)}  # of that
_MOVING_RADII, _COUNTED_RADII, _PLACED_RADII = (0.15, 0.2), (0.12, 0.19), (0.15, 0.2)
_APART = 2.7  # radii between two centres, at least
_TRIES = 64  # for positions of figures
_ASKEW = 0.3  # share of the distance that is across the relation, at most
_DISTINCT = 90  # RGB distance of a ground from a figure's colour, at least
_BARE = 0.5  # share of the captions that do not name the ground
_STEP = 29  # between offsets of the second figure; coprime to the number of offsets, so that all pairs come


def motion_of(index: int) -> tuple[int, int]:
    """The class of the figure of a moving sample, and the number of its motion in ``MOTIONS``."""
    return class_of(index // len(MOTIONS)), index % len(MOTIONS)


def count_of(index: int) -> tuple[int, int]:
    """The class of the figures of a counted sample, and how many there are."""
    return class_of(index // MOST), 1 + index % MOST


def relation_of(index: int) -> tuple[int, int, str]:
    """The classes of the two figures of a placed sample, never the same, and where the first is: of ``RELATIONS``."""
    pair, relation = divmod(index, len(RELATIONS))
    first = class_of(pair)
    return first, class_of(first + 1 + _STEP * pair % (WAYS - 1)), [*RELATIONS][relation]


def counted(label: int, count: int) -> str:
    """The words of a number of equal figures: "three blue stars"."""
    noun = FIGURE_PROMPTS[label].partition(" ")[2]
    return f"{NUMBERS[count]} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def moving_video(seed: int, index: int, frames: int, height: int, width: int) -> SyntheticFrames:
    """Video ``index`` of the series ``seed``: frames (frames, height, width, 3). "a red ring moving left slowly"."""
    rng, (label, motion) = generator(seed, index, _MOVING), motion_of(index)
    size, side, words = np.array((width, height)), min(height, width), MOTIONS[motion].split()
    radius = rng.uniform(*_MOVING_RADII) * side
    way, room = np.zeros(2), size - 2 * radius
    if words[0] == "moving":
        fastest = min(_FASTEST * side * (frames - 1), side - 2 * radius)
        way = np.array(_AHEAD[words[1]]) * fastest * rng.uniform(*_SHARES[words[2]])
    start = radius + np.maximum(-way, 0) + rng.random(2) * (room - np.abs(way))
    path = start + np.linspace(0, 1, frames)[:, None] * way
    figure = Figure(label, path, radius, rng.uniform(-np.pi, np.pi))
    return _shown(rng, [figure], (height, width), f"{FIGURE_PROMPTS[label]} {MOTIONS[motion]}", " over")


def counted_image(seed: int, index: int, height: int, width: int) -> SyntheticFrames:
    """Image ``index`` of the series ``seed``: frames (1, height, width, 3). "two red rings", of one size."""
    rng, (label, count) = generator(seed, index, _COUNTED), count_of(index)
    radius = rng.uniform(*_COUNTED_RADII) * min(height, width)
    tries = radius + rng.random((_TRIES, count, 1, 2)) * (np.array((width, height)) - 2 * radius)
    gaps = np.linalg.norm(tries - tries.swapaxes(1, 2), axis=-1) + np.diag(np.full(count, np.inf))
    nearest = gaps.min((1, 2))
    chosen = int(np.minimum(nearest, _APART * radius).argmax())  # the first that is far enough, or else the farthest
    radius = min(radius, float(nearest[chosen]) / _APART)
    angles = rng.uniform(-np.pi, np.pi, count)
    figures = [Figure(label, path, radius, angle) for path, angle in zip(tries[chosen], angles, strict=True)]
    return _shown(rng, figures, (height, width), counted(label, count), " on")


def placed_image(seed: int, index: int, height: int, width: int) -> SyntheticFrames:
    """Image ``index`` of the series ``seed``: frames (1, height, width, 3). "a red ring left of a blue star"."""
    rng, (first, second, relation) = generator(seed, index, _PLACED), relation_of(index)
    size, side = np.array((width, height)), min(height, width)
    radius, along = rng.uniform(*_PLACED_RADII) * side, np.array(RELATIONS[relation])
    distance = rng.uniform(_APART * radius, float(np.abs(along) @ size) - 2 * radius)
    across = np.clip(rng.uniform(-_ASKEW, _ASKEW) * distance, 2 * radius - side, side - 2 * radius)
    apart = distance * along + across * along[::-1]  # from the second figure to the first
    centre = radius + np.maximum(-apart, 0) + rng.random(2) * (size - 2 * radius - np.abs(apart))
    angles = rng.uniform(-np.pi, np.pi, 2)
    figures = [
        Figure(label, path[None], radius, angle)
        for label, path, angle in zip((first, second), (centre + apart, centre), angles, strict=True)
    ]
    caption = f"{FIGURE_PROMPTS[first]} {relation} {FIGURE_PROMPTS[second]}"
    return _shown(rng, figures, (height, width), caption, " on")


def _shown(
    rng: np.random.Generator, figures: list[Figure], size: tuple[int, int], caption: str, where: str
) -> SyntheticFrames:
    ground, words = _ground(Surface(rng, *size), [TINTS[figure.label // len(FIGURES)] for figure in figures])
    images = painted_on(rng, ground, figures)
    where = "" if rng.random() < _BARE else f"{where} {words}"
    return SyntheticFrames(with_sensor_noise(rng, images), caption + where)


def _ground(surface: Surface, tints: list[str]) -> Painted:
    """A plain, shaded or faintly textured ground that no figure is lost on, and whose colour has another name."""
    rng, taken = surface.rng, np.array([COLOURS[tint] for tint in tints], np.float32)
    distinct = [
        colour for colour in surface.colours
        if np.linalg.norm(taken - colour, axis=1).min() > _DISTINCT and name_of(colour) not in tints
    ]  # fmt: skip
    colour = distinct[rng.integers(len(distinct))] if distinct else np.array(COLOURS["black"], np.float32)
    change: np.ndarray = np.zeros((surface.height, surface.width), np.float32)
    match rng.integers(3):
        case 1:
            change = surface.ramp(rng.uniform(0, 2 * np.pi)) * (2 / surface.side)
        case 2:
            change = surface.pattern(surface.any_pattern())
    shade = change[..., None] * surface.swing(colour, rng.uniform(0.03, 0.12))
    return to_image(colour + shade), f"{article(name_of(colour))} ground"
