"""``Gaussians``: a 3D asset as coloured Gaussians, its .ply files, and images and videos of it.

The .ply layout is that of 3D Gaussian splatting (Kerbl et al. 2023) and its viewers: float32, opacity as logit, scale
as natural logarithm, colour as the constant term of spherical harmonics (rgb = 0.5 + 0.282 f_dc).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf, pi
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from atoken.atomic import Target, atomic_path, called, suffix_of
from atoken.cameras import Cameras
from atoken.errors import AtokenWarning, MediaError
from atoken.media.image import Image
from atoken.media.limits import DEFAULT_LIMITS, Limits
from atoken.media.ply import HEADER_BYTES, Header, read_header
from atoken.media.source import Source, name_of, opened, translated
from atoken.media.video_writer import VideoWriter
from atoken.rasterize import NEAR, Splats, rasterize
from atoken.summary import Summary

Up = Literal["z", "y", "-y"]

_SHAPES = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": (), "colors": (3,)}
_VIEW = 512  # pixels a side of a saved image or video
_FRAMES, _FPS = 72, 24  # of a saved video: one turn in three seconds


@dataclass(frozen=True, eq=False, repr=False)
class Gaussians(Summary):
    """M Gaussians in the world of ``atoken/cameras.py`` (z up, an asset in [-0.5, 0.5]^3); floats on one device.

    means: (M, 3). scales: (M, 3) standard deviations along the Gaussian's own axes, above 0. quats: (M, 4) w, x, y, z,
    of length 1, from its own axes to those of the world. opacities: (M,) in 0..1. colors: (M, 3) RGB, not clamped; the
    renderer draws values below 0 as 0. Raises ValueError for other shapes.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    colors: Tensor

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            if getattr(self, name).shape != (len(self.means), *shape):
                got = tuple(getattr(self, name).shape)
                raise ValueError(f"{name} must be {(len(self.means), *shape)}, one row for each Gaussian, got {got}.")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def splats(self) -> Splats:
        """The five tensors in the order that ``rasterize`` takes them."""
        return self.means, self.scales, self.quats, self.opacities, self.colors

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Gaussians:
        """The same Gaussians on another device or in another precision."""
        return Gaussians(*(getattr(self, field.name).to(device, dtype) for field in fields(self)))

    def clone(self) -> Gaussians:
        """Copies, which take part in autograd even where these are of inference mode."""
        return Gaussians(*(getattr(self, field.name).clone() for field in fields(self)))

    def render(
        self,
        cameras: Cameras,
        size: int | tuple[int, int],
        *,
        background: Tensor | Sequence[float] = (0.0, 0.0, 0.0),
        near: float = NEAR,
        far: float = inf,
    ) -> Tensor:
        """(V, H, W, 3) RGB images from V cameras, differentiable, not clamped at 1.

        size: (H, W), or the side of a square. The other arguments are those of ``rasterize``.
        """
        size = (size, size) if isinstance(size, int) else size
        return rasterize(self.splats, cameras, size, background=background, near=near, far=far).rgb

    def image_grid(self, cameras: Cameras | None = None, size: int = 256, columns: int = 4) -> Image:
        """One image of square views on black, in rows of ``columns``; without ``cameras``, eight views all around."""
        cameras = Cameras.turntable(8) if cameras is None else cameras
        columns = min(columns, len(cameras))
        grid = np.zeros((-(-len(cameras) // columns), columns, size, size, 3), np.uint8)
        for view in range(len(cameras)):
            grid[view // columns, view % columns] = self._view(cameras[view : view + 1], size)[0]
        return Image(grid.swapaxes(1, 2).reshape(-1, columns * size, 3))

    def save(self, target: Target, *, format: str | None = None, up: Up = "z") -> None:
        """Write, atomically, a .ply of all Gaussians, a .png of one view, or an .mp4 of one turn of the camera.

        target: a path, or a binary file object, which gets a .ply unless its name or ``format`` says otherwise.
        up: the axis of the .ply file that points up. "z" as here; "y" as in glTF and three.js; "-y" as in files of 3DGS
        and TRELLIS and in their viewers, whose axes are those of a camera. A .ply is lossless up to fp32 rounding if
        opacities are in 0..1 and scales above 0. Raises: MediaError (another suffix, values that are not finite, a
        failure to write).
        """
        suffix = suffix_of(target, ".ply", format)
        if suffix == ".ply":
            _write_ply(_rotated(self, *_rotation_to(up)), target)
        elif suffix == ".png":
            self.image_grid(Cameras.turntable(1), _VIEW).save(target, format="png")
        elif suffix == ".mp4":
            self._save_turntable(target)
        else:
            raise MediaError(
                f"Cannot write {called(target)}: Gaussians are written as .ply, .png or .mp4; use such a suffix."
            )

    @staticmethod
    def load(source: Source, *, name: str | None = None, up: Up = "z", limits: Limits = DEFAULT_LIMITS) -> Gaussians:
        """Read a binary .ply of 3D Gaussian splatting from a path, bytes, or a file; in fp32 on the CPU.

        ``up`` as in ``save``. Properties without a field here (view-dependent colour f_rest_*) are skipped with an
        AtokenWarning. The declared size is checked against the file and ``limits.max_memory`` before the file is read.
        Raises: MediaError (missing, not such a file, damaged, truncated, over the limit, values that are not finite).
        """
        cos, sin = _rotation_to(up)
        name = name_of(source, name)
        return _rotated(_activated(_read_ply(source, name, limits), name), cos, -sin)

    def _save_turntable(self, target: Target) -> None:
        cameras = Cameras.turntable(_FRAMES)
        with VideoWriter(target, _FPS, size=(_VIEW, _VIEW), format="mp4") as writer:
            # Some views take a second each: on a terminal, a bar on standard error says how far it is.
            for view in tqdm(range(_FRAMES), "turntable", unit=" views", delay=2, disable=None, leave=False):
                writer.write(self._view(cameras[view : view + 1], _VIEW))

    @torch.no_grad()
    def _view(self, camera: Cameras, size: int) -> np.ndarray:
        """(1, size, size, 3) uint8."""
        pixels: np.ndarray = (self.render(camera, size).clamp(0, 1) * 255).round().byte().cpu().numpy()
        return pixels


def _rotation_to(up: str) -> tuple[float, float]:
    """Cosine and sine of the rotation about x that brings z to ``up``. Raises: MediaError."""
    rotations = {"z": (1.0, 0.0), "y": (0.0, -1.0), "-y": (0.0, 1.0)}
    if up not in rotations:
        raise MediaError(f"up must be one of {', '.join(rotations)}, got {up!r}.")
    return rotations[up]


def _rotated(gaussians: Gaussians, cos: float, sin: float) -> Gaussians:
    """All Gaussians, rotated about the x axis."""
    (x, y, z), (qw, qx, qy, qz) = gaussians.means.unbind(-1), gaussians.quats.unbind(-1)
    means = torch.stack([x, y * cos - z * sin, y * sin + z * cos], dim=-1)
    c = ((1 + cos) / 2) ** 0.5  # of half the angle
    s = sin / (2 * c)
    quats = torch.stack([c * qw - s * qx, c * qx + s * qw, c * qy - s * qz, c * qz + s * qy], dim=-1)
    return Gaussians(means, gaussians.scales, quats, gaussians.opacities, gaussians.colors)


# The .ply file.

_MEANS, _NORMALS, _DC = ("x", "y", "z"), ("nx", "ny", "nz"), ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALES, _QUATS = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
_FIELDS = (*_MEANS, *_NORMALS, *_DC, "opacity", *_SCALES, *_QUATS)
SH_0 = 0.5 / pi**0.5  # the constant spherical harmonic


def _write_ply(gaussians: Gaussians, target: Target) -> None:
    exact = gaussians.to("cpu", torch.float64)
    tiny = torch.finfo(torch.float32).tiny
    columns = [
        exact.means, torch.zeros_like(exact.means), (exact.colors - 0.5) / SH_0,
        exact.opacities.clamp(tiny, 1 - 2**-24).logit()[:, None],  # the largest fp32 number below 1
        exact.scales.clamp_min(tiny).log(), exact.quats,
    ]  # fmt: skip
    table = torch.cat(columns, dim=1).detach().float().numpy().astype("<f4", copy=False)
    _check_finite(dict(zip(_FIELDS, table.T, strict=True)), f"Cannot write {called(target)}")
    properties = "".join(f"property float {name}\n" for name in _FIELDS)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}end_header\n"
    with atomic_path(target, MediaError) as temporary, temporary.open("wb") as file:
        file.write(header.encode())
        file.write(table.tobytes())


def _activated(table: dict[str, np.ndarray], path: str) -> Gaussians:
    """Gaussians from the stored values; the inverse of the activations of 3DGS."""

    def columns(names: Sequence[str]) -> Tensor:
        return torch.from_numpy(np.stack([table[name] for name in names], axis=1))

    quats, scales = columns(_QUATS), columns(_SCALES).exp()
    lengths = quats.norm(dim=1, keepdim=True)
    if not bool(scales.isfinite().all()) or not bool(((lengths > 0) & lengths.isfinite()).all()):
        raise MediaError(
            f"Cannot read {path}: some scales are beyond fp32 or some rotations have length 0; export it again."
        )
    opacities, colors = torch.from_numpy(table["opacity"]).sigmoid(), columns(_DC) * SH_0 + 0.5
    return Gaussians(columns(_MEANS), scales, quats / lengths, opacities, colors)


def _read_ply(source: Source, name: str, limits: Limits) -> dict[str, np.ndarray]:
    """The stored values of the properties of ``_FIELDS`` that are used, each (M,) fp32 and finite."""
    failed = f"Cannot read {name}"
    with opened(source, name) as file, translated(failed):
        header = read_header(file.read(HEADER_BYTES), failed)
        count, row = _vertex_layout(header, failed, name)
        size, left = count * row.itemsize, file.seek(0, os.SEEK_END) - header.size
        if size > left:
            raise MediaError(f"{failed}: it declares {count:,} Gaussians but is shorter; export or copy it again.")
        if size > limits.max_memory:
            raise MediaError(
                f"{failed}: its {count:,} Gaussians take {size:,} bytes, over the limit of {limits.max_memory:,}; "
                "raise the limit (Limits in Python) if you trust the file."
            )
        file.seek(header.size)
        table = np.frombuffer(file.read(size), row)
    with np.errstate(over="ignore"):  # doubles beyond fp32 become infinite and are refused below
        used = {name: table[name].astype(np.float32) for name in _FIELDS if name not in _NORMALS}
    _check_finite(used, failed)
    return used


def _vertex_layout(header: Header, failed: str, name: str) -> tuple[int, np.dtype]:
    """Number and layout of the vertices that follow in the file; warns of unused properties. Raises: MediaError."""
    if header.format != "binary_little_endian":
        raise MediaError(f"{failed}: only binary little-endian .ply files are read; export it as such.")
    if not header.elements or header.elements[0].name != "vertex":
        raise MediaError(f"{failed}: its first element is not 'vertex', so it is not a .ply of Gaussians.")
    _, count, properties = header.elements[0]
    names = [property.name for property in properties]
    missing = [field for field in _FIELDS if field not in names and field not in _NORMALS]
    odd = "has a property twice" if len(set(names)) < len(names) else ""
    odd = odd or ("has a list" if any(property.items for property in properties) else "")
    if missing or odd:
        what = f"lacks {', '.join(missing)}" if missing else odd
        raise MediaError(
            f"{failed}: it {what}, so it is not a .ply of Gaussians; meshes are read by atoken.load_media."
        )
    unused = [field for field in names if field not in _FIELDS]
    if unused:
        listed = unused[0] if len(unused) == 1 else f"{unused[0]} to {unused[-1]} ({len(unused)})"
        warnings.warn(f"{name} has properties that are not read: {listed}.", AtokenWarning, stacklevel=4)
    return count, np.dtype([(property.name, property.type) for property in properties])


def _check_finite(columns: dict[str, np.ndarray], failed: str) -> None:
    if wrong := [name for name, values in columns.items() if not np.isfinite(values).all()]:
        raise MediaError(f"{failed}: {', '.join(wrong)} must be finite everywhere.")
