"""Surfaces: noise fields with a chosen spectrum, patterns made of them, and colours with the statistics of photographs.

A pattern is an (H, W) float32 field of mean about 0 and variance about 1; colour is added later. Sources: the power
spectrum of natural images falls as a power of frequency (Field 1987; van der Schaaf & van Hateren 1996), and their
colour varies mostly in luminance, then yellow against blue, then red against green (Ruderman, Cronin & Chiao 1998).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, lru_cache

import numpy as np
from PIL import Image

LazyField = Callable[[], np.ndarray]  # its random numbers are drawn already, the rest is computed when it is called

WARM = np.array([1.0, 0.1, -1.0], np.float32)  # yellow against blue
ROSY = np.array([0.6, -0.8, 0.5], np.float32)  # red against green

PATTERNS = {  # and their shares; a caption says "a wood-like texture"
    "cloud-like": 0.2, "stone-like": 0.14, "sand-like": 0.08, "fur-like": 0.12, "wood-like": 0.08, "striped": 0.07,
    "woven": 0.05, "checked": 0.05, "spotted": 0.07, "marble-like": 0.06, "smooth": 0.08,
}  # fmt: skip


@lru_cache(maxsize=8)
def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of ``rfft2`` in cycles a pixel: (H, 1) and (1, W // 2 + 1)."""
    return np.fft.fftfreq(height).astype(np.float32)[:, None], np.fft.rfftfreq(width).astype(np.float32)[None]


@lru_cache(maxsize=8)
def log_radius(height: int, width: int) -> np.ndarray:
    """Logarithm of the distance from frequency 0, (H, W // 2 + 1); 0 at frequency 0, where fields have no power."""
    fy, fx = _axes(height, width)
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1
    return np.log(radius)


