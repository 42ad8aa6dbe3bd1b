"""Families of images of man-made things: walls, wires, round objects, drawn figures, text and flat colour.

A family paints an image of its surface's size and describes it in words.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from atoken.data.synthetic.drawing import (
    FIGURES,
    Stencil,
    draw_curves,
    figure_outline,
    leaf_outlines,
    paste_leaf,
    power_law_sizes,
    ring_mask,
    stencil,
)
from atoken.data.synthetic.natural import Painted, backdrop
from atoken.data.synthetic.textures import Surface, to_image
from atoken.data.synthetic.words import COLOURS, NUMBERS, article, name_of

_BRICK = 8  # pixels a side of a brick before it is stretched to its final size
_LETTERS = list("abcdefghijklmnopqrstuvwxyz   0123456789ABCDEFGHKMNRST.,-")


def wall(surface: Surface) -> Painted:
    """Bricks or windows in rows, level or slightly skewed."""
    rng, (h, w) = surface.rng, (surface.height, surface.width)
    rows, columns, colours = int(rng.integers(3, 40)), int(rng.integers(3, 24)), surface.colours[: rng.integers(1, 9)]
    bricks = to_image(_bricks(surface, 2 * rows, 2 * columns, colours))  # twice what is seen, so that it may be skewed
    across, down = columns * _BRICK / (2 * w), rows * _BRICK / (2 * h)
    skew, lean = (0.0, 0.0) if rng.random() < 0.5 else rng.uniform(-0.2, 0.2, 2)
    affine = (across, skew * across, 0.2 * bricks.width, lean * down, down, 0.2 * bricks.height)
    enlarged = bricks.transform((2 * w, 2 * h), Image.Transform.AFFINE, affine, Image.Resampling.NEAREST)
    shade = 1 + surface.contrast() * surface.pattern("stone-like")
    return to_image(np.asarray(enlarged.reduce(2)) * shade[..., None]), f"{article(name_of(colours[0]))} wall of bricks"


def _bricks(surface: Surface, rows: int, columns: int, colours: np.ndarray) -> np.ndarray:
    rng, joint = surface.rng, surface.colour()
    tints = colours[rng.integers(0, len(colours), (rows, columns))] * rng.uniform(0.8, 1.2, (rows, columns, 1))
    bricks = np.kron(tints, np.ones((_BRICK, _BRICK, 1)))
    bricks[:: _BRICK * int(rng.integers(1, 3))] = joint
    bricks[:, :: _BRICK * int(rng.integers(1, 3))] = joint
    if rng.random() < 0.5:  # every other row is moved by half a brick
        layers = bricks.reshape(rows, _BRICK, -1, 3)
        layers[1::2] = np.roll(layers[1::2], _BRICK // 2, 2)
    return bricks


def wires(surface: Surface) -> Painted:
    """Thin straight, bent and parallel lines with a few boxes, as in machines."""
    rng, side = surface.rng, surface.side
    canvas, ground = backdrop(surface)
    for points in leaf_outlines(rng, power_law_sizes(rng, int(rng.integers(0, 6)), 0.05 * side, 0.3 * side)):
        paste_leaf(canvas, surface, points + rng.random(2) * canvas.size, surface.colour(), 0.4)
    for _ in range(int(rng.integers(2, 7))):
        angle, start = rng.uniform(0, 2 * np.pi), rng.random(2) * canvas.size
        headings = angle + rng.normal(0, 0.3) * np.linspace(-1, 1, 16)
        path = start + np.cumsum(np.stack([np.cos(headings), np.sin(headings)], -1), 0) * rng.uniform(0.02, 0.08) * side
        gap = np.array((-np.sin(angle), np.cos(angle))) * rng.uniform(1.5, 14)
        bundle = [(path + k * gap, float(rng.uniform(0.4, 2.5))) for k in range(int(rng.integers(1, 8)))]
        draw_curves(canvas, bundle, surface.colour(), rng.uniform(0.5, 1))
    return canvas, f"thin wires and lines over {ground}"


def still_life(surface: Surface) -> Painted:
    """Shaded balls and plates with a highlight and soft shadows."""
    rng, side, colour = surface.rng, surface.side, surface.colour()
    canvas, ground = backdrop(surface)
    count, bearing = int(rng.integers(1, 6)), rng.uniform(0, 2 * np.pi)
    sun = np.array((np.cos(bearing), np.sin(bearing)), np.float32)
    for _ in range(count):
        radius, centre, colour = rng.uniform(0.08, 0.32) * side, rng.random(2) * canvas.size, surface.colour()
        disc = figure_outline("circle") * radius * (1, rng.uniform(0.35, 1))
        if shadow := stencil(disc + centre - 0.3 * radius * sun, canvas.size, 0.2 * radius):
            canvas.paste((8, 8, 8), shadow[1], shadow[0].point(lambda opacity: opacity * 0.6))
        if placed := stencil(disc + centre, canvas.size, rng.uniform(0, 1)):
            canvas.paste(_ball(surface, placed, centre, radius, sun, colour), placed[1], placed[0])
    return canvas, f"{NUMBERS[count]} shaded round object{'s' * (count > 1)}, {name_of(colour)} in front, on {ground}"


def _ball(
    surface: Surface, placed: Stencil, centre: np.ndarray, radius: float, sun: np.ndarray, colour: np.ndarray
) -> Image.Image:
    mask, (left, top) = placed
    x = (np.arange(left, left + mask.width, dtype=np.float32)[None] - np.float32(centre[0])) / np.float32(radius)
    y = (np.arange(top, top + mask.height, dtype=np.float32)[:, None] - np.float32(centre[1])) / np.float32(radius)
    light = 0.75 + 0.5 * (x * sun[0] + y * sun[1]) - 0.25 * (x * x + y * y)
    spread = np.float32(surface.rng.uniform(0.003, 0.1))
    shine = np.exp(-((x - 0.5 * sun[0]) ** 2 + (y - 0.5 * sun[1]) ** 2) / spread)
    rgb = surface.tile(colour, mask.height, mask.width) * light[..., None]
    return to_image(rgb + np.float32(surface.rng.uniform(0, 220)) * shine[..., None])


def drawing(surface: Surface) -> Painted:
    """Saturated figures in columns of equal ones, so that the caption can say which is left of which."""
    rng, (h, w) = surface.rng, (surface.height, surface.width)
    canvas, ground = backdrop(surface)
    columns = int(rng.integers(1, 4))
    slot, phrases = w / columns, []
    for column in range(columns):
        figure, tint, count = str(rng.choice(FIGURES)), str(rng.choice(list(COLOURS))), int(rng.integers(1, 4))
        radius = min(slot, h / count) * rng.uniform(0.25, 0.48)
        for row in range(count):
            centre = np.array((slot * (column + 0.5), h * (row + 0.5) / count)) + rng.normal(0, 0.04, 2) * radius
            figure_painter(surface, figure, np.array(COLOURS[tint], np.float32))(canvas, centre, radius)
        several = f"{NUMBERS[count]} {tint} {figure}{'es' if figure == 'cross' else 's'}"
        phrases.append(article(f"{tint} {figure}") if count == 1 else several)
    return canvas, " left of ".join(phrases) + f" on {ground}"


def figure_painter(surface: Surface, figure: str, colour: np.ndarray) -> Callable[..., None]:
    """A function that paints one of the ``FIGURES``, plain or textured, some with an outline, always the same look.

    Its arguments: canvas, centre (x, y) and radius in pixels, angle in radians.
    """
    rng = surface.rng
    fill = None if rng.random() < 0.6 else surface.paint(colour)
    corners = figure_outline(figure)
    edge = float(rng.uniform(0.8, 3)) if rng.random() < 0.3 and figure != "ring" else 0.0

    def paint(canvas: Image.Image, centre: np.ndarray, radius: float, angle: float = 0.0) -> None:
        cos, sin = np.cos(angle), np.sin(angle)
        outline = corners @ np.array([[cos, sin], [-sin, cos]]) * radius + centre
        if (placed := stencil(outline, canvas.size)) is None:
            return
        mask = ring_mask(placed[0], 0.55) if figure == "ring" else placed[0]
        inside = to_image(fill(mask.height, mask.width)) if fill else tuple(colour.astype(int).tolist())
        canvas.paste(inside, placed[1], mask)
        if edge:
            draw_curves(canvas, [(np.concatenate([outline, outline[:1]]), edge)], np.array((10, 10, 10)), 1.0)

    return paint


def text(surface: Surface) -> Painted:
    """Lines of letters and digits, some of them rotated."""
    rng = surface.rng
    canvas, ground = backdrop(surface)
    size = float(np.exp(rng.uniform(np.log(7), np.log(max(8.0, 0.25 * surface.side)))))
    count = min(int(rng.integers(1, 12)), int(canvas.height / size) + 1)
    page = "\n".join("".join(rng.choice(_LETTERS, rng.integers(3, 40))) for _ in range(count))
    mask = Image.new("L", canvas.size)
    corner = tuple((rng.uniform(0, 0.25, 2) * canvas.size).tolist())
    ImageDraw.Draw(mask).multiline_text(corner, page, 255, ImageFont.load_default(size), spacing=0.3 * size)
    if rng.random() < 0.4:
        mask = mask.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR)
    ink = np.array((10, 10, 10)) if rng.random() < 0.4 else surface.colour().astype(int)
    canvas.paste(tuple(ink.tolist()), (0, 0), mask)
    return canvas, f"{'small' if size < 16 else 'large'} {name_of(ink)} text on {ground}"


def flat(surface: Surface) -> Painted:
    """One colour and nothing else."""
    colour = surface.rng.integers(0, 256, 3)
    canvas = Image.new("RGB", (surface.width, surface.height), tuple(colour.tolist()))
    return canvas, f"a plain {name_of(colour)} picture"  # captions keep the words of the recorded series
