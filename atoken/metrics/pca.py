"""Principal components, the best linear code. Shape letters: ``N`` rows, ``P`` values of a row, ``C`` components."""

from __future__ import annotations

import torch
from torch import Tensor


def principal(values_NP: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` principal components of rows as fp32 columns (P, C), and their standard deviations (C,)."""
    centred_NP = (values_NP - values_NP.mean(0)).double()
    vectors_PC, variances_C = leading(centred_NP.T @ centred_NP / len(centred_NP), count)
    return vectors_PC.float(), variances_C.sqrt().float()


def leading(covariance_PP: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The eigenvectors of the ``count`` largest eigenvalues as columns (P, C), and these (C,), largest first."""
    variances_P, vectors_PP = torch.linalg.eigh(covariance_PP)
    return vectors_PP[:, -count:].flip(1), variances_P[-count:].flip(0)
