"""Moving images: a camera over a still canvas, leaves that fly past, changing light, rippling water, cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from atoken.data.synthetic import scenes
from atoken.data.synthetic.drawing import leaf_outlines, stencil
from atoken.data.synthetic.textures import Surface, log_radius, to_image, white_spectrum
from atoken.data.synthetic.words import NUMBERS, name_of

_LARGER = 1.5  # a canvas is this many times as large as what the camera sees of it
_CUTS = 0.08  # share of the videos
_CAMERAS = {"still": 0.18, "pan": 0.4, "zoom": 0.12, "turn": 0.1, "drift": 0.2}  # and their shares


@dataclass(frozen=True)
class View:
    """What the camera sees of a canvas: ``centre`` (x, y) in pixels, ``scale`` canvas pixels a pixel, ``angle``."""

    centre: tuple[float, float]
    scale: float = 1.0
    angle: float = 0.0  # radians

    def of(self, canvas: Image.Image, height: int, width: int) -> Image.Image:
        """The view as an image of (height, width); exact if ``centre`` is on the pixel grid and nothing rotates."""
        c, s = self.scale * np.cos(self.angle), self.scale * np.sin(self.angle)
        x = self.centre[0] - c * width / 2 + s * height / 2
        y = self.centre[1] - s * width / 2 - c * height / 2
        if self.scale == 1 and self.angle == 0 and x == int(x) and y == int(y):
            return canvas.crop((int(x), int(y), int(x) + width, int(y) + height))
        affine = (c, -s, x, s, c, y)
        return canvas.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)


def moving(rng: np.random.Generator, frames: int, height: int, width: int) -> tuple[np.ndarray, str]:
    """A video (T, H, W, 3) uint8 and its caption: one shot, or in few videos two with a cut between them."""
    if frames >= 6 and rng.random() < _CUTS:
        cut = int(rng.integers(2, frames - 1))
        before, first = _shot(rng, cut, height, width)
        after, last = _shot(rng, frames - cut, height, width)
        return np.concatenate([before, after]), f"{first}, then a cut to {last}"
    return _shot(rng, frames, height, width)


def _shot(rng: np.random.Generator, frames: int, height: int, width: int) -> tuple[np.ndarray, str]:
    if rng.random() < 0.07:
        shot, words = water(rng, frames, height, width)
    else:
        shot, words = _filmed(rng, frames, height, width)
    if rng.random() < 0.25:
        shot, change = _relit(rng, shot)
        words += change
    return shot, words


def _filmed(rng: np.random.Generator, frames: int, height: int, width: int) -> tuple[np.ndarray, str]:
    family, surface = scenes.choose(rng), Surface(rng, *canvas_size(height, width))
    canvas, words = family(surface)
    canvas = Image.fromarray(scenes.developer(surface)(canvas))
    camera = str(rng.choice(list(_CAMERAS), p=list(_CAMERAS.values())))
    images = [view.of(canvas, height, width) for view in views(rng, camera, frames, height, width)]
    flying = int(rng.integers(1, 5)) if rng.random() < 0.45 else 0
    for _ in range(flying):
        _fly(rng, surface, images)
    past = f"{NUMBERS[flying]} shape{'s' * (flying > 1)} moving past in front of " if flying else ""
    filmed = "seen by a still camera" if camera == "still" else f"as the camera {camera}s"
    return np.stack([np.asarray(image) for image in images]), f"{past}{words}, {filmed}"


def filmed(rng: np.random.Generator, image: Image.Image, frames: int, height: int, width: int) -> np.ndarray:
    """A video (T, H, W, 3) uint8 of a camera over an image of any size: one shot or, in few videos, two with a cut."""
    cut = int(rng.integers(2, frames - 1)) if frames >= 6 and rng.random() < _CUTS else frames
    shots = []
    for count in filter(None, (cut, frames - cut)):
        canvas = _part(rng, image, *canvas_size(height, width))
        camera = str(rng.choice([*_CAMERAS, "shake"], p=[0.9 * share for share in _CAMERAS.values()] + [0.1]))
        shots += [np.asarray(view.of(canvas, height, width)) for view in views(rng, camera, count, height, width)]
    return np.stack(shots)


def _part(rng: np.random.Generator, image: Image.Image, height: int, width: int) -> Image.Image:
    """A random part of an image, scaled with antialiasing to this size; it is as sharp as the image, or less."""
    most = min(image.width / width, image.height / height)  # image pixels of a pixel
    scale = float(np.exp(rng.uniform(min(0.0, np.log(most)), np.log(most)))) if most > 1 else most
    box = np.array((scale * width, scale * height))
    left, top = rng.uniform(0, 1, 2) * np.maximum(np.array(image.size) - box, 0)
    edges = (left, top, min(left + box[0], image.width), min(top + box[1], image.height))
    return image.resize((width, height), Image.Resampling.LANCZOS, edges)


def canvas_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the canvas that a camera with a view of this size moves over."""
    return int(np.ceil(_LARGER * height)) + 4, int(np.ceil(_LARGER * width)) + 4


