"""A folder of rendered views -> ``Views``: images, depth maps and a NeRF-style ``transforms.json``.

The layout is that of TRELLIS's Blender script and of scripts/pack_multiview_feat.py of the published code. The file
holds ``frames``, each with:

* ``file_path`` of a square image, inside the folder (``.png`` if it has no suffix);
* ``transform_matrix``, camera to world, 4x4, with Blender's camera axes (x right, y up, looking along -z);
* ``camera_angle_x`` in radians, here or once for all frames.

A frame's depth map has the name of its image: ``000_depth.npy`` for ``000.png``, camera-space z in world units,
negative, above 10^6 or NaN where there is no surface (the published script converts ``.exr`` files, which are not read
here); or ``000_depth.png``, 16 bits from the frame's ``depth: {"min": ..., "max": ...}``, full scale = no surface.
Other entries are ignored. The asset is expected in [-0.5, 0.5]^3, z up, as that script scales it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from atoken.errors import MediaError
from atoken.media.formats import Format
from atoken.media.image import read_image
from atoken.media.limits import DEFAULT_LIMITS, Limits
from atoken.media.source import translated
from atoken.summary import Summary

if TYPE_CHECKING:
    from atoken.cameras import Cameras

TRANSFORMS = "transforms.json"
FORMAT = Format("views", (), lambda head: False, TRANSFORMS)
_MAX_JSON = 16 << 20  # bytes; a view takes about a thousand
_MAX_VIEWS = 4096  # TRELLIS renders 150
_FAR = 1e6  # a depth beyond it is the background
_RIGID = 1e-3  # error of a rotation that counts as rounding
_FULL = 65_535  # of a 16-bit depth map

Number = Annotated[float, Meta(ge=-_FAR, le=_FAR)]
Row = tuple[Number, Number, Number, Number]
Angle = Annotated[float, Meta(gt=0, lt=math.pi)]


class _Range(Struct):
    min: Annotated[float, Meta(ge=0, le=_FAR)]
    max: Annotated[float, Meta(ge=0, le=_FAR)]

    def __post_init__(self) -> None:
        if self.min >= self.max:
            raise ValueError("min must be below max")


class _Frame(Struct):
    file_path: Annotated[str, Meta(pattern=r"^[^\0]+\Z")]
    transform_matrix: tuple[Row, Row, Row, Row]
    camera_angle_x: Angle | None = None
    depth: _Range | None = None

    def __post_init__(self) -> None:
        pose = np.array(self.transform_matrix)
        rotation = pose[:3, :3]
        rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=_RIGID) and np.linalg.det(rotation) > 0
        if not rigid or (pose[3] != (0, 0, 0, 1)).any():
            raise ValueError("transform_matrix must be a rotation and a shift")


class _Transforms(Struct):
    frames: Annotated[list[_Frame], Meta(min_length=1, max_length=_MAX_VIEWS)]
    camera_angle_x: Angle | None = None

    def __post_init__(self) -> None:
        for number, frame in enumerate(self.frames):
            frame.camera_angle_x = frame.camera_angle_x or self.camera_angle_x
            if frame.camera_angle_x is None:
                raise ValueError(f"camera_angle_x of frame {number} is missing")


@dataclass(frozen=True, eq=False, repr=False)
class Views(Summary):
    """An asset seen from V cameras.

    rgb: (V, H, W, 3) uint8, black where there is no surface. depth: (V, h, w) float32, camera-space z, negative where
    there is no surface; its size may differ from that of ``rgb``. ``pixel_offset``: where in its pixel a depth was
    taken: 0.5 the centre, as our own renders do; 0 the upper left corner, as the published script reads its files.
    Raises: MediaError.
    """

    rgb: np.ndarray
    depth: np.ndarray
    cameras: Cameras
    pixel_offset: float = 0.5

    def __post_init__(self) -> None:
        views = len(self.cameras)
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 4 or self.rgb.shape[-1] != 3 or 0 in self.rgb.shape:
            raise MediaError(f"rgb must be uint8 of shape (V, H, W, 3), got {self.rgb.dtype} {self.rgb.shape}.")
        if self.depth.dtype != np.float32 or self.depth.ndim != 3 or 0 in self.depth.shape:
            raise MediaError(f"depth must be float32 of shape (V, h, w), got {self.depth.dtype} {self.depth.shape}.")
        if not len(self.rgb) == len(self.depth) == views:
            raise MediaError(f"{len(self.rgb)} images, {len(self.depth)} depth maps and {views} cameras do not match.")
        if not np.isfinite(self.depth).all():
            raise MediaError("depth must be finite; mark pixels that show no surface by a negative depth.")

    def __len__(self) -> int:
        return len(self.rgb)

    @property
    def mask(self) -> np.ndarray:
        """(V, h, w) bool: pixels whose depth is that of a surface."""
        return self.depth >= 0

    def points(self, view: int) -> np.ndarray:
        """(points, 3) fp64: the depth map of one view, un-projected into the world, row by row."""
        depth, seen = self.depth[view], self.mask[view]
        origin, directions = self.cameras.rays(view, depth.shape[0], depth.shape[1], self.pixel_offset, only=seen)
        return origin + depth[seen, None] * directions


def read_views(folder: str | Path, size: int = 256, *, limits: Limits = DEFAULT_LIMITS) -> Views:
    """Read a folder with a ``transforms.json``; images are resized to ``size`` (Lanczos), depth maps are not.

    As in the published script, images are black where alpha is 0 and keep their colour elsewhere, and depth was taken
    at the upper left corner of a pixel (``pixel_offset`` 0). Raises: MediaError (missing, malformed or outside the
    folder, over a limit).
    """
    if not 1 <= size <= limits.max_side:
        raise MediaError(f"size must be from 1 to {limits.max_side:,} pixels, got {size}.")
    root = Path(folder)
    frames = _read_frames(root)
    rgb, depth = [], []
    for number, frame in enumerate(frames):
        name = frame.file_path if Path(frame.file_path).suffix else f"{frame.file_path}.png"
        path = _inside(root, root / name)
        rgb.append(_read_image(path, size, limits))
        depth.append(_read_depth(root, path, frame, number, limits))
        if depth[-1].shape != depth[0].shape:
            raise MediaError(f"The depth maps of {root} differ in size: {depth[0].shape} and {depth[-1].shape}.")
        _check_memory(len(frames), rgb[-1].nbytes + depth[-1].nbytes, limits)
    return Views(np.stack(rgb), np.stack(depth), _cameras(frames), pixel_offset=0.0)


def _read_frames(root: Path) -> list[_Frame]:
    """The frames of ``transforms.json``, each with its ``camera_angle_x``."""
    path = _inside(root, root / TRANSFORMS)
    with translated(f"Cannot read {path}"):
        if path.stat().st_size > _MAX_JSON:
            raise MediaError(f"Cannot read {path}: it is over {_MAX_JSON >> 20} MB, too large for a list of views.")
        return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), _Transforms).frames


def _inside(root: Path, path: Path) -> Path:
    """The same path. Raises: MediaError (not a plain file, or outside of the folder, also through a link)."""
    with translated(f"Cannot read {path}"):
        if not path.resolve().is_relative_to(root.resolve()):
            raise MediaError(f"Cannot read {path}: it is outside of {root}; views are read from one folder only.")
        if not path.is_file():
            raise MediaError(f"Cannot read {path}: there is no such file.")
    return path


def _read_image(path: Path, size: int, limits: Limits) -> np.ndarray:
    """(size, size, 3) uint8 on black."""
    import PIL.Image

    image = read_image(path, limits=limits)
    if image.pixels.shape[0] != image.pixels.shape[1]:
        raise MediaError(
            f"Cannot use {path}: views must be square, it is {image.pixels.shape[1]}x{image.pixels.shape[0]}."
        )
    pixels = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    if len(pixels) != size:  # Pillow weights colours by their alpha
        pixels = np.asarray(PIL.Image.fromarray(pixels).resize((size, size), PIL.Image.Resampling.LANCZOS))
    return pixels if image.alpha is None else np.where(pixels[..., 3:] > 0, pixels[..., :3], 0)


def _read_depth(root: Path, image: Path, frame: _Frame, number: int, limits: Limits) -> np.ndarray:
    """(h, w) float32, -1 where there is no surface."""
    array, grey = (image.with_name(f"{image.stem}_depth{suffix}") for suffix in (".npy", ".png"))
    with translated(f"Cannot read {image}"):
        if array.exists():
            return _read_array(_inside(root, array), limits)
        if not grey.exists():
            raise MediaError(f"{image} has no depth map; put {array.name} or a 16-bit {grey.name} into its folder.")
    if frame.depth is None:
        raise MediaError(f"Frame {number} of {TRANSFORMS} must state the range of its depth map, depth: min and max.")
    values, scale = _read_16_bit(_inside(root, grey), limits), (frame.depth.max - frame.depth.min) / _FULL
    return np.where(values == _FULL, -1, frame.depth.min + values * scale).astype(np.float32)


def _read_array(path: Path, limits: Limits) -> np.ndarray:
    with translated(f"Cannot read {path}"):
        array = np.lib.format.open_memmap(path, mode="r")  # mapped: a false shape costs no memory
        if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8:
            raise MediaError(f"Cannot read {path}: a depth map must be one 2-dimensional array of floats.")
        height, width = array.shape
        limits.check_size(height, width, f"The depth map {path}")
        depth = array.astype(np.float64)  # in fp16, _FAR would be infinite
    return np.where((depth >= 0) & (depth <= _FAR), depth, -1).astype(np.float32)


def _read_16_bit(path: Path, limits: Limits) -> np.ndarray:
    """(h, w) int32 in 0..65535."""
    from PIL.PngImagePlugin import PngImageFile

    with translated(f"Cannot read {path}"), path.open("rb") as file:
        pil = PngImageFile(file)
        if not pil.mode.startswith("I"):
            raise MediaError(f"Cannot read {path}: a depth map must be a 16-bit grey PNG, or an array (.npy).")
        limits.check_size(pil.height, pil.width, f"The depth map {path}")
        return np.asarray(pil, np.int32)


def _cameras(frames: list[_Frame]) -> Cameras:
    import torch

    from atoken.cameras import Cameras

    poses = torch.tensor([frame.transform_matrix for frame in frames], dtype=torch.float64)
    angles = torch.tensor([frame.camera_angle_x for frame in frames], dtype=torch.float64)
    return Cameras.from_opengl(poses, torch.rad2deg(angles)).to(dtype=torch.float32)


def _check_memory(views: int, size: int, limits: Limits) -> None:
    if views * size > limits.max_memory:
        raise MediaError(
            f"{views:,} views would take {views * size >> 20:,} MB, over the limit of {limits.max_memory >> 20:,} MB; "
            "use fewer views or raise max_memory in Limits."
        )
