"""Procedural training data: images, videos and meshes with captions, generated from a seed, without any photograph.

Images have the statistics of photographs: occlusion by leaves of power-law sizes, 1/f spectra, luminance stronger than
chroma, texture, shading, soft edges, some darkness and some sensor noise. There are also drawings, text and flat
colour. ``scenes.FAMILIES`` has the families and their shares; ``motion`` makes videos of them. A sample depends on its
arguments alone: it is the same in every process, for given versions of NumPy and Pillow on one kind of processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoken.data.synthetic import motion, scenes, solids
from atoken.data.synthetic.textures import Surface
from atoken.mesh import Mesh

_IMAGE, _VIDEO, _MESH = 0, 1, 2  # numbers of the random streams


@dataclass(frozen=True)
class SyntheticFrames:
    """``frames`` (T, H, W, 3) uint8 RGB, with T = 1 for an image, and a lower-case English ``caption`` of them."""

    frames: np.ndarray
    caption: str


@dataclass(frozen=True)
class SyntheticAsset:
    """A ``mesh`` in [-0.5, 0.5]^3, z up, and a lower-case English ``caption`` of it."""

    mesh: Mesh
    caption: str


def make_image(seed: int, index: int, height: int, width: int) -> SyntheticFrames:
    """Image ``index`` of the series ``seed``: frames (1, height, width, 3)."""
    rng = generator(seed, index, _IMAGE)
    family, surface = scenes.choose(rng), Surface(rng, height, width)
    canvas, caption = family(surface)
    frames = scenes.developer(surface)(canvas)[None]
    return SyntheticFrames(with_sensor_noise(rng, frames), caption)


def make_video(seed: int, index: int, frames: int, height: int, width: int) -> SyntheticFrames:
    """Video ``index`` of the series ``seed``: frames (frames, height, width, 3)."""
    rng = generator(seed, index, _VIDEO)
    shot, caption = motion.moving(rng, frames, height, width)
    return SyntheticFrames(with_sensor_noise(rng, shot), caption)


def make_asset(seed: int, index: int) -> SyntheticAsset:
    """Mesh ``index`` of the series ``seed``."""
    rng = generator(seed, index, _MESH)
    return SyntheticAsset(*solids.arranged(Surface(rng, solids.TEXTURE, solids.TEXTURE)))


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """The random generator of sample ``index`` of a series; different media have different streams."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index, stream])))


def with_sensor_noise(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """Add mild noise to a quarter of the samples; each frame gets another piece of one larger noise image."""
    strength = float(rng.uniform(0.5, 5)) if rng.random() < 0.25 else 0.0
    if not strength:
        return np.ascontiguousarray(frames)
    _, height, width, _ = frames.shape
    noise = (strength * rng.standard_normal((height + 16, width + 16, 3), np.float32)).round().astype(np.int16)
    noisy = np.empty_like(frames)
    for frame, out in zip(frames, noisy, strict=True):
        top, left = rng.integers(0, 17, 2)
        out[:] = np.clip(frame + noise[top : top + height, left : left + width], 0, 255)
    return noisy
