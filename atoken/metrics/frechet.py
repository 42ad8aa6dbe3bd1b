"""The Frechet distance of two Gaussians (Frechet 1957): FID, FVD and their like. Shape letter: ``D`` width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from atoken.errors import AtokenError


@dataclass(frozen=True, eq=False)
class Gaussian:
    """mean_D and covariance_DD (unbiased, as numpy.cov), float64, of so many items; None: unknown."""

    mean_D: np.ndarray
    covariance_DD: np.ndarray
    items: int | None = None


@dataclass(frozen=True)
class FrechetDistance:
    """The squared distance in its two terms; a term is not finite where a moment is not."""

    mean: float
    covariance: float

    @property
    def value(self) -> float:
        """Both terms together: with the features of an Inception network this is the FID."""
        return self.mean + self.covariance


def frechet_distance(prediction: Gaussian, target: Gaussian) -> FrechetDistance:
    """|m - m'|^2 and tr(C + C' - 2 (C C')^(1/2)), neither below zero (Heusel et al. 2017).

    The trace of the root is the sum of the singular values of F^T F', where C = F F^T and C' = F' F'^T. So no root of a
    matrix with rounding errors is taken, and singular covariances, of fewer items than numbers, need no special case.
    Raises: AtokenError where the widths differ.
    """
    check_width(len(prediction.mean_D), len(target.mean_D))
    covariances = [torch.from_numpy(one.covariance_DD) for one in (prediction, target)]
    mean = float(np.square(prediction.mean_D - target.mean_D).sum())
    if not all(bool(torch.isfinite(one).all()) for one in covariances):
        return FrechetDistance(mean, float("nan"))
    with one_thread():
        first, second = (_factor(one) for one in covariances)
        root = torch.linalg.svdvals(first.T @ second).sum() if first.shape[1] and second.shape[1] else 0.0
    rest = sum(one.trace() for one in covariances) - 2 * root
    return FrechetDistance(mean, max(float(rest), 0.0))


def check_width(prediction: int, target: int) -> None:
    """Raises: AtokenError where features of two widths are to be compared."""
    if prediction != target:
        raise AtokenError(
            f"Features of {prediction} and of {target} numbers cannot be compared: take both from the same network."
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: the number of threads may change the last bits, and it differs between ranks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _factor(covariance_DD: torch.Tensor) -> torch.Tensor:
    """F (D, rank) with F F^T the covariance; eigenvalues that are zero but for rounding are left out."""
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    kept = values_D > values_D[-1] * len(values_D) * torch.finfo(values_D.dtype).eps
    kept &= values_D > 0
    return vectors_DD[:, kept] * values_D[kept].sqrt()
