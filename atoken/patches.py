"""Pixels, packed patches and dense grids: differentiable, on any device, in any float dtype.

A patch is 4 frames x 16 rows x 16 columns, flattened in the order frame, row, column, channel; an image is a video of
one frame. H and W are padded to whole patches by repeating the edge pixels, T with zeros (grey), and the padding is cut
off again (docs/conventions.md). Letters: ``T`` frames or time steps, ``H`` rows, ``W`` columns; others as in tokens.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.errors import TensorError
from atoken.tokens import SparseTokens

if TYPE_CHECKING:
    from atoken.io.token_file import Tokens

PATCH = (4, 16, 16)
LARGEST = 10.0  # of a pixel nominally in [-1, 1]: values beyond are of another scale, such as 0 to 255
FROM_UINT8 = "of values from 0 to 255 pass x / 127.5 - 1"
Size = tuple[int, ...]  # (H, W) of an image, (T, H, W) of a video, in pixels


def grid(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Time steps, rows and columns of patches that cover a video."""
    return tuple(-(-size // patch) for size, patch in zip((frames, height, width), PATCH, strict=True))  # type: ignore[return-value]


def grid_coords(steps: int, rows: int, columns: int) -> Tensor:
    """(N, 4) int32: every position of a full grid, ordered by t, row, column; z is 0."""
    axes = (torch.arange(size, dtype=torch.int32) for size in (steps, rows, columns, 1))
    return torch.cartesian_prod(*axes).reshape(-1, 4)


def fold(values_BTHWC: Tensor) -> SparseTokens:
    """Videos of one size (B, T, H, W, 3) as B samples of patches (N, 3072) on their full grids."""
    patches = to_patches(values_BTHWC)
    samples, steps, rows, columns, _ = patches.shape
    coords = grid_coords(steps, rows, columns).to(patches.device).repeat(samples, 1)
    return SparseTokens(patches.flatten(0, 3), coords, (steps * rows * columns,) * samples)


def to_patches(values_BTHWC: Tensor) -> Tensor:
    """Videos (B, T, H, W, 3) as grids of patches (B, steps, rows, columns, 3072)."""
    x, (frames, height, width) = values_BTHWC, values_BTHWC.shape[1:4]
    steps, rows, columns = grid(frames, height, width)
    if behind := steps * PATCH[0] - frames:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, behind))
    if below := rows * PATCH[1] - height:
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, below, -1, -1)], dim=2)
    if right := columns * PATCH[2] - width:
        x = torch.cat([x, x[:, :, :, -1:].expand(-1, -1, -1, right, -1)], dim=3)
    patches = "b (t pt) (h ph) (w pw) c -> b t h w (pt ph pw c)"
    return rearrange(x, patches, pt=PATCH[0], ph=PATCH[1], pw=PATCH[2])


def unfold(tokens: SparseTokens, size: tuple[int, int, int]) -> Tensor:
    """Samples of patches (N, 3072) of one size (T, H, W) back to videos (B, T, H, W, 3), padding cut off."""
    return from_patches(dense(tokens, *grid(*size)), size)


