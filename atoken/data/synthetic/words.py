"""Words of captions: names of colours, numbers, the article."""

from __future__ import annotations

import re

import numpy as np

COLOURS = {
    "black": (15, 15, 15),
    "grey": (125, 125, 125),
    "white": (240, 240, 240),
    "red": (205, 35, 35),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 50),
    "green": (50, 150, 55),
    "blue": (40, 75, 195),
    "purple": (125, 50, 155),
    "pink": (240, 150, 185),
    "brown": (110, 70, 40),
    "beige": (215, 190, 150),
    "teal": (30, 140, 145),
    "olive": (115, 125, 65),
    "lavender": (165, 150, 205),
    "maroon": (100, 30, 40),
    "navy": (25, 30, 85),
}
NUMBERS = ("no", "one", "two", "three", "four", "five")
_AS_YOU = re.compile("u[^aeiou][aeiou]")  # begins as "you" does
_GREYS = ("black", "grey", "white")
_CHROMATIC = [name for name in COLOURS if name not in _GREYS]


def _appearance(rgb: np.ndarray) -> np.ndarray:
    """RGB colours (..., 3) in 0..255 as points (..., 5) whose distance is about the perceived difference."""
    lightness, hue = rgb.mean(-1, keepdims=True), rgb - rgb.mean(-1, keepdims=True)
    saturation = np.ptp(rgb, -1, keepdims=True) / (rgb.max(-1, keepdims=True) + 1)
    direction = hue / (np.linalg.norm(hue, axis=-1, keepdims=True) + 1)
    return np.concatenate([direction, lightness / 255, saturation / 2], -1)


_APPEARANCES = _appearance(np.array([COLOURS[name] for name in _CHROMATIC], np.float64))


def name_of(colour: np.ndarray) -> str:
    """The name of the most similar of the ``COLOURS`` to an RGB colour (3,) in 0..255."""
    rgb = np.asarray(colour, np.float64)
    if rgb.max() < 45 or np.ptp(rgb) < 10 + 0.12 * rgb.max():
        return _GREYS[int(np.digitize(rgb.mean(), (50, 200)))]
    return _CHROMATIC[int(np.linalg.norm(_APPEARANCES - _appearance(rgb), axis=-1).argmin())]


def article(noun: str) -> str:
    """The noun with "a" or "an" before it: an umbrella, a unit."""
    return f"{'an' if noun[0] in 'aeiou' and not _AS_YOU.match(noun) else 'a'} {noun}"
