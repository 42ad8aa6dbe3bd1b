"""``SparseTokens``: packed features, each with a position (t, x, y, z); the one type that modules of the model share.

Shape letters, here and in every file of the model: ``N`` packed tokens, ``B`` samples, ``D`` width, ``H`` heads,
``K`` head width, ``C`` latent channels, ``P`` patch values, ``G`` code groups, ``M`` Gaussians, ``V`` views.
Columns of ``coords``: t (time step), x (row), y (column), z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from atoken.summary import Summary


@dataclass(frozen=True, repr=False)
class SparseTokens(Summary):
    """Tokens of several samples, one sample after another.

    feats: (N, D). coords: (N, 4) integer. lengths: tokens per sample, on the host; 0 is allowed.
    Raises ValueError if the three do not fit together.
    """

    feats: Tensor
    coords: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        tokens = len(self.feats)
        if self.feats.ndim != 2 or self.coords.shape != (tokens, 4) or sum(self.lengths) != tokens:
            raise ValueError(
                f"feats {tuple(self.feats.shape)}, coords {tuple(self.coords.shape)} and lengths {self.lengths} must "
                "be (N, D), (N, 4) and sum to N."
            )
        if any(length < 0 for length in self.lengths):
            raise ValueError(f"lengths must not be negative, got {self.lengths}.")

    @staticmethod
    def pack(samples: Sequence[SparseTokens]) -> SparseTokens:
        """Join batches into one, in order; a single one is given back as it is, not copied.

        Raises ValueError for an empty list (the width would be unknown).
        """
        if not samples:
            raise ValueError("pack() needs at least one batch.")
        if len(samples) == 1:
            return samples[0]
        return SparseTokens(
            torch.cat([sample.feats for sample in samples]),
            torch.cat([sample.coords for sample in samples]),
            tuple(length for sample in samples for length in sample.lengths),
        )

    def unpack(self) -> list[SparseTokens]:
        """One batch of one sample for each sample, in order (views, no copies)."""
        parts = zip(self.feats.split(self.lengths), self.coords.split(self.lengths), self.lengths, strict=True)
        return [SparseTokens(feats, coords, (length,)) for feats, coords, length in parts]

    def with_feats(self, feats: Tensor) -> SparseTokens:
        """The same positions with other features (N, any width)."""
        return replace(self, feats=feats)

    def to(self, device: torch.device | str) -> SparseTokens:
        """The same tokens on another device."""
        return SparseTokens(self.feats.to(device), self.coords.to(device), self.lengths)

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where samples begin and end: (0, n1, n1 + n2, ..., N)."""
        return tuple(accumulate(self.lengths, initial=0))

    @property
    def sample_N(self) -> Tensor:  # noqa: N802 - a shape suffix
        """(N,) int64: which sample each token belongs to."""
        lengths = torch.tensor(self.lengths, device=self.coords.device, dtype=torch.long)
        samples = torch.arange(len(self.lengths), device=self.coords.device)
        return samples.repeat_interleave(lengths, output_size=len(self.feats))

    def reduce_coords(self, how: str) -> Tensor:
        """(B, 4) int64: smallest ("amin") or largest ("amax") coordinates of each sample; zeros for an empty sample."""
        empty = torch.zeros(len(self.lengths), 4, dtype=torch.long, device=self.coords.device)
        index = self.sample_N[:, None].expand(-1, 4)
        return empty.scatter_reduce(0, index, self.coords.long(), how, include_self=False)

    def time_windows(self, steps: int) -> list[tuple[Tensor | slice, SparseTokens]]:
        """Cut every sample into windows of ``steps`` time steps, counted from the sample's own first step.

        Returns, for each window in order, the index of its tokens in this batch and the tokens, with t starting at 0.
        A sample that has ended stays in the batch with length 0. Source: paper section 3.4 (tiles), here per sample.
        """
        sample_N = self.sample_N
        time_N = self.coords[:, 0] - self.reduce_coords("amin")[sample_N, 0].to(self.coords.dtype)
        window_N = time_N.div(steps, rounding_mode="floor")
        coords = torch.cat([(time_N - window_N * steps)[:, None], self.coords[:, 1:]], dim=1)
        windows = int(window_N.max()) + 1 if len(window_N) else 1
        if windows == 1:
            return [(slice(None), replace(self, coords=coords))]
        return [self._window(coords, sample_N, (window_N == window).nonzero()[:, 0]) for window in range(windows)]

    def _window(self, coords: Tensor, sample_N: Tensor, index: Tensor) -> tuple[Tensor, SparseTokens]:
        lengths = torch.bincount(sample_N[index], minlength=len(self.lengths)).tolist()
        return index, SparseTokens(self.feats[index], coords[index], tuple(lengths))
