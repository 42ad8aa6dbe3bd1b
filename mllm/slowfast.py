"""Which features of media a language model sees, in which order, and how many: SlowFast-LLaVA-1.5 (arXiv 2503.18943).

A video has two pathways: some frames in detail (slow), all frames coarsely (fast). Images are seen whole, assets as
pooled voxels. All counts follow from ``layout_of``, which the pooling obeys. Pure functions; letters: ``D`` width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.errors import AtokenError
from atoken.patches import PATCH, grid
from atoken.tower import VideoMode

FEATURE = -1  # in a layout: a feature; numbers from 0 on are learned separators
SEPARATORS = ("image", "video", "asset", "row", "pathway", "end")
IMAGE, VIDEO, ASSET, ROW, PATHWAY, END = range(len(SEPARATORS))
Layout = Literal["group", "interleave"]
Grid = tuple[int, int, int]  # steps, rows and columns of patches; of an asset its voxels a side, three times


@dataclass(frozen=True)
class SlowFast:
    """How media become tokens. Sizes that are no whole numbers from 1 on raise AtokenError.

    The numbers of frames and the sizes of pooled frames come from descriptions of SlowFast-LLaVA-1.5, whose code is not
    published, and agree with the 9K tokens a video that AToken's Table 10 states. Not confirmed are the layout, whether
    the fast pathway has the slow frames too (in the code of version 1.0 it has), and that pooling comes before the
    projector (in 1.0 after it, in Oryx before it).
    """

    frames: int = 128  # of a video at most, evenly spaced
    slow_frames: int = 32
    slow_pool: int = 2  # patches a side that become one token of a slow frame
    fast_output: int = 4  # tokens a side of a fast frame
    layout: Layout = "group"  # all slow frames and then all fast ones, or both in the order of time
    fast_includes_slow: bool = True
    video_mode: VideoMode = "frame"  # of ``ATokenVisionModel.encode_media``
    image_pool: int = 1
    asset_voxels: int = 32_768  # that the tower sees of an asset at most; its grid is halved until they fit
    asset_tokens: int = 1024  # of an asset at most; its voxels are pooled in cubes of 1, 2, 4, ... until they fit
    image_pixels: int = 1536**2  # larger images are made smaller (AToken's Table 9)
    video_pixels: int = 480**2  # of a frame

    def __post_init__(self) -> None:
        allowed = {"layout": get_args(Layout), "video_mode": get_args(VideoMode), "fast_includes_slow": (True, False)}
        for name, value in vars(self).items():
            if name in allowed and value not in allowed[name]:
                raise AtokenError(f"{name} must be one of {', '.join(map(str, allowed[name]))}, got {value!r}.")
            if name not in allowed and (not isinstance(value, int) or value < 1):
                raise AtokenError(f"{name} must be a whole number from 1 on, got {value!r}.")

    def steps(self, frames: int) -> int:
        """Time steps of a video of so many frames: four frames are a step if ``video_mode`` is tubelet."""
        return -(-frames // PATCH[0]) if self.video_mode == "tubelet" else frames


class Visit(NamedTuple):
    """One time step in one of the pathways."""

    slow: bool
    step: int


def even_indices(total: int, count: int) -> list[int]:
    """``count`` of ``total`` frames, or all if there are fewer: the first of each of ``count`` equal pieces.

    Source: linspace(0, total, count + 1), truncated, without the last (SlowFast-LLaVA 1.0).
    """
    count = min(total, count)
    return [number * total // count for number in range(count)]


def visits(steps: int, settings: SlowFast) -> list[Visit]:
    """The time steps of a video in the order of their tokens."""
    slow = even_indices(steps, settings.steps(settings.slow_frames))
    left_out = () if settings.fast_includes_slow else {*slow}
    order = [Visit(True, step) for step in slow]
    order += [Visit(False, step) for step in range(steps) if step not in left_out]
    return order if settings.layout == "group" else sorted(order, key=lambda visit: visit.step)


def frame_size(visit: Visit, rows: int, columns: int, settings: SlowFast) -> tuple[int, int]:
    """Rows and columns of tokens of a frame of so many patches."""
    if visit.slow:
        return -(-rows // settings.slow_pool), -(-columns // settings.slow_pool)
    return min(rows, settings.fast_output), min(columns, settings.fast_output)


def layout_of(modality: str, size: Grid, settings: SlowFast, cells: int = 0) -> Tensor:
    """(L,) int64: what stands at each token, ``FEATURE`` or the number of a separator.

    Each opens with the separator of its modality and closes with ``END``. Rows of an image end with ``ROW``, so that
    its shape is seen; between the pathways of a video stands ``PATHWAY``. cells: how many cubes an asset has.
    """
    steps, rows, columns = size
    if modality == "asset":
        return torch.tensor([ASSET, *[FEATURE] * cells, END])
    if modality == "image":
        pool = settings.image_pool
        row = [*[FEATURE] * -(-columns // pool), ROW]
        return torch.tensor([IMAGE, *row * -(-rows // pool), END])
    tokens = [VIDEO]
    before = None
    for visit in visits(steps, settings):
        tokens += [PATHWAY] if before not in (None, visit.slow) else []
        tokens += [FEATURE] * math.prod(frame_size(visit, rows, columns, settings))
        before = visit.slow
    return torch.tensor([*tokens, END])


def pool_frames(features: Tensor, modality: str, size: Grid, settings: SlowFast) -> Tensor:
    """Features (steps * rows * columns, D) of an image or a video, pooled and in the order of ``layout_of``: (n, D).

    At the lower and the right edge of an odd grid the mean is over the patches that there are.
    """
    frames = features.unflatten(0, size).movedim(-1, 1)
    width = features.shape[-1]
    if modality == "image":
        return _mean_pool(frames, settings.image_pool).movedim(1, -1).reshape(-1, width)
    order = visits(size[0], settings)
    slow = [visit.step for visit in order if visit.slow]
    fast = [visit.step for visit in order if not visit.slow]
    pathways = {True: _mean_pool(frames[slow], settings.slow_pool)}
    if fast:
        sides = frame_size(Visit(False, 0), *size[1:], settings)
        pathways[False] = F.adaptive_avg_pool2d(frames[fast], sides)
    rest = {pathway: iter(pooled.movedim(1, -1)) for pathway, pooled in pathways.items()}
    return torch.cat([next(rest[visit.slow]).reshape(-1, width) for visit in order])


def _mean_pool(frames: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(frames, side, ceil_mode=True, count_include_pad=False) if side > 1 else frames


def cubes(cells: Tensor, resolution: int, settings: SlowFast) -> tuple[Tensor, Tensor]:
    """Which cube each voxel is pooled into (N,), and the cubes' centres (n, 3) in [-1, 1] along x, y and z.

    cells: (N, 3), of ``resolution`` a side. Cubes are ordered by x, y, z; empty ones are left out.
    """
    side = 1
    while True:
        x, y, z = (cells.long() // side).unbind(1)
        found, index = ((x * resolution + y) * resolution + z).unique(return_inverse=True)
        if len(found) <= settings.asset_tokens:
            break
        side *= 2
    corners = torch.stack([found // resolution**2, found // resolution % resolution, found % resolution], dim=1)
    return index, (corners + 0.5) * (2 * side / resolution) - 1


def pool_voxels(features: Tensor, index: Tensor, count: int) -> Tensor:
    """Means (count, D) of an asset's features (N, D) over the cubes that ``index`` (N,) names."""
    sums = features.new_zeros(count, features.shape[1]).index_add(0, index, features)
    return sums / index.bincount(minlength=count)[:, None]


class Cost(NamedTuple):
    """Tokens of one image or video."""

    slow: int
    fast: int
    separators: int

    @property
    def total(self) -> int:
        """All tokens."""
        return sum(self)


def token_budget(settings: SlowFast, sizes: Sequence[tuple[int, ...]]) -> list[Cost]:
    """What images (H, W) and videos (T, H, W) cost, by their sizes in pixels after resizing; an image is all slow.

    An asset costs ``asset_tokens`` and two separators at most.
    """
    return [_cost(settings, size) for size in sizes]


def _cost(settings: SlowFast, size: tuple[int, ...]) -> Cost:
    modality = "image" if len(size) == 2 else "video"
    frames, height, width = (1, *size)[-3:]
    _, rows, columns = grid(1, height, width)
    steps = settings.steps(min(frames, settings.frames))
    layout = layout_of(modality, (steps, rows, columns), settings)
    features = int((layout == FEATURE).sum())
    fast = 0
    if modality == "video":
        order = visits(steps, settings)
        fast = sum(math.prod(frame_size(visit, rows, columns, settings)) for visit in order if not visit.slow)
    return Cost(features - fast, fast, len(layout) - features)
