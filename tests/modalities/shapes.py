"""Meshes with a closed form, and cameras on the axes."""

import numpy as np
import torch

from atoken.cameras import Cameras
from atoken.mesh import Mesh

AXES = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]], np.uint8)


def mesh(vertices, faces, colors=(255, 255, 255, 255), uv=None, textures=()):
    """A mesh of one texture, or none; ``colors`` of the corners, any shape that broadcasts to (F, 3, 4)."""
    count = len(faces)
    return Mesh(
        np.asarray(vertices, np.float32),
        np.asarray(faces, np.int32),
        np.broadcast_to(np.asarray(colors, np.uint8), (count, 3, 4)).copy(),
        np.zeros((count, 3, 2), np.float32) if uv is None else np.asarray(uv, np.float32),
        np.full(count, 0 if textures else -1, np.int32),
        tuple(textures),
    )


def quad(half=0.5, y=0.0, colors=(255, 255, 255, 255), textures=(), repeat=1.0):
    """A square in the plane y, seen upright from the -y side: uv (0, 0) at its lower left corner."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    vertices = np.stack([corners[:, 0] * half, np.full(4, y), corners[:, 1] * half], 1)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return mesh(vertices, faces, colors, (corners[faces] + 1) / 2 * repeat, textures)


def box(half=0.25, centre=(0.0, 0.0, 0.0)):
    """A cube whose faces have COLOURS in the order of AXES."""
    vertices, faces = [], []
    for axis in AXES.numpy():
        right = np.roll(np.abs(axis), 1)
        up = np.cross(axis, right)
        corners = [axis + a * right + b * up for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        faces += [[len(vertices) + i for i in three] for three in ((0, 1, 2), (0, 2, 3))]
        vertices += corners
    colors = np.repeat(np.pad(COLOURS, ((0, 0), (0, 1)), constant_values=255), 2, 0)[:, None]
    return mesh(half * np.array(vertices) + np.array(centre), faces, colors)


def sphere(radius=0.4, rings=32, colors=(255, 255, 255, 255), textures=()):
    """4 x rings x rings triangles; the texture goes around once, its middle row on the equator."""
    pole, around = np.meshgrid(
        np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings + 1), indexing="ij"
    )
    unit = np.stack([np.sin(pole) * np.cos(around), np.sin(pole) * np.sin(around), np.cos(pole)], -1)
    uv = np.stack([around / (2 * np.pi), 1 - pole / np.pi], -1).reshape(-1, 2)
    columns = 2 * rings + 1
    first = (np.arange(rings)[:, None] * columns + np.arange(2 * rings)).reshape(-1, 1)
    faces = (first + np.array([0, columns, 1, 1, columns, columns + 1])).reshape(-1, 3)
    return mesh(radius * unit.reshape(-1, 3), faces, colors, uv[faces], textures)


def joined(*meshes):
    """Meshes without textures as one."""
    starts = np.cumsum([0] + [len(part.vertices) for part in meshes])
    return mesh(
        np.concatenate([part.vertices for part in meshes]),
        np.concatenate([part.faces + start for part, start in zip(meshes, starts, strict=False)]),
        np.concatenate([part.colors for part in meshes]),
    )


def from_axes(fov=40.0):
    """Cameras on the six AXES, at distance 2."""
    return Cameras.looking_at_centre(2.0 * AXES, fov)


def quarter_turned(item):
    """A mesh or cameras, turned by 90 degrees around z: exactly, (x, y, z) -> (-y, x, z)."""
    turn = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    if isinstance(item, Cameras):
        return Cameras(item.world_to_camera @ turn.T, item.intrinsics)
    vertices = item.vertices @ turn[:3, :3].numpy().T
    return Mesh(vertices, item.faces, item.colors, item.uv, item.texture, item.textures)