def from_patches(patches: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Grids of patches (B, steps, rows, columns, 3072) back to videos (B, T, H, W, 3), padding cut off.

    Patches of 768 values are of one frame.
    """
    videos = "b t h w (pt ph pw c) -> b (t pt) (h ph) (w pw) c"
    values = rearrange(patches, videos, ph=PATCH[1], pw=PATCH[2], c=3)
    return values[:, : size[0], : size[1], : size[2]]


def dense(tokens: SparseTokens, steps: int, rows: int, columns: int) -> Tensor:
    """(B, steps, rows, columns, D): features at their positions, in whatever order the tokens are.

    t counts from the first step of each sample. A position without a token is 0 (a grey patch).
    """
    samples = len(tokens.lengths)
    t, row, column, _ = tokens.coords.long().unbind(1)
    first_B, sample_N = tokens.reduce_coords("amin")[:, 0], tokens.sample_N
    index_N = ((sample_N * steps + t - first_B[sample_N]) * rows + row) * columns + column
    feats = tokens.feats.new_zeros(samples * steps * rows * columns, tokens.feats.shape[1])
    feats[index_N.to(feats.device)] = tokens.feats
    return feats.unflatten(0, (samples, steps, rows, columns))


def pack_pixels(x: Tensor | Sequence[Tensor]) -> SparseTokens:
    """Images (B, 3, H, W) or videos (B, 3, T, H, W) in [-1, 1] as patches; or a list without B, of mixed sizes.

    Raises: TensorError for another shape or dtype, and for values of another scale.
    """
    packed = _packed(x, _fold_pixels)
    if not torch.compiler.is_compiling() and packed.feats.numel():
        largest = float(packed.feats.detach().abs().amax())
        if not largest <= LARGEST:  # also NaN
            raise TensorError(f"Pixels must be in [-1, 1], but there are values of {largest:g}; {FROM_UINT8}.")
    return packed


def unpack_pixels(tokens: SparseTokens, sizes: Sequence[Size]) -> Tensor | list[Tensor]:
    """Patches as images (B, 3, H, W) or videos (B, 3, T, H, W), of a size for each sample; a list if they differ."""
    if len(set(sizes)) > 1:
        parts = zip(tokens.unpack(), sizes, strict=True)
        return [one for part, size in parts for one in unpack_pixels(part, [size])]
    values = unfold(tokens, _timed(sizes[0])).permute(0, 4, 1, 2, 3)
    return values.reshape(*values.shape[:2], *sizes[0])


def from_grid(z: Tensor | Sequence[Tensor]) -> SparseTokens:
    """Dense grids (B, C, T, H, W), or (B, C, H, W) of images, as packed tokens; or a list without B, of mixed sizes.

    The tokens are in the order t, row, column. Raises: TensorError for another shape or dtype.
    """
    return _packed(z, _flatten_grid)


def to_grid(tokens: SparseTokens | Tokens) -> Tensor | list[Tensor]:
    """Features of packed tokens, or latents of ``Tokens``, as a dense grid (B, C, T, H, W).

    A list of (C, T, H, W) where the samples have different grids. Raises: TensorError for tokens that do not fill
    their grids, as those of 3D assets do not.
    """
    packed = tokens if isinstance(tokens, SparseTokens) else getattr(tokens, "packed", None)
    if packed is None:
        raise TensorError(f"to_grid takes SparseTokens or Tokens, got a {type(tokens).__name__}.")
    grids = extents(packed)
    if len(set(grids)) > 1:
        return [one for part in packed.unpack() for one in to_grid(part)]
    return dense(packed, *grids[0]).permute(0, 4, 1, 2, 3).contiguous()


def extents(tokens: SparseTokens) -> list[tuple[int, int, int]]:
    """Time steps, rows and columns of each sample. Raises: TensorError for a sample that does not fill its grid."""
    least, most = tokens.reduce_coords("amin"), tokens.reduce_coords("amax")
    sides = (most - least).tolist()
    for (_, *most_of), side in zip(most.tolist(), sides, strict=True):
        side[1:] = most_of  # rows and columns count from 0, time steps from the first
    for length, side in zip(tokens.lengths, sides, strict=True):
        steps, rows, columns, layers = (last + 1 for last in side)
        if layers != 1 or steps * rows * columns != length:
            raise TensorError(
                f"{length} tokens do not fill a grid of {steps} steps, {rows} rows, {columns} columns and {layers} "
                "layers; only images and videos have dense grids."
            )
    if not sides:
        raise TensorError("There are no samples; pass at least one.")
    return [(steps + 1, rows + 1, columns + 1) for steps, rows, columns, _ in sides]


def sizes_of(tokens: SparseTokens, sizes: Size | Sequence[Size] | None = None, *, images: bool = True) -> list[Size]:
    """The size in pixels of each sample: as given, one for all or one for each, or else that of whole patches.

    images: whether a single time step is an image (H, W) where no size is given, rather than a video of 4 frames.
    Raises: TensorError for sizes that do not fit the tokens.
    """
    grids = extents(tokens)
    if sizes is None:
        whole = [tuple(side * patch for side, patch in zip(one, PATCH, strict=True)) for one in grids]
        return [size[1:] if images and one[0] == 1 else size for size, one in zip(whole, grids, strict=True)]
    one = isinstance(sizes, tuple) and all(isinstance(side, int) for side in sizes)
    each = cast(list[Size], [sizes] * len(grids) if one else sizes)
    if not isinstance(each, list | tuple) or not all(isinstance(size, tuple) for size in each):
        raise TensorError(f"sizes must be (H, W) or (T, H, W) in pixels, or a list of these, got {sizes!r}.")
    each = [tuple(size) for size in each]
    if len(each) != len(grids):
        raise TensorError(f"There are {len(each)} sizes for {len(grids)} samples; pass one for all, or one for each.")
    for size, cells in zip(each, grids, strict=True):
        if len(size) not in (2, 3) or grid(*_timed(size)) != cells:
            raise TensorError(
                f"The size {size} does not fit latents of {cells[0]} steps, {cells[1]} rows and {cells[2]} columns; "
                "pass (H, W) or (T, H, W) in pixels."
            )
    return each


def _timed(size: Size) -> tuple[int, int, int]:
    """(T, H, W) of an image's (H, W), too."""
    frames, height, width = (1, *size)[-3:]
    return frames, height, width


def _packed(x: Tensor | Sequence[Tensor], pack: Callable[[Tensor], SparseTokens]) -> SparseTokens:
    """A dense batch, or a list of samples without B, as one packed batch."""
    if isinstance(x, Tensor):
        return pack(x)
    if not isinstance(x, list | tuple) or not x or not all(isinstance(one, Tensor) for one in x):
        raise TensorError(f"Pass a tensor or a list of at least one tensor, got {type(x).__name__}.")
    if len({(one.dtype, one.device) for one in x}) > 1:
        raise TensorError("The tensors of a list must have one dtype and be on one device.")
    return SparseTokens.pack([pack(one[None]) for one in x])


def _fold_pixels(x: Tensor) -> SparseTokens:
    return fold(_with_time(x, "Pixels", channels=3).permute(0, 2, 3, 4, 1))


def _flatten_grid(z: Tensor) -> SparseTokens:
    z = _with_time(z, "Latents")
    coords = grid_coords(*z.shape[2:]).to(z.device).repeat(len(z), 1)
    return SparseTokens(rearrange(z, "b c t h w -> (b t h w) c").contiguous(), coords, (z[0, 0].numel(),) * len(z))


def _with_time(x: Tensor, what: str, channels: int | None = None) -> Tensor:
    """(B, C, T, H, W) of (B, C, H, W), too. Raises: TensorError for another shape or dtype."""
    if not x.is_floating_point():
        raise TensorError(f"{what} must be floating point, got {x.dtype}{'; ' + FROM_UINT8 if channels else ''}.")
    wanted = channels or "C"
    if x.ndim not in (4, 5) or 0 in x.shape or channels not in (None, x.shape[1]):
        raise TensorError(
            f"{what} must be (B, {wanted}, H, W) or (B, {wanted}, T, H, W), none of them 0, or in a list without B; "
            f"got {tuple(x.shape)}."
        )
    return x[:, :, None] if x.ndim == 4 else x
