"""Families of images of natural things: leaves, clouds, textures, skies, vessels; and backgrounds to paint on.

A family paints an image of its surface's size and describes it in words.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from atoken.data.synthetic.drawing import (
    branch,
    draw_curves,
    figure_outline,
    leaf_outlines,
    mosaic,
    paste_leaf,
    power_law_sizes,
    stencil,
)
from atoken.data.synthetic.textures import ROSY, WARM, Surface, to_image
from atoken.data.synthetic.words import article, name_of

Painted = tuple[Image.Image, str]


def backdrop(surface: Surface) -> Painted:
    """A background: a flat colour, a gradient, a texture or blurred leaves."""
    rng, colour, side = surface.rng, surface.colour(), surface.side
    match rng.choice(4, p=(0.15, 0.25, 0.4, 0.2)):
        case 0:
            plain = np.broadcast_to(colour, (surface.height, surface.width, 3))
            return to_image(plain), f"a plain {name_of(colour)} background"
        case 1:
            return gradient(surface)
        case 2:
            pattern = surface.any_pattern()
            return to_image(surface.sheet(pattern, colour)), f"{article(name_of(colour))} {pattern} texture"
    sharp = to_image(mosaic(surface, 40, 0.04 * side, 0.4 * side))
    return sharp.filter(ImageFilter.BoxBlur(rng.uniform(0.01, 0.04) * side)), "a blurred background"


def gradient(surface: Surface) -> Painted:
    """A smooth transition from one colour to another."""
    start, end = surface.colour(), surface.colour()
    ramp = surface.ramp(surface.rng.uniform(0, 2 * np.pi))
    share = 0.5 + ramp[..., None] / max(float(np.ptp(ramp)), 1.0)
    first, last = name_of(start), name_of(end)
    words = article(first) if first == last else f"{article(first)} to {last}"
    return to_image(start + (end - start) * share), f"{words} gradient"


def leaves(surface: Surface) -> Painted:
    """Dead leaves: many occluding leaves of power-law sizes, some with soft larger leaves in front."""
    rng, side = surface.rng, surface.side
    count = int(np.exp(rng.uniform(np.log(15), np.log(350))))
    smallest = np.exp(rng.uniform(np.log(1.5), np.log(0.06 * side + 2)))
    canvas = to_image(mosaic(surface, count, smallest, rng.uniform(0.15, 0.6) * side + smallest))
    tone = name_of(np.asarray(canvas).mean((0, 1)))
    words = f"{'a few' if count < 40 else 'many'} overlapping shapes, mostly {tone}"
    if rng.random() < 0.35:
        canvas, words = canvas.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 0.025 * side + 0.5))), words + ", blurred"
    front = int(rng.integers(0, 9))
    soft = rng.uniform(0, 1.2) if rng.random() < 0.7 else rng.uniform(1.2, 5)
    for points in leaf_outlines(rng, power_law_sizes(rng, front, 0.06 * side, 0.45 * side)):
        paste_leaf(canvas, surface, points + rng.random(2) * canvas.size, surface.colour(), soft)
    return canvas, words + (f", behind {'sharp' if soft < 1.2 else 'soft'} larger ones" if front else "")


def clouds(surface: Surface) -> Painted:
    """Coloured 1/f noise, luminance much stronger than chroma."""
    rng, colour, exponent = surface.rng, surface.colour(), surface.rng.uniform(1.4, 3.4)
    luma = surface.field(exponent) * rng.uniform(12, 60)
    if rng.random() < 0.5:
        luma = luma + surface.ramp(rng.uniform(0, 2 * np.pi)) * (rng.uniform(0, 160) / surface.side)
    warm, rosy = surface.field(exponent + 0.3), surface.field(exponent + 0.3)
    rgb = colour + luma[..., None] * (0.7 + 0.3 * colour / max(float(colour.mean()), 1.0))
    rgb = rgb + warm[..., None] * (rng.uniform(0, 16) * WARM) + rosy[..., None] * (rng.uniform(0, 7) * ROSY)
    looks = "grainy" if exponent < 2 else "soft" if exponent < 2.8 else "smooth"
    return to_image(rgb), f"{looks} {name_of(colour)} clouds"


def fabric(surface: Surface) -> Painted:
    """One texture, or two that meet at a ragged edge."""
    rng, colour, pattern = surface.rng, surface.colour(), surface.any_pattern()
    canvas = to_image(surface.sheet(pattern, colour))
    words = f"{article(name_of(colour))} {pattern} texture"
    if rng.random() < 0.5:
        other, second = surface.any_pattern(), surface.colour()
        edge = surface.ramp(rng.uniform(0, 2 * np.pi)) + 0.15 * surface.side * surface.field(rng.uniform(3, 4))
        share = np.clip(0.5 + edge / rng.uniform(1, 12), 0, 1)
        mask = Image.fromarray((255 * share).astype(np.uint8))
        canvas.paste(to_image(surface.sheet(other, second)), (0, 0), mask)
        words += f" beside {article(name_of(second))} {other} one"
    return canvas, words


def smooth(surface: Surface) -> Painted:
    """Large soft patches of colour, as out of focus."""
    rng, side = surface.rng, surface.side
    canvas, words = gradient(surface)
    count = int(rng.integers(0, 6))
    for points in leaf_outlines(rng, rng.uniform(0.1, 0.4, count) * side):
        fill = tuple(surface.colour().astype(int).tolist())
        if placed := stencil(points + rng.random(2) * canvas.size, canvas.size, rng.uniform(0.02, 0.12) * side):
            canvas.paste(fill, placed[1], placed[0])
    return canvas, words + (" with soft spots" if count else "")


def night(surface: Surface) -> Painted:
    """A very dark image with sparse bright dots, some of them blurred discs like galaxies."""
    rng = surface.rng
    dust = surface.field(rng.uniform(2, 3))[..., None] * rng.uniform(0, 8) + rng.uniform(2, 25)
    grain = surface.field(0.6)[..., None] * rng.uniform(0, 5)
    sky = dust * (1 + rng.normal(0, 0.12) * WARM + rng.normal(0, 0.08) * ROSY) + grain
    count = int(surface.height * surface.width * np.exp(rng.uniform(np.log(2e-4), np.log(4e-3)))) + 1
    shine = np.asarray(_stars(surface, count).filter(ImageFilter.BoxBlur(0.6)), np.float32)
    return to_image(sky + shine), f"a dark sky with {'a few' if count < 60 else 'many'} stars and small galaxies"


def _stars(surface: Surface, count: int) -> Image.Image:
    rng, size = surface.rng, (surface.width, surface.height)
    stars = Image.new("RGB", size)
    draw = ImageDraw.Draw(stars)
    shine = rng.uniform(40, 255, (count, 1)) * (1 + rng.normal(0, 0.15, (count, 1)) * WARM)
    for (x, y), colour in zip(rng.random((count, 2)) * size, np.clip(shine, 0, 255).astype(int).tolist(), strict=True):
        draw.point((int(x), int(y)), tuple(colour))
    for points in leaf_outlines(rng, power_law_sizes(rng, int(rng.integers(2, 40)), 1.0, 0.08 * surface.side + 1)):
        tint = np.clip(rng.uniform(60, 255) * (1 + rng.normal(0, 0.25) * WARM), 0, 255).astype(int)
        if placed := stencil(points + rng.random(2) * size, size, 0.4 * float(np.abs(points).max())):
            stars.paste(tuple(tint.tolist()), placed[1], placed[0])
    return stars


def vessels(surface: Surface) -> Painted:
    """Branching curves over a smooth background, in half of the images within a bright disc."""
    rng, ground = surface.rng, np.clip(surface.colour(), 60, 230)
    mottle = 0.08 * surface.field(2.8) + rng.uniform(0, 0.05) * surface.field(1.0)
    canvas = to_image(ground * (1 + mottle[..., None]))
    dark, hub, curves = ground * rng.uniform(0.35, 0.8), rng.uniform(0.1, 0.9, 2) * canvas.size, []
    for angle in rng.uniform(0, 2 * np.pi, rng.integers(2, 7)):
        curves += branch(rng, hub, angle, 0.2 * surface.side, rng.uniform(0.5, 5))
    draw_curves(canvas, curves, dark, rng.uniform(0.4, 1))
    words = f"branching {name_of(dark)} vessels on {article(name_of(ground))} ground"
    return (_in_disc(rng, canvas), words + " in a dark frame") if rng.random() < 0.5 else (canvas, words)


def _in_disc(rng: np.random.Generator, canvas: Image.Image) -> Image.Image:
    framed = Image.new("RGB", canvas.size, (4, 4, 4))
    disc = 0.48 * min(canvas.size) * figure_outline("circle") + rng.uniform(0.4, 0.6, 2) * canvas.size
    if placed := stencil(disc, canvas.size, 1.0):
        mask, (left, top) = placed
        framed.paste(canvas.crop((left, top, left + mask.width, top + mask.height)), (left, top), mask)
    return framed
