"""The families of images with their shares, and the effects of a camera."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from atoken.data.synthetic import artificial, natural
from atoken.data.synthetic.natural import Painted
from atoken.data.synthetic.textures import Surface, to_bytes

Family = Callable[[Surface], Painted]

FAMILIES: tuple[tuple[Family, float], ...] = (  # and the share of the images that each paints
    (natural.leaves, 0.36),
    (natural.fabric, 0.10),
    (natural.clouds, 0.08),
    (natural.night, 0.06),
    (natural.vessels, 0.06),
    (natural.smooth, 0.05),
    (artificial.wires, 0.07),
    (artificial.still_life, 0.07),
    (artificial.drawing, 0.05),
    (artificial.text, 0.05),
    (artificial.wall, 0.04),
    (artificial.flat, 0.01),
)


def choose(rng: np.random.Generator) -> Family:
    """One of the families, drawn by their shares."""
    return FAMILIES[int(rng.choice(len(FAMILIES), p=[share for _, share in FAMILIES]))][0]


def developer(surface: Surface) -> Callable[[Image.Image], np.ndarray]:
    """A function from a canvas to (H, W, 3) uint8 with the effects of a camera, always the same ones.

    Most images get some of: a slight blur, a tone curve, a slope of light.
    """
    rng = surface.rng
    blur = ImageFilter.BoxBlur(rng.uniform(0.1, 0.9)) if rng.random() < 0.55 else None
    curve = _curve(rng) if rng.random() < 0.6 else None
    light = _light(surface) if rng.random() < 0.4 else None

    def developed(canvas: Image.Image) -> np.ndarray:
        pixels = np.array(canvas.filter(blur) if blur else canvas)
        pixels = pixels if curve is None else curve[pixels]
        return pixels if light is None else to_bytes(pixels * light)

    return developed


def _curve(rng: np.random.Generator) -> np.ndarray:
    curve = (np.arange(256) / 255.0) ** np.exp(rng.normal(0, 0.25)) * rng.uniform(215, 265)
    return np.clip(curve, 0, 255).astype(np.uint8)


def _light(surface: Surface) -> np.ndarray:
    slope = surface.ramp(surface.rng.uniform(0, 2 * np.pi))
    return 1 + (slope * np.float32(surface.rng.uniform(0, 0.9) / surface.side))[..., None]
