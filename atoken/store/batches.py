"""Batches of latents for the training package: micro-batch b is a function of a store, a seed and b alone.

So a run resumes at any step, with any number of ranks that divides the micro-batches of a step. Flips and draws of one
key are one sample, of which each epoch takes one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoken.data.mixing import Broken, hashed
from atoken.errors import StoreError
from atoken.store.order import DenseOrder, PackedOrder, rounded
from atoken.store.reader import TokenStore
from atoken.summary import Summary
from atoken.tokens import SparseTokens


@dataclass(frozen=True, repr=False)
class StoreBatch(Summary):
    """One micro-batch of B samples.

    latents: normalised, dense as ``TokenStore.grids`` gives them, or packed. codes: (B, N, G) of a discrete model, in
    dense batches. label_ids: (B,) int64, -1 for none. captions: one a sample, "" for none, if they are asked for. rows:
    of the view of the store. noise: seed of what the loss draws.
    """

    latents: Tensor | SparseTokens
    codes: Tensor | None
    label_ids: Tensor
    captions: tuple[str, ...]
    rows: tuple[int, ...]
    noise: int
    task: str = "latents"
    broken: tuple[Broken, ...] = ()

    def __len__(self) -> int:
        return len(self.latents.feats) if isinstance(self.latents, SparseTokens) else self.latents[:, 0].numel()

    @property
    def samples(self) -> int:
        """B."""
        return len(self.rows)

    def to(self, device: torch.device | str) -> StoreBatch:
        """The same batch on another device."""
        codes = None if self.codes is None else self.codes.to(device)
        return replace(self, latents=self.latents.to(device), codes=codes, label_ids=self.label_ids.to(device))


class _Samples(NamedTuple):
    """Rows of the view, variants of a sample side by side; where each sample begins there, and the end; their order."""

    rows: np.ndarray
    starts: np.ndarray
    order: DenseOrder | PackedOrder


@dataclass(frozen=True)
class StoreBatches:
    """A source of batches, dense or packed; a key is the number of the micro-batch.

    samples: of a dense micro-batch; all micro-batches of a step have one grid, and grids take turns as their numbers
    of samples demand. tokens: of a packed micro-batch, at most. micro_batches: of a step, over all ranks. captions: one
    of each sample's, drawn anew each time. Every epoch, of a grid or of packed samples, has each sample once.
    Raises: StoreError.
    """

    store: TokenStore
    seed: int
    samples: int | None = None
    tokens: int | None = None
    micro_batches: int = 1
    captions: bool = False

    def __post_init__(self) -> None:
        if (self.samples is None) == (self.tokens is None) or min(self._size, self.micro_batches) < 1:
            raise StoreError("Give samples for dense batches or tokens for packed ones, of at least 1 micro-batch.")
        if not len(self.store):
            raise StoreError(f"No item of {self.store.name} is left to train on; ask where() for less.")
        _ = self._samples  # what does not fit is said now

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def _size(self) -> int:
        return self.samples or self.tokens or 0

    @property
    def steps_per_epoch(self) -> float:
        """Steps until each sample came once, on average over grids."""
        return self._samples.order.epoch / self.micro_batches

    def keys(self, step: int) -> list[int]:
        """The micro-batches of a step."""
        return list(range(step * self.micro_batches, (step + 1) * self.micro_batches))

    def batch(self, key: int) -> StoreBatch:
        """The micro-batch of a number. Raises: StoreError, TokenFileError (damage)."""
        all_rows, starts, order = self._samples
        rows = []
        for sample, epoch in order.drawn(key):
            first, end = starts[sample : sample + 2].tolist()
            rows.append(int(all_rows[first + hashed(self.seed, sample, epoch) % (end - first)]))
        latents: Tensor | SparseTokens = self.store.grids(rows) if self.samples else self.store.packed(rows)
        return StoreBatch(
            latents,
            codes=self.store.codes(rows) if self.samples and self.store.levels else None,
            label_ids=torch.from_numpy(self.store[rows].label_ids.astype(np.int64)),
            captions=tuple(self._caption(row, key) for row in rows) if self.captions else (),
            rows=tuple(rows),
            noise=hashed(self.seed, key),
        )

    @cached_property
    def _samples(self) -> _Samples:
        found, inverse = self.store.alike()
        for one in found:
            if self.samples and not one.full:
                raise StoreError(f"{one} make no dense batch; leave them out with where(), or pack to tokens.")
            if self.tokens and one.tokens > self.tokens:
                raise StoreError(
                    f"{one} are over the budget of {self.tokens}; raise it, or leave them out with where()."
                )
        names = [one.grid if self.samples else rounded(one.tokens, self._size) for one in found]
        classes = {name: number for number, name in enumerate(dict.fromkeys(names))}
        group = np.array([classes[name] for name in names])[inverse]
        several = self.store.options.flip or self.store.options.draws > 1
        keys = _numbered(self.store.column("key")) if several else np.arange(len(group))
        rows = np.lexsort((keys, group))
        starts = np.flatnonzero(np.diff(group[rows], prepend=-1) | np.diff(keys[rows], prepend=-1))
        firsts = np.flatnonzero(np.diff(group[rows[starts]], prepend=-1, append=-1))
        order: DenseOrder | PackedOrder
        if self.samples:
            order = DenseOrder(firsts, self.samples, self.micro_batches, self.seed)
        else:
            order = PackedOrder(firsts, np.array(list(classes)), self._size, self.seed)
        return _Samples(rows, np.append(starts, len(rows)), order)

    @cached_property
    def _all_captions(self) -> Any:
        return self.store.column("captions")

    def _caption(self, row: int, key: int) -> str:
        captions = self._all_captions[row].as_py()
        return captions[hashed(self.seed, row, key, 0) % len(captions)] if captions else ""


def _numbered(column: Any) -> np.ndarray:
    """Equal numbers for equal texts of an Arrow column."""
    indices = column.dictionary_encode().combine_chunks().indices
    return np.asarray(indices.to_numpy(zero_copy_only=False), dtype=np.int64)
