"""Cameras around an asset. OpenCV axes: x right, y down, z forward; the world is z up, the asset in [-0.5, 0.5]^3."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, radians

import numpy as np
import torch
from torch import Tensor

from atoken.summary import Summary

RADIUS, FOV = 2.0, 40.0  # of the views that assets are packed from: distance to the centre, degrees


@dataclass(frozen=True, repr=False)
class Cameras(Summary):
    """V pinhole cameras.

    world_to_camera: (V, 4, 4) rigid. intrinsics: (V, 3, 3) in units of the image's width (first row) and height
    (second row), so that (0.5, 0.5) is its centre. Both fp32 or fp64, on one device.
    Raises ValueError for other shapes.
    """

    world_to_camera: Tensor
    intrinsics: Tensor

    def __post_init__(self) -> None:
        count = len(self.world_to_camera)
        if self.world_to_camera.shape != (count, 4, 4) or self.intrinsics.shape != (count, 3, 3):
            raise ValueError(
                f"world_to_camera {tuple(self.world_to_camera.shape)} and intrinsics {tuple(self.intrinsics.shape)} "
                "must be (V, 4, 4) and (V, 3, 3)."
            )

    def __len__(self) -> int:
        return len(self.world_to_camera)

    def __getitem__(self, views: slice) -> Cameras:
        return Cameras(self.world_to_camera[views], self.intrinsics[views])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """The same cameras on another device or in another precision."""
        return Cameras(self.world_to_camera.to(device, dtype), self.intrinsics.to(device, dtype))

    @property
    def centres(self) -> Tensor:
        """(V, 3): the cameras' positions in the world."""
        rotation, shift = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        return -(rotation.mT @ shift[..., None])[..., 0]

    def rays(
        self, view: int, height: int, width: int, offset: float = 0.5, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Origin (3,) and directions (H, W, 3) of one camera's rays in the world, one a pixel, fp64.

        A direction covers one unit of camera-space depth: ``origin + depth * direction`` un-projects a depth map.
        ``offset`` is the point of the pixel that its ray goes through: 0.5 is the centre, 0 the upper left corner.
        ``only``: (H, W) bool, which gives directions (N, 3) of those pixels, row by row.
        """
        to_camera, intrinsics = self._exact(view)
        to_world = np.linalg.inv(to_camera)  # a rotation of fp32 numbers is not quite orthogonal
        right, down, forward = (to_world[:3, :3] @ np.linalg.inv(intrinsics)).T
        v, u = ((np.arange(size) + offset) / size for size in (height, width))
        of_rows, of_columns = forward + v[:, None] * down, u[:, None] * right
        if only is None:
            return to_world[:3, 3], of_rows[:, None] + of_columns
        row, column = np.divmod(np.flatnonzero(only), width)
        # Axis by axis: a third of the time of rows of three numbers.
        directions = [of_rows[:, axis].take(row) + of_columns[:, axis].take(column) for axis in range(3)]
        return to_world[:3, 3], np.stack(directions).T

    def project(self, view: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, 3) as one camera sees them: (N, 2) in units of width and height, and their depths (N,), fp64."""
        to_camera, intrinsics = self._exact(view)
        seen = points @ to_camera[:3, :3].T + to_camera[:3, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            return (seen @ intrinsics.T)[:, :2] / seen[:, 2:], seen[:, 2]

    def _exact(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        # NumPy: on busy cores, starting torch's threads takes longer than these small sums.
        pose, intrinsics = self.world_to_camera[view], self.intrinsics[view]
        return pose.to("cpu", torch.float64).numpy(), intrinsics.to("cpu", torch.float64).numpy()

    @staticmethod
    def looking_at_centre(positions: Tensor, fov: float = FOV) -> Cameras:
        """Square images of ``fov`` degrees from positions (V, 3), all looking at the origin, with the z axis up.

        From straight above or below, the y axis is up.
        """
        forward = -torch.nn.functional.normalize(positions, dim=-1)
        up = torch.tensor([0.0, 0.0, 1.0]).to(positions).expand_as(positions)
        steep = forward[:, 2:].abs() > 1 - 1e-6
        up = torch.where(steep, torch.tensor([0.0, 1.0, 0.0]).to(positions), up)
        right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
        rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
        poses = torch.eye(4).to(positions).repeat(len(positions), 1, 1)
        poses[:, :3, :3] = rotation
        poses[:, :3, 3] = -(rotation @ positions[..., None])[..., 0]
        return Cameras(poses, _intrinsics(torch.full((len(positions),), fov).to(positions)))

    @staticmethod
    def from_opengl(camera_to_world: Tensor, fov: Tensor) -> Cameras:
        """Square images of ``fov`` (V,) degrees from poses (V, 4, 4) as Blender and NeRF files hold them.

        They map camera to world; the camera has x right, y up and looks along -z.
        """
        flip = torch.tensor([1.0, -1.0, -1.0, 1.0]).to(camera_to_world)
        return Cameras(torch.linalg.inv(camera_to_world * flip), _intrinsics(fov.to(camera_to_world)))

    @staticmethod
    def sphere(count: int, radius: float = RADIUS, fov: float = FOV) -> Cameras:
        """``count`` cameras on a sphere at the points of a Hammersley sequence: evenly spread, the same each time.

        TRELLIS uses the same radius and field of view, but takes three quarters of its views from above.
        """
        u = torch.arange(count, dtype=torch.float64) / count
        yaw, pitch = (
            2 * pi * torch.tensor([radical_inverse(i, 2) for i in range(count)], dtype=torch.float64),
            torch.acos(1 - 2 * u) - pi / 2,
        )
        return Cameras.looking_at_centre((radius * _direction(yaw, pitch)).float(), fov)

    @staticmethod
    def turntable(count: int, pitch: float = 20.0, radius: float = RADIUS, fov: float = FOV) -> Cameras:
        """``count`` cameras once around the z axis, ``pitch`` degrees above the ground, starting on the -y side."""
        yaw = 2 * pi * torch.arange(count, dtype=torch.float64) / max(count, 1) - pi / 2
        pitches = torch.full_like(yaw, radians(pitch))
        return Cameras.looking_at_centre((radius * _direction(yaw, pitches)).float(), fov)


def _intrinsics(fov: Tensor) -> Tensor:
    """(V, 3, 3) of square images from degrees (V,)."""
    intrinsics = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 1.0]]).to(fov).repeat(len(fov), 1, 1)
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = 0.5 / torch.tan(torch.deg2rad(fov) / 2)
    return intrinsics


def _direction(yaw: Tensor, pitch: Tensor) -> Tensor:
    """(V, 3) unit vectors."""
    return torch.stack([yaw.cos() * pitch.cos(), yaw.sin() * pitch.cos(), pitch.sin()], dim=-1)


def radical_inverse(number: int, base: int) -> float:
    """The digits of ``number`` in ``base``, mirrored at the radix point (van der Corput)."""
    value, digit = 0.0, 1.0
    while number:
        digit /= base
        value += number % base * digit
        number //= base
    return value