def white_spectrum(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Complex normal numbers, (H, W // 2 + 1) complex64: the spectrum of white noise."""
    parts = rng.standard_normal((height, width // 2 + 1, 2), np.float32)
    return parts.view(np.complex64)[..., 0]


def unit(field: np.ndarray) -> np.ndarray:
    """Scale to mean 0 and variance 1; a constant becomes 0."""
    field = field - field.mean()
    return field / max(float(field.std()), 1e-6)


def random_colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours as of one photograph, (count, 3) float32 in 0..255.

    They share an exposure, a colour cast and a saturation. Chroma is a share of luminance, as under one light.
    """
    middle, spread = rng.uniform(50, 175), rng.uniform(25, 75)
    saturation = 0.38 * rng.exponential() + 0.05
    cast = rng.normal(0, 0.12, 2)
    luma = np.clip(middle + spread * rng.standard_normal((count, 1)), 6, 250)
    chroma = cast + saturation * np.clip(rng.standard_normal((count, 2)), -2.5, 2.5) * (0.42, 0.15)
    rgb = luma * (1 + chroma[:, :1] * WARM + chroma[:, 1:] * ROSY)
    return np.clip(rgb, 0, 255).astype(np.float32)


def to_image(rgb: np.ndarray) -> Image.Image:
    """An image of (H, W, 3) floats in 0..255; other values are clipped."""
    return Image.fromarray(to_bytes(rgb))


def to_bytes(rgb: np.ndarray) -> np.ndarray:
    """Floats in 0..255 to uint8, rounded; other values are clipped."""
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


class Surface:
    """The materials of one image: its random numbers, its noise, its colours and its pattern sheets.

    The white spectrum is drawn once and mixed anew for each field, so that another field costs one inverse FFT. A sheet
    is a pattern of the size of the image, computed at most once; each leaf is covered by a piece of a sheet.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.colours = random_colours(rng, 24)
        self._white = white_spectrum(rng, height, width), white_spectrum(rng, height, width)

    @property
    def side(self) -> int:
        """The longer side in pixels."""
        return max(self.height, self.width)

    def colour(self) -> np.ndarray:
        """One of the colours, (3,) float32 in 0..255."""
        return self.colours[self.rng.integers(len(self.colours))]

    def field(self, exponent: float, angle: float = 0.0, stretch: float = 1.0) -> np.ndarray:
        """Periodic Gaussian noise (H, W), mean 0, variance 1, whose power falls as frequency ** -exponent.

        stretch: factor above 1 by which the grain is longer along ``angle`` (radians from the x axis).
        """
        return self._field(exponent, angle, stretch)()

    def _field(self, exponent: float, angle: float = 0.0, stretch: float = 1.0) -> LazyField:
        phase = self.rng.uniform(0, 2 * np.pi)

        def field() -> np.ndarray:
            log_f = log_radius(self.height, self.width)
            if stretch != 1:
                fy, fx = _axes(self.height, self.width)
                along, across = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
                log_f = 0.5 * np.log(np.maximum((stretch * along) ** 2 + across**2, 1e-12))
            spectrum = np.float32(np.cos(phase)) * self._white[0] + np.float32(np.sin(phase)) * self._white[1]
            spectrum *= np.exp(np.float32(-0.5 * exponent) * log_f)
            spectrum[0, 0] = 0
            return unit(np.fft.irfft2(spectrum, (self.height, self.width)))

        return field

    def ramp(self, angle: float) -> np.ndarray:
        """Distance along ``angle`` from the middle of the image in pixels, (H, W) float32."""
        y = np.arange(self.height, dtype=np.float32)[:, None] - self.height / 2
        x = np.arange(self.width, dtype=np.float32)[None] - self.width / 2
        return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y

    def pattern(self, name: str) -> np.ndarray:
        """One of the ``PATTERNS``, (H, W) float32, without colour."""
        return self._pattern(name)()

    def _pattern(self, name: str) -> LazyField:
        rng, angle = self.rng, self.rng.uniform(0, np.pi)
        match name:
            case "stone-like":
                return self._field(rng.uniform(1.2, 2.0))
            case "sand-like":
                return self._field(rng.uniform(0.0, 1.2))
            case "fur-like":
                return self._fur(angle)
            case "wood-like":
                return self._wood(angle)
            case "striped":
                return self._grating(angle, rng.uniform(0, 1.5))
            case "woven" | "checked":
                return self._crossed(angle, sharp=name == "checked")
            case "spotted":
                steep, blobs, level = rng.uniform(2, 8), self._field(rng.uniform(2, 3.2)), rng.uniform(-1, 1)
                return lambda: unit(np.tanh(steep * (blobs() - level)))
            case "marble-like":
                veins = self._field(rng.uniform(2, 3))
                return lambda: unit(-(np.abs(veins()) ** 0.5))
            case "smooth":
                soft = self._field(rng.uniform(2.5, 3.5))
                return lambda: 0.3 * soft()
            case _:
                return self._field(rng.uniform(2.0, 3.2))

    def _wood(self, angle: float) -> LazyField:
        grain = self._field(1.2, angle + np.pi / 2, self.rng.uniform(8, 24))
        rings, share = self._grating(angle, self.rng.uniform(2, 6)), self.rng.uniform(0.3, 1.5)
        return lambda: unit(rings() + share * grain())

    def _grating(self, angle: float, wobble: float) -> LazyField:
        period = np.exp(self.rng.uniform(np.log(3), np.log(40)))
        bend, steep = self._field(3.0), np.float32(self.rng.uniform(0.5, 4))

        def grating() -> np.ndarray:
            phase = self.ramp(angle) * np.float32(2 * np.pi / period) + np.float32(wobble) * bend()
            return unit(np.tanh(steep * np.sin(phase)))

        return grating

    def _crossed(self, angle: float, sharp: bool) -> LazyField:
        one, two = self._grating(angle, 0.3), self._grating(angle + np.pi / 2, 0.3)
        if sharp:
            return lambda: unit(one() * two())
        fibres = self._field(1.0)
        return lambda: unit(np.maximum(one(), two()) + 0.3 * fibres())

    def _fur(self, angle: float) -> LazyField:
        """Hair in three directions; a smooth field selects where each is visible."""
        rng = self.rng
        choice, spread = self._field(3.5), rng.uniform(0.2, 0.7)
        exponent, stretch = rng.uniform(0.8, 1.8), rng.uniform(4, 16)
        hair = [self._field(exponent, angle + spread * side, stretch) for side in (-1, 0, 1)]

        def fur() -> np.ndarray:
            where = choice()
            left, right = np.clip(-where, 0, 1), np.clip(where, 0, 1)
            return hair[0]() * left + hair[1]() * (1 - left - right) + hair[2]() * right

        return fur

    def any_pattern(self) -> str:
        """The name of a random pattern."""
        return str(self.rng.choice(list(PATTERNS), p=list(PATTERNS.values())))

    @cached_property
    def sheets(self) -> tuple[LazyField, ...]:
        """Four patterns (H, W) float32, each computed once, when it is first called."""
        return tuple(cache(self._pattern(self.any_pattern())) for _ in range(4))

    def swing(self, colour: np.ndarray, contrast: float) -> np.ndarray:
        """The change of colour (3,) by one unit of a pattern: mostly of brightness, a little of hue."""
        hue = self.rng.normal(0, 0.18) * WARM + self.rng.normal(0, 0.1) * ROSY
        return (contrast * (0.7 * colour + 25) * (1 + hue)).astype(np.float32)

    def contrast(self) -> float:
        """A random strength of a pattern, log-uniform."""
        return float(np.exp(self.rng.uniform(np.log(0.02), np.log(0.6))))

    def sheet(self, pattern: str, colour: np.ndarray) -> np.ndarray:
        """A whole image of one pattern around ``colour``, (H, W, 3) float32 in about 0..255."""
        rgb = colour + self.pattern(pattern)[..., None] * self.swing(colour, 1.3 * self.contrast() + 0.05)
        if self.rng.random() < 0.5:
            rgb += self.field(self.rng.uniform(2.0, 3.2))[..., None] * np.float32(self.rng.uniform(3, 14)) * WARM
        return rgb

    def tile(self, colour: np.ndarray, height: int, width: int) -> np.ndarray:
        """A textured, shaded piece of surface around ``colour``, (height, width, 3) float32 in about 0..255."""
        return self.paint(colour)(height, width)

    def paint(self, colour: np.ndarray) -> Callable[[int, int], np.ndarray]:
        """A function that gives a ``tile`` of any (height, width), always of the same texture and light."""
        rng = self.rng
        sheet, down, across = self.sheets[rng.integers(4)], rng.choice((-1, 1)), rng.choice((-1, 1))
        top, left = int(rng.integers(self.height)), int(rng.integers(self.width))
        slope = np.float32(rng.normal(0, 0.2)), np.float32(rng.normal(0, 0.2))
        ball = np.float32(rng.uniform(0.1, 0.5)) if rng.random() < 0.4 else None  # shading of a ball
        swing = self.swing(colour, self.contrast())

        def tile(height: int, width: int) -> np.ndarray:
            rows, columns = range(top, top + height), range(left, left + width)
            piece = sheet()[::down, ::across].take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")
            y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
            x = np.linspace(-1, 1, width, dtype=np.float32)[None]
            light = slope[0] * y + slope[1] * x
            if ball is not None:
                light = light - ball * (x * x + y * y)
            return colour * (1 + light[..., None]) + piece[..., None] * swing

        return tile