def views(rng: np.random.Generator, camera: str, frames: int, height: int, width: int) -> list[View]:
    """The camera's path over a canvas of ``canvas_size``, one view a frame; it never leaves the canvas."""
    size, canvas = np.array((width, height)), np.array(canvas_size(height, width)[::-1])
    middle, spare = (canvas - size) // 2 + size / 2, (_LARGER - 1) / 2 * size
    slant = min(height, width) / max(height, width)  # a long view reaches the edge of the canvas at a smaller angle
    share = np.arange(frames) / max(frames - 1, 1)
    moves, scale, angle = np.zeros((frames, 2)), np.ones(frames), np.zeros(frames)
    match camera:
        case "pan":
            moves = _pan(rng, spare, frames)
        case "zoom":
            scale = rng.uniform(0.6, 1.1) * np.exp(share * rng.uniform(-0.25, 0.25))
        case "turn":
            angle = slant * (rng.uniform(-0.1, 0.1) + share * rng.uniform(-0.35, 0.35))
        case "drift":
            moves = 0.3 * spare * _sway(rng, frames)
            scale, angle = 1 - rng.uniform(0, 0.2) * share, slant * rng.uniform(-0.2, 0.2) * share
        case "shake":
            moves = np.clip(np.cumsum(rng.normal(0, 1.5, (frames, 2)), axis=0), -spare, spare)
    return [
        View((float(x), float(y)), float(z), float(a))
        for (x, y), z, a in zip(middle + moves, scale, angle, strict=True)
    ]


def _pan(rng: np.random.Generator, spare: np.ndarray, frames: int) -> np.ndarray:
    """Offsets (T, 2) of a steady pan: up to 5 pixels a frame, whole pixels in a third of the pans."""
    speed, angle = np.exp(rng.uniform(np.log(0.1), np.log(5))), rng.uniform(0, 2 * np.pi)
    most = 2 * spare / frames
    step = np.clip(speed * np.array((np.cos(angle), np.sin(angle))), -most, most)
    if rng.random() < 0.33 and np.trunc(step).any():
        step = np.trunc(step)
    return (np.arange(frames)[:, None] - (frames - 1) // 2) * step


def _sway(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Offsets (T, 2) within about -1.3..1.3, like those of a camera held in a hand."""
    time = np.arange(frames)[:, None]
    rocking = np.sin(rng.uniform(0.1, 0.4, 2) * time + rng.uniform(0, 2 * np.pi, 2))
    return time / max(frames - 1, 1) * rng.uniform(-1, 1, 2) + 0.3 * rocking


def _fly(rng: np.random.Generator, surface: Surface, images: list[Image.Image]) -> None:
    """Paint one leaf over the images; it moves at a constant sub-pixel speed."""
    size = np.array(images[0].size)
    radius = float(np.exp(rng.uniform(np.log(0.05), np.log(0.3))) * size.max()) + 1
    outline = leaf_outlines(rng, np.array([radius]))[0]
    box = int(2 * np.abs(outline).max()) + 6
    placed = stencil(outline + box / 2, (box, box), rng.uniform(0, 1.5))
    if placed is None:
        return
    mask = Image.new("L", (box, box))
    mask.paste(placed[0], placed[1])
    leaf = to_image(surface.tile(surface.colour(), box, box))
    start, speed = rng.uniform(0, 1, 2) * size - box / 2, rng.normal(0, 2.5, 2)
    middle = (len(images) - 1) / 2
    for number, image in enumerate(images):
        position = start + speed * (number - middle)
        whole = np.floor(position).astype(int)
        affine = (1, 0, float(whole[0] - position[0]), 0, 1, float(whole[1] - position[1]))
        shifted = mask.transform(mask.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        moved = leaf.transform(leaf.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        image.paste(moved, tuple(whole.tolist()), shifted)


def _relit(rng: np.random.Generator, shot: np.ndarray) -> tuple[np.ndarray, str]:
    """Change the light over time: a fade, or a flicker."""
    time = np.arange(len(shot))
    if rng.random() < 0.6:
        ends = rng.uniform(0.4, 1.3, 2)
        gains = np.linspace(float(ends[0]), float(ends[1]), len(shot))
        words = ", getting darker" if ends[1] < ends[0] else ", getting brighter"
    else:
        gains, words = 1 + rng.uniform(0.05, 0.25) * np.sin(rng.uniform(0.3, 2) * time), ", in flickering light"
    curves = np.clip(np.arange(256) * gains[:, None], 0, 255).astype(np.uint8)
    return np.stack([curve[frame] for curve, frame in zip(curves, shot, strict=True)]), words


def water(rng: np.random.Generator, frames: int, height: int, width: int) -> tuple[np.ndarray, str]:
    """Waves whose phase speed follows that of deep water (angular frequency ~ square root of wave number)."""
    surface = Surface(rng, height, width)
    radius = log_radius(height, width)
    spectrum = white_spectrum(rng, height, width) * np.exp(-0.5 * np.float32(rng.uniform(2, 3.2)) * radius)
    spectrum[0, 0] = 0
    rate = np.exp(0.5 * radius) * rng.uniform(1, 4)
    step = np.exp(1j * rate).astype(np.complex64)
    colour = np.clip(surface.colour(), 40, 200)
    contrast = surface.swing(colour, rng.uniform(0.15, 0.5))
    gain = 1 / max(float(np.fft.irfft2(spectrum, (height, width)).std()), 1e-12)
    shot = np.empty((frames, height, width, 3), np.uint8)
    for frame in shot:
        wave = np.fft.irfft2(spectrum, (height, width)) * np.float32(gain)
        frame[:] = np.clip(colour + wave[..., None] * contrast, 0, 255)
        spectrum *= step
    return shot, f"rippling {name_of(colour)} water"
