"""Solids for 3D training data: solids of revolution and extruded shapes, painted and arranged; z is up.

A solid is closed, and its faces are counter-clockwise seen from outside. Solids that overlap stay separate shells:
from outside, their union is seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from atoken.data.synthetic.drawing import figure_outline
from atoken.data.synthetic.textures import Surface
from atoken.data.synthetic.words import COLOURS, article, name_of
from atoken.mesh import Mesh, fitted

_SEGMENTS = 48  # around an axis
TEXTURE = 128  # pixels a side
SHAPES = ("ball", "egg", "box", "cylinder", "cone", "ring", "vase", "bottle", "star", "cross", "prism")
PAINTS = {"plain": 0.3, "gradient": 0.2, "textured": 0.5}  # and their shares
_BETWEEN = {"alone": "", "stacked": " on top of ", "beside": " beside "}
_STRIP = np.array([[0, 1, 3], [0, 3, 2]])  # corners of a quad: this one, next in the row, above this, above next


@dataclass(frozen=True)
class Solid:
    """vertices (V, 3) float64; faces (F, 3); uv (F, 3, 2), at about one unit of texture for a unit of length."""

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray


def revolved(profile: np.ndarray) -> Solid:
    """The solid of revolution about the z axis of a profile (P, 2) of (radius, z), which runs upwards on the outside.

    The ends of the profile are on the axis; or they meet, which makes a ring.
    """
    angle = np.linspace(0, 2 * np.pi, _SEGMENTS + 1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(profile, axis=0), axis=1))])
    rim = np.stack([np.cos(angle), np.sin(angle)], -1)
    points = np.empty((len(profile), _SEGMENTS + 1, 3))
    points[..., :2] = profile[:, None, :1] * rim
    points[..., 2] = profile[:, None, 1]
    uv = np.empty((*points.shape[:2], 2))
    uv[..., 0] = angle * max(float(profile[:, 0].max()), 0.1)
    uv[..., 1] = length[:, None]
    return _strips(points, uv)


def extruded(outline: np.ndarray, height: float) -> Solid:
    """A star-shaped outline (N, 2), counter-clockwise around (0, 0), extruded from z = -height / 2 to height / 2."""
    closed = np.concatenate([outline, outline[:1]])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    levels = np.array([-height / 2, height / 2])
    points = np.concatenate([np.broadcast_to(closed, (2, *closed.shape)), np.ones((2, len(closed), 1))], -1)
    points[..., 2] *= levels[:, None]
    uv = np.stack(np.broadcast_arrays(length, levels[:, None]), -1)
    caps = [_cap(closed, float(z)) for z in levels]
    return joined([_strips(points, uv), *caps])


def _strips(points: np.ndarray, uv: np.ndarray) -> Solid:
    """A grid of points (R, C, 3) with texture coordinates (R, C, 2) as triangles, without those of no area."""
    rows, columns = points.shape[:2]
    first = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    faces = (first + np.array([0, 1, columns, columns + 1]))[:, _STRIP].reshape(-1, 3)
    vertices = points.reshape(-1, 3)
    one, two, three = (vertices[faces[:, corner]] for corner in range(3))
    faces = faces[np.linalg.norm(np.cross(two - one, three - one), axis=1) > 1e-12]
    return Solid(vertices, faces, uv.reshape(-1, 2)[faces])


def _cap(closed: np.ndarray, z: float) -> Solid:
    """The bottom or top of an extruded outline: a fan around its middle."""
    count = len(closed) - 1
    vertices = np.concatenate([np.zeros((1, 2)), closed])
    ring = np.arange(1, count + 1)
    faces = np.stack([np.zeros_like(ring), ring, ring + 1], -1)
    faces = faces if z > 0 else faces[:, ::-1]
    return Solid(np.concatenate([vertices, np.full((len(vertices), 1), z)], 1), faces, vertices[faces])


def joined(solids: list[Solid]) -> Solid:
    """Several solids as one."""
    starts = np.cumsum([0, *(len(solid.vertices) for solid in solids)])
    return Solid(
        np.concatenate([solid.vertices for solid in solids]),
        np.concatenate([solid.faces + start for solid, start in zip(solids, starts, strict=False)]),
        np.concatenate([solid.uv for solid in solids]),
    )


def shape(rng: np.random.Generator, name: str = "") -> tuple[Solid, str]:
    """A shape of about unit size around the origin, and its name: ``name``, or a random one of the ``SHAPES``."""
    height, width = rng.uniform(0.4, 1.4), rng.uniform(0.3, 0.6)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 25)
    match name or str(rng.choice(SHAPES)):
        case "ball":
            return revolved(0.5 * np.stack([np.cos(angle), np.sin(angle)], -1)), "ball"
        case "egg":
            return revolved(np.stack([width * np.cos(angle), 0.5 * height * np.sin(angle)], -1)), "egg"
        case "box":
            sides = figure_outline("square") * np.sqrt(0.5) * rng.uniform(0.5, 1.2, 2)
            return extruded(sides, height), "box"
        case "cylinder":
            return revolved(_upright(np.array([width, width]), height)), "cylinder"
        case "cone":
            return revolved(_upright(np.array([width, rng.choice((0.0, 0.4)) * width]), height)), "cone"
        case "ring":
            around, thick = np.linspace(-np.pi, np.pi, 25), rng.uniform(0.08, 0.22)
            return revolved(np.stack([0.5 + thick * np.cos(around), thick * np.sin(around)], -1)), "ring"
        case "vase":
            return revolved(_upright(_winding(rng, 12, 0.2, 0.5), height)), "vase"
        case "bottle":
            body, neck = np.full(6, 0.32), np.full(4, rng.uniform(0.08, 0.14))
            return revolved(_upright(np.concatenate([body, [0.25, 0.16], neck]), 1.2)), "bottle"
        case "prism":
            return extruded(figure_outline("triangle") * width, height), "prism"
        case figure:
            return extruded(figure_outline(figure) * 0.6, rng.uniform(0.15, 0.6)), figure


def _upright(radii: np.ndarray, height: float) -> np.ndarray:
    """A profile of these radii, evenly spaced in z, closed at the axis below and above."""
    z = np.linspace(-height / 2, height / 2, len(radii))
    side = np.stack([radii, z], -1)
    return np.concatenate([[[0.0, z[0]]], side, [[0.0, z[-1]]]])


def _winding(rng: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    """Radii (count,) that grow and shrink smoothly."""
    t, phases = np.linspace(0, 1, count), rng.uniform(0, 2 * np.pi, 2)
    wave = 0.5 + 0.3 * np.sin(2 * np.pi * t + phases[0]) + 0.2 * np.sin(4 * np.pi * t + phases[1])
    return low + (high - low) * np.clip(wave, 0, 1)


def painted(surface: Surface, solid: Solid, tint: np.ndarray, paint: str = "") -> tuple[Mesh, str]:
    """A solid in ``paint``, or a random one of the ``PAINTS``, around ``tint`` (3,); and the word for it (or "")."""
    paint = paint or str(surface.rng.choice(list(PAINTS), p=list(PAINTS.values())))
    faces = len(solid.faces)
    colours = np.full((faces, 3, 4), 255, np.uint8)
    textures: tuple[np.ndarray, ...] = ()
    word = ""
    if paint == "plain":
        colours[..., :3] = np.clip(tint, 0, 255).astype(np.uint8)
    elif paint == "gradient":
        colours[..., :3] = _gradient(solid, tint, surface.colour())
        word = "shaded"
    else:
        word = surface.any_pattern()
        pixels = np.full((TEXTURE, TEXTURE, 4), 255, np.uint8)
        pixels[..., :3] = np.clip(surface.sheet(word, tint), 0, 255).astype(np.uint8)
        textures = (pixels,)
    texture = np.full(faces, 0 if textures else -1, np.int32)
    vertices, uv = solid.vertices.astype(np.float32), solid.uv.astype(np.float32)
    return Mesh(vertices, solid.faces.astype(np.int32), colours, uv, texture, textures), word


def _gradient(solid: Solid, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """(F, 3, 3) uint8: colours of the corners from ``below`` to ``above`` by height."""
    z = solid.vertices[:, 2]
    share = ((z - z.min()) / max(float(np.ptp(z)), 1e-6))[solid.faces][..., None]
    return np.clip(below * (1 - share) + above * share, 0, 255).astype(np.uint8)


def arranged(surface: Surface) -> tuple[Mesh, str]:
    """One to four painted solids, alone, stacked or side by side, rotated about z, in [-0.5, 0.5]^3; and a caption."""
    rng, how = surface.rng, str(surface.rng.choice(("alone", "stacked", "beside"), p=(0.5, 0.25, 0.25)))
    count = 1 if how == "alone" else int(rng.integers(2, 5))
    parts, phrases, corner = [], [], np.zeros(3)
    for _ in range(count):
        solid, name = shape(rng)
        colour = str(rng.choice(list(COLOURS)))
        tint = np.array(COLOURS[colour], np.float32) if rng.random() < 0.7 else surface.colour()
        mesh, word = painted(surface, solid, tint)
        phrases.append(article(" ".join(filter(None, [word, name_of(tint), name]))))
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        middle, axis = (low + high) / 2, 2 if how == "stacked" else 0
        shift = -middle
        shift[axis] = corner[axis] - low[axis]
        corner[axis] += 0.97 * (high - low)[axis]  # they overlap a little
        parts.append(replace(mesh, vertices=mesh.vertices + shift.astype(np.float32)))
    return centred(_together(parts), rng.uniform(0, 2 * np.pi)), _BETWEEN[how].join(reversed(phrases))


def _together(parts: list[Mesh]) -> Mesh:
    faces, texture, vertices, textures = [], [], 0, 0
    for part in parts:
        faces.append(part.faces + vertices)
        texture.append(np.where(part.texture < 0, -1, part.texture + textures))
        vertices, textures = vertices + len(part.vertices), textures + len(part.textures)
    return Mesh(
        np.concatenate([part.vertices for part in parts]), np.concatenate(faces, dtype=np.int32),
        np.concatenate([part.colors for part in parts]), np.concatenate([part.uv for part in parts]),
        np.concatenate(texture, dtype=np.int32), tuple(texture for part in parts for texture in part.textures),
    )  # fmt: skip


def centred(mesh: Mesh, angle: float) -> Mesh:
    """The mesh rotated about z by ``angle`` radians, its box centred at the origin and its longest side 1."""
    cos, sin = np.cos(angle), np.sin(angle)
    return replace(mesh, vertices=fitted(mesh.vertices @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])))
