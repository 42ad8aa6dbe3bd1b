"""``TokenStore``: a tokenised data set, read at random, as ``Tokens``, dense grids, packed tokens or codes.

Letters: ``B`` items, ``C`` latent channels, ``G`` code groups, ``N`` tokens; ``T``, ``H``, ``W`` sides of a grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from atoken.bottleneck import FSQ
from atoken.errors import StoreError
from atoken.io.token_checks import check_model
from atoken.io.token_file import Tokens
from atoken.modalities import MODALITIES
from atoken.statistics import ALL, LatentStatistics
from atoken.store.layout import Options
from atoken.store.stored import Alike, Stored
from atoken.tokens import SparseTokens

if TYPE_CHECKING:
    from atoken.coder import Coder

Rows = slice | Sequence[int] | np.ndarray | Tensor  # numbers of rows, negative ones from the end; or a bool for each


class TokenStore:
    """The items of a store in its order, or, as slices and conditions give it, a view of some of them in any order.

    Every item that is read is compared with its check sum. Nothing is open between two calls but memory maps, so that
    a store may go to other processes, forked or spawned, which open it anew. Errors of reading: TokenFileError (damaged
    files), StoreError (a damaged index, rows that do not exist).
    Raises: StoreError (no store, an unfinished one, another version), MissingExtraError (pyarrow).
    """

    def __init__(self, path: str | Path) -> None:
        self._stored = Stored(Path(path))
        self._rows: np.ndarray | None = None  # of the whole store; None: all
        self.statistics = self.all_statistics[ALL]

    def _view(self, rows: np.ndarray | None) -> Self:
        view = self.__class__.__new__(self.__class__)
        view._stored, view._rows, view.statistics = self._stored, rows, self.statistics
        return view

    def __len__(self) -> int:
        return len(self._stored.columns) if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        channels = self._stored.plan.model.channels
        return f"TokenStore({self.name!r}, {len(self):,} items of {self.model}, {channels} channels)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory maps back, for all views; reading makes new ones."""
        self._stored.close()

    @property
    def name(self) -> str:
        """Its path."""
        return str(self._stored.path)

    @property
    def model(self) -> str:
        """The name of the model that made the tokens."""
        return self._stored.plan.model.name

    @property
    def fingerprint(self) -> str:
        """64 hex digits of the model that made the tokens."""
        return self._stored.plan.model.fingerprint

    @property
    def levels(self) -> tuple[int, ...] | None:
        """FSQ levels of one group of codes, None for a continuous model."""
        return self._stored.plan.model.levels

    @property
    def options(self) -> Options:
        """What the store was made with."""
        return self._stored.plan.options

    def check(self, tokenizer: Coder) -> None:
        """Refuse the use of the store with another model than its own. Raises: TokenFileError."""
        check_model(self, tokenizer.fingerprint, tokenizer.name)

    @property
    def all_statistics(self) -> Mapping[str, LatentStatistics]:
        """Statistics of the latents of each modality in the whole store, and of "all"."""
        return self._stored.statistics

    def with_statistics(self, statistics: LatentStatistics) -> Self:
        """The same rows, normalised by other statistics than the whole store's: of a modality, of a generator."""
        view = self._view(self._rows)
        view.statistics = statistics
        return view

    # Rows

    @property
    def rows(self) -> np.ndarray:
        """Numbers of the rows in the whole store, int64."""
        return np.arange(len(self)) if self._rows is None else self._rows

    @overload
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: Rows) -> Self: ...
    def __getitem__(self, index: int | Rows) -> Tokens | Self:
        """All of one item, or a view of several."""
        if isinstance(index, int | np.integer):
            return self._stored.item(int(self._chosen([int(index)])[0]))
        return self._view(self._chosen(index))

    def __iter__(self) -> Iterator[Tokens]:
        return (self._stored.item(row) for row in self.rows.tolist())

    def _chosen(self, index: Rows) -> np.ndarray:
        """Rows of the whole store. Raises: StoreError."""
        count = len(self)
        if isinstance(index, slice):
            rows = np.arange(*index.indices(count))
        else:
            rows = np.asarray(index) if len(index) else np.zeros(0, np.int64)
            if rows.dtype == bool and rows.shape == (count,):
                rows = np.flatnonzero(rows)
            if rows.dtype.kind not in "iu" or rows.ndim != 1 or ((rows < -count) | (rows >= count)).any():
                raise StoreError(f"{self.name} has rows 0 to {count - 1} here; name some of them, or a bool for each.")
            rows = np.where(rows < 0, rows + count, rows)
        return rows if self._rows is None else self._rows[rows]

    def where(self, expression: Any = None, **equal: Any) -> Self:
        """A view of the rows that fulfil conditions on columns, in the same order.

        expression: of ``pyarrow.dataset.field``, such as ``field("tokens") <= 256``. equal: a value of a column, None,
        or a list of values: ``where(modality="image", label=["cat", "dog"], flipped=False)``. Raises: StoreError.
        """
        matches, rows = self._stored.columns.matches(expression, equal), self.rows
        return self._view(rows[matches[rows]])

    def split(self, share: float, seed: int = 0) -> tuple[Self, Self]:
        """Two views: about this share of the keys, and all others, such as for validation and training.

        The side of a key depends on key and seed alone: flips and draws stay together, and stores that grow keep it.
        """
        chosen = np.fromiter(
            (
                int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()) < share * 2**64
                for chunk in self.column("key").chunks
                for start in range(0, len(chunk), 1 << 16)  # not all keys at once as Python objects
                for key in chunk.slice(start, 1 << 16).to_pylist()
            ),
            bool, len(self),
        )  # fmt: skip
        return self._view(self.rows[chosen]), self._view(self.rows[~chosen])

    def column(self, name: str) -> Any:
        """A column of the index, as a pyarrow.ChunkedArray in the order of the view. Raises: StoreError."""
        column = self._stored.columns.table(name)
        return column if self._rows is None else column.take(self._rows)

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels in the whole store, sorted (numbers as numbers); the place of a label is its id."""
        return self._stored.columns.names("label")[0]

    @property
    def label_ids(self) -> np.ndarray:
        """(rows,) int32: the id of each row's label, -1 for none."""
        return self._stored.columns.names("label")[1][self.rows]

    @property
    def label_counts(self) -> np.ndarray:
        """(labels,) int64: how many rows have each label."""
        return np.bincount(self.label_ids[self.label_ids >= 0], minlength=len(self.labels))

    # Numbers

    def alike(self, rows: Rows = slice(None)) -> tuple[list[Alike], np.ndarray]:
        """The different modalities, sizes and numbers of tokens among rows, and the number of each row's among them."""
        return self._stored.alike(self._chosen(rows))

    def grid(self, row: int, *, normalised: bool = True) -> Tensor:
        """As ``grids``, of one row, without B."""
        return self.grids([row], normalised=normalised)[0]

    def grids(self, rows: Rows, *, normalised: bool = True) -> Tensor:
        """Latents of images (B, C, H, W), or of videos (B, C, T, H, W), fp32, as ``decode_latents`` takes them.

        normalised: to mean 0 and deviation 1 in each channel, by ``statistics``. Raises: StoreError for rows whose
        grids differ, and for 3D assets, whose tokens fill none.
        """
        found, values = self._dense(rows)
        if len({one.grid for one in found}) > 1 or not found[0].full:
            raise StoreError(
                f"Rows with {' and '.join(map(str, found[:2]))} make no dense batch; choose rows with one grid, or "
                "take them packed."
            )
        latents = self._latents(torch.from_numpy(values).transpose(1, 2)).transpose(1, 2)
        latents = self.statistics.normalise(latents) if normalised else latents.contiguous()
        timed = MODALITIES[found[0].modality].read_frames
        return latents.unflatten(2, found[0].cells[:3] if timed else found[0].cells[1:3])

    def codes(self, rows: Rows) -> Tensor:
        """Codes (B, N, G) int64 of a discrete model, of rows with equally many tokens. Raises: StoreError."""
        if self.levels is None:
            raise StoreError(f"{self.name} was made by {self.model}, a continuous model, which has no codes.")
        return torch.from_numpy(self._dense(rows)[1]).transpose(1, 2).contiguous()

    def vectors(self, rows: Rows) -> Tensor:
        """Unit vectors (B, D) fp32, as ``embed`` gives them."""
        return normalize(torch.from_numpy(self._stored.vectors(self._chosen(rows))), dim=-1)

    def packed(self, rows: Rows, *, normalised: bool = True) -> SparseTokens:
        """Latents (N, C) fp32 with positions, of items of any modalities and sizes. normalised: as of ``grids``."""
        chosen = self._chosen(rows)
        found, inverse = self._stored.alike(chosen)
        lengths = np.array([one.tokens for one in found], np.int64)[inverse]
        starts = np.cumsum(lengths) - lengths
        latents = torch.empty(int(lengths.sum()), self._stored.plan.model.channels)
        coords = np.empty((len(latents), 4), np.int32)
        for number, alike in enumerate(found):
            among = inverse == number
            values, positions = self._stored.values(chosen[among], alike)
            index = (starts[among, None] + np.arange(alike.tokens)).ravel()
            latents[torch.from_numpy(index)] = self._latents(torch.from_numpy(values).transpose(1, 2)).flatten(0, 1)
            coords[index] = positions.reshape(-1, 4)
        if normalised:
            latents = self.statistics.normalise(latents)
        return SparseTokens(latents, torch.from_numpy(coords), tuple(lengths.tolist()))

    def _dense(self, rows: Rows) -> tuple[list[Alike], np.ndarray]:
        """What there is among rows with equally many tokens, and what is stored of them: (B, C, N) or (B, G, N)."""
        chosen = self._chosen(rows)
        found, inverse = self._stored.alike(chosen)
        if len({one.tokens for one in found}) != 1:
            named = f"with {' and '.join(map(str, found[:2]))}" if found else "that are none"
            raise StoreError(f"Rows {named} make no dense batch; choose rows with one grid, or take them packed.")
        values = [self._stored.values(chosen[inverse == number], alike)[0] for number, alike in enumerate(found)]
        if len(found) == 1:
            return found, values[0]
        return found, np.concatenate(values)[np.argsort(np.argsort(inverse, kind="stable"))]

    def _latents(self, stored: Tensor) -> Tensor:
        """(..., C) fp32 of what is stored: itself, or what codes (..., G) stand for."""
        return stored if self.levels is None else FSQ(self.levels).from_codes(stored)
