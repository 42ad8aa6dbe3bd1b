"""3D assets as a modality: a mesh or a folder of views becomes voxels of its surface, and comes back as Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoken.media.limits import DEFAULT_LIMITS, Limits
from atoken.media.mesh import FORMATS, read_mesh
from atoken.media.source import Source
from atoken.media.views import FORMAT, Views, read_views
from atoken.mesh import Mesh
from atoken.modalities.modality import Modality

if TYPE_CHECKING:
    from atoken.gaussians import Gaussians
    from atoken.io.token_file import Tokens
    from atoken.model import ATokenModel
    from atoken.tokens import SparseTokens

SEEN_FROM, SEEN_SIDE = 8, 256  # cameras around an asset, and pixels a side, by which results are compared
MAX_RESOLUTION = 1 << 10  # voxels a side


def _read(source: Source, *, name: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Mesh | Views:
    """Read a folder of views, or a file with a mesh. Raises: MediaError, MissingExtraError."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        return read_views(source, limits=limits)
    return read_mesh(source, name=name, limits=limits)


@dataclass(frozen=True)
class VoxelPatches:
    """An asset as an encoder sees it, in few bytes: a grid of ``resolution`` cells a side, those in use, their pixels.

    cells: (N, 3) uint16. patches: (N, 768) uint8.
    """

    resolution: int
    cells: np.ndarray
    patches: np.ndarray


def voxelised(asset: Mesh | Views, coarsen: bool, resolution: int | None = None) -> VoxelPatches:
    """Make the cells and patches that a mesh or views are encoded from, in a grid of 64^3. Raises: MediaError."""
    from atoken.modalities.voxels import unvoxelize

    tokens, fields = _patchify(asset, coarsen, resolution)
    cells = tokens.coords[:, 1:].numpy().astype(np.uint16)
    return VoxelPatches(fields["size"][0], cells, unvoxelize(tokens).reshape(len(cells), -1))


def _patchify(
    asset: Mesh | Views | VoxelPatches, coarsen: bool, resolution: int | None = None
) -> tuple[SparseTokens, dict[str, Any]]:
    from atoken.modalities.views import render_views
    from atoken.modalities.voxels import RESOLUTION, VALUES, voxelize, voxels

    if isinstance(asset, VoxelPatches):
        packed = voxels(asset.cells, asset.resolution, asset.patches)
    else:
        views = render_views(asset) if isinstance(asset, Mesh) else asset
        packed = voxelize(views, resolution or RESOLUTION, over="coarsen" if coarsen else "refuse")
    tokens = packed.tokens
    return tokens.with_feats(tokens.feats[:, :VALUES]), {"size": (packed.resolution,) * 2}


def _unpatchify(model: ATokenModel, tokens: Tokens, patches: SparseTokens) -> Gaussians:
    import torch

    from atoken.modalities.voxels import RESOLUTION, VALUES

    assert model.gaussian_decoder is not None  # _refusal has said so
    with torch.inference_mode():
        decoded: Gaussians = model.gaussian_decoder(patches.with_feats(patches.feats[:, :VALUES]))[0]
    gaussians, coarser = decoded.to("cpu", torch.float32).clone(), RESOLUTION / tokens.size[0]
    return replace(gaussians, means=(gaussians.means + 0.5) * coarser - 0.5, scales=gaussians.scales * coarser)


def _images(original: Mesh | Views) -> tuple[Iterator[np.ndarray], Callable[[Gaussians], Iterator[np.ndarray]]]:
    """On black, from the cameras of given views; of a mesh from cameras that it is not encoded from, once around."""
    import torch

    from atoken.cameras import Cameras
    from atoken.modalities.views import render_views

    around = Cameras.turntable(SEEN_FROM)
    views = render_views(original, around, SEEN_SIDE) if isinstance(original, Mesh) else original

    def rendered(gaussians: Gaussians) -> Iterator[np.ndarray]:
        for view in range(len(views)):
            with torch.inference_mode():
                rgb = gaussians.render(views.cameras[view : view + 1], views.rgb.shape[1:3])[0]
            yield rgb.mul(255).round_().clamp_(0, 255).to(torch.uint8).numpy()

    return iter(views.rgb), rendered


def _refusal(model: ATokenModel, tokens: Tokens) -> str:
    from atoken.modalities.voxels import RESOLUTION

    if model.gaussian_decoder is None:
        return "it has no Gaussian decoder; take one that has (published weights: --gaussians of atoken convert)."
    if tokens.size[0] > RESOLUTION:
        return f"its Gaussian decoder has {RESOLUTION} voxels a side, the asset has {tokens.size[0]}."
    return ""


ASSET = Modality(
    name="asset",
    formats=(*FORMATS, FORMAT),
    types=(Mesh, Views, VoxelPatches),
    read=_read,
    suffix=".ply",
    patchify=_patchify,
    unpatchify=_unpatchify,
    images=_images,
    cells=lambda size, frames: (1, *size, size[0]),
    shown=lambda size, frames: f"{size[0]}^3",
    sizes=f"its voxels a side, twice, from 1 to {MAX_RESOLUTION:,}",
    allows_size=lambda size: 1 <= size[0] == size[1] <= MAX_RESOLUTION,
    refusal=_refusal,
    sparse=True,
)
