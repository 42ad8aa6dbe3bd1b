"""Images of the assets of a store: rendered once into a folder, and given to a training with the asset's tokens.

``FOLDER/KEY/000.png`` and so on, with alpha, for each key of the store; other renders may lie there just as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atoken.cameras import RADIUS, Cameras
from atoken.data.mixing import hashed, permuted
from atoken.data.sources.sample import TIMEOUT, reading
from atoken.errors import AtokenError, StoreError
from atoken.io import Image, read_image, read_mesh
from atoken.mesh import Mesh
from atoken.modalities.views import render_views
from atoken.store.batches import StoreBatch, StoreBatches
from atoken.store.layout import Options
from atoken.store.reader import TokenStore
from atoken.store.source import GENERATED, Entry, open_source
from generation.vision import squares

LOW, HIGH = -0.2, 0.8  # sine of the height that assets are seen from, drawn evenly


@dataclass(frozen=True, repr=False, kw_only=True)
class AssetBatch(StoreBatch):
    """A batch of assets, and an image of each: (B, 3, S, S) uint8, as ``vision.framed`` makes it."""

    images: Tensor

    def to(self, device: torch.device | str) -> AssetBatch:
        """The same batch on another device."""
        moved = super().to(device)
        assert isinstance(moved, AssetBatch)
        return replace(moved, images=self.images.to(device))


@dataclass(frozen=True)
class AssetBatches:
    """Batches of a store with a view of each asset, drawn anew each time. Raises: StoreError (an asset without)."""

    source: StoreBatches
    folder: Path
    side: int

    @property
    def steps_per_epoch(self) -> float:
        """As of the source."""
        return self.source.steps_per_epoch

    def keys(self, step: int) -> list[int]:
        """The micro-batches of a step."""
        return self.source.keys(step)

    def batch(self, key: int) -> AssetBatch:
        """The micro-batch of a number. Raises: AtokenError."""
        found = self.source.batch(key)
        names = self.source.store[found.rows].column("key").to_pylist()
        chosen = [self._view(name, row, key) for name, row in zip(names, found.rows, strict=True)]
        images = squares(chosen, self.side).mul(255).round().byte()
        return AssetBatch(**{field.name: getattr(found, field.name) for field in fields(found)}, images=images)

    def _view(self, name: str, row: int, key: int) -> Image:
        paths = sorted((self.folder / name).glob("*.png"))
        if not paths:
            raise StoreError(f"{self.folder / name} has no images; make them with python -m generation views.")
        return read_image(paths[hashed(self.source.seed, row, key, 1) % len(paths)])


def render(source: str, store: TokenStore, folder: Path, count: int, size: int) -> Iterator[str]:
    """Write ``count`` images of each asset of a store, in squares of ``size``; its key, as each is done.

    source: what the store was made of. What is there is kept. Raises: AtokenError, MissingExtraError without ``3d``.
    """
    options, keys = store.options, set(store.column("key").to_pylist())
    items = open_source(source, options)
    for index in range(min(len(items), options.items or len(items))):
        try:
            entry = items[index if options.shuffle is None else permuted(index, len(items), options.shuffle)]
        except AtokenError:
            continue  # it is not in the store either
        if entry.key not in keys:
            continue
        target = folder / entry.key
        if not (target / f"{count - 1:03d}.png").is_file():
            target.mkdir(parents=True, exist_ok=True)
            cameras = _around(hashed(options.seed, index), count)
            views = render_views(mesh_of(entry, options), cameras, size)
            for number, (rgb, depth) in enumerate(zip(views.rgb, views.depth, strict=True)):
                Image(rgb, (255 * (depth > 0)).astype(np.uint8)).save(target / f"{number:03d}.png")
        yield entry.key


def mesh_of(entry: Entry, options: Options) -> Mesh:
    """The mesh of an item. Raises: AtokenError (it is broken, or no asset)."""
    from atoken.data.synthetic.series import MAKERS

    sample, record = entry.sample, entry.sample.record
    if sample.suffix != GENERATED:
        with reading(sample):
            return read_mesh(sample.media, name=sample.name, timeout=TIMEOUT)
    if record["modality"] != "asset":
        raise AtokenError(f"{entry.key} is no asset; name a source of assets.")
    mesh: Mesh = MAKERS["asset"][record["series"]](options.seed, record["index"]).mesh
    return mesh


def _around(seed: int, count: int) -> Cameras:
    draws = torch.Generator().manual_seed(seed % 2**63)
    yaw, height = torch.rand(2, count, generator=draws, dtype=torch.float64)
    yaw, z = 2 * torch.pi * yaw, LOW + (HIGH - LOW) * height
    flat = (1 - z.square()).sqrt()
    return Cameras.looking_at_centre(RADIUS * torch.stack([flat * yaw.cos(), flat * yaw.sin(), z], 1))
