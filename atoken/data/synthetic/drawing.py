"""Shapes: outlines of leaves and figures, anti-aliased masks of them, and curves that branch.

An outline is an (N, 2) array of (x, y) corners. Shapes are drawn enlarged and then reduced, which smooths their edges.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from atoken.data.synthetic.textures import Surface, to_image

FIGURES = ("circle", "square", "triangle", "star", "diamond", "ring", "cross")
Stencil = tuple[Image.Image, tuple[int, int]]  # a mask, and the (left, top) where it is pasted
_CORNERS = 24  # of a leaf; a multiple of 3, 4, 6 and 8, so that polygons keep their corners


def power_law_sizes(rng: np.random.Generator, count: int, smallest: float, largest: float) -> np.ndarray:
    """Radii (count,) with density r ** -3, with which dead leaves are scale-invariant (Lee, Mumford & Huang 2001)."""
    low, high = largest**-2.0, max(smallest, 1e-3) ** -2.0
    return (low + (high - low) * rng.random(count)) ** -0.5


def leaf_outlines(rng: np.random.Generator, radii: np.ndarray, thin: float = 0.4, order: float = 0.0) -> np.ndarray:
    """Discs, ellipses, polygons, boxes, sticks and blobs around (0, 0): (count, N, 2) pixels.

    thin: the share of flattened leaves. order: 0 gives each a random angle, 1 gives all the same angle.
    """
    count = len(radii)
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)[None]
    sides = rng.choice((3, 4, 4, 6, 8), (count, 1))
    wedge = 2 * np.pi / sides
    polygon = np.cos(wedge / 2) / np.cos(angle % wedge - wedge / 2)
    waves = rng.normal(0, 0.12, (4, count, 1)) + 0j
    blob = 1 + sum(
        (np.exp(1j * (k + 2) * angle + 2j * np.pi * rng.random((count, 1))) * waves[k]).real for k in range(4)
    )
    shape = rng.integers(0, 3, (count, 1))
    radius = np.choose(shape, (np.ones_like(polygon), polygon, blob))
    squash = np.where(rng.random((count, 1)) < thin, np.exp(rng.uniform(-2.2, 0, (count, 1))), 1.0)
    tilt = rng.uniform(0, 2 * np.pi) + (1 - order) * rng.uniform(-np.pi, np.pi, (count, 1))
    x, y = radius * np.cos(angle), radius * np.sin(angle) * squash
    points = np.stack([x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)], -1)
    return points * radii[:, None, None]


def figure_outline(name: str) -> np.ndarray:
    """Outline (N, 2) of one of the ``FIGURES`` with radius 1 around (0, 0); of a ring its outer circle."""
    corners = {"triangle": 3, "square": 4, "diamond": 4, "star": 10, "cross": 12}.get(name, 48)
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    radius = np.ones(corners)
    match name:
        case "square":
            angle = angle + np.pi / 4
        case "star":
            radius[1::2] = 0.4
        case "diamond":
            radius[1::2] = 0.65
        case "cross":  # four arms a third as wide as the cross
            arm = np.array([(-1, -3), (1, -3), (1, -1)]) / 3.2
            return np.concatenate([arm @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))])
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def stencil(points: np.ndarray, size: tuple[int, int], soft: float = 0.0) -> Stencil | None:
    """The stencil of a polygon in an image of ``size`` (width, height); None if it is outside.

    soft: the width of the edge's blur in pixels.
    """
    pad = int(2 * soft) + 1
    left, top = (max(int(v) - pad, 0) for v in np.floor(points.min(0)))
    right, bottom = (min(int(v) + pad, limit) for v, limit in zip(np.ceil(points.max(0)), size, strict=True))
    if right <= left or bottom <= top:
        return None
    fine = 4 if max(right - left, bottom - top) < 64 else 2
    mask = Image.new("L", ((right - left) * fine, (bottom - top) * fine))
    ImageDraw.Draw(mask).polygon(((points - (left, top)) * fine).ravel().tolist(), fill=255)
    mask = mask.reduce(fine)
    return (mask.filter(ImageFilter.BoxBlur(soft)) if soft else mask), (left, top)


def paste_leaf(canvas: Image.Image, surface: Surface, points: np.ndarray, colour: np.ndarray, soft: float) -> None:
    """Paint a textured leaf over the canvas, its edge ``soft`` pixels wide."""
    if placed := stencil(points, canvas.size, soft):
        mask, corner = placed
        canvas.paste(to_image(surface.tile(colour, mask.height, mask.width)), corner, mask)


def mosaic(surface: Surface, count: int, smallest: float, largest: float) -> np.ndarray:
    """Dead leaves: ``count`` overlapping leaves of power-law radii over a pattern, (H, W, 3) float32 in about 0..255.

    Each leaf has its own colour, pattern sheet, contrast and slope of light. In some images most leaves are blades
    that point one way, as grass does. The leaves are drawn twice: in colour (enlarged, for smooth edges) and as
    numbers, by which the properties of each leaf are looked up.
    """
    rng, (h, w) = surface.rng, (surface.height, surface.width)
    centres = rng.uniform(-0.05, 1.05, (count, 1, 2)) * (w, h)
    thin, order = (0.95, rng.uniform(0.7, 1)) if rng.random() < 0.2 else (0.55, 0.0)
    outlines = leaf_outlines(rng, power_law_sizes(rng, count, smallest, largest), thin, order) + centres
    tints = surface.colours[rng.integers(0, len(surface.colours), 256)] * rng.uniform(0.7, 1.3, (256, 1))
    fills = np.clip(tints, 0, 255).astype(np.uint8)
    colours, numbers = Image.new("RGB", (2 * w, 2 * h), tuple(fills[0].tolist())), Image.new("L", (w, h))
    draw_colour, draw_number = ImageDraw.Draw(colours), ImageDraw.Draw(numbers)
    for number, flat in enumerate(outlines.reshape(count, -1)):
        leaf = 1 + number % 255
        draw_colour.polygon((2 * flat).tolist(), fill=tuple(fills[leaf].tolist()))
        draw_number.polygon(flat.tolist(), fill=leaf)
    return _textured(surface, np.asarray(colours.reduce(2), np.float32), np.asarray(numbers))


def _textured(surface: Surface, rgb: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    rng = surface.rng
    sheet, contrast = rng.integers(0, 4, 256), np.exp(rng.uniform(np.log(0.02), np.log(0.5), 256)).astype(np.float32)
    slope = (rng.normal(0, 1.1, 256) / surface.side).astype(np.float32)
    shade = np.choose(sheet[numbers], [pattern() for pattern in surface.sheets]) * contrast[numbers]
    shade += slope[numbers] * surface.ramp(rng.uniform(0, 2 * np.pi))
    return rgb * (1 + shade[..., None])


def branch(
    rng: np.random.Generator, start: np.ndarray, angle: float, length: float, width: float
) -> list[tuple[np.ndarray, float]]:
    """A winding curve that splits into thinner ones, as vessels do: curves of ((N, 2) points, width in pixels)."""
    steps = max(int(length / 4), 2)
    headings = angle + np.cumsum(rng.normal(0, 0.16, steps))
    moves = np.stack([np.cos(headings), np.sin(headings)], -1) * (length / steps)
    points = np.concatenate([start[None], start + np.cumsum(moves, 0)])
    curves = [(points, width)]
    if width > 0.6:
        for side in (-1, 1):
            heading = float(headings[-1]) + side * rng.uniform(0.2, 0.7)
            curves += branch(rng, points[-1], heading, length * rng.uniform(0.6, 0.9), width * rng.uniform(0.55, 0.8))
    return curves


def draw_curves(
    canvas: Image.Image, curves: list[tuple[np.ndarray, float]], colour: np.ndarray, strength: float
) -> None:
    """Draw anti-aliased curves, each ((N, 2) points, width in pixels), over the canvas with opacity ``strength``."""
    fine = 2
    mask = Image.new("L", (canvas.width * fine, canvas.height * fine))
    draw = ImageDraw.Draw(mask)
    for points, width in curves:
        opacity = int(255 * strength * min(1.0, fine * width))
        draw.line((points * fine).ravel().tolist(), opacity, max(1, round(width * fine)), joint="curve")
    canvas.paste(tuple(int(c) for c in colour), (0, 0), mask.reduce(fine))


def ring_mask(mask: Image.Image, share: float) -> Image.Image:
    """The mask with a hole in its middle, of the same shape and ``share`` of its size."""
    width, height = max(1, int(mask.width * share)), max(1, int(mask.height * share))
    hole = Image.new("L", mask.size)
    hole.paste(mask.resize((width, height)), ((mask.width - width) // 2, (mask.height - height) // 2))
    return ImageChops.subtract(mask, hole)
