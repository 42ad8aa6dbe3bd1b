"""Principal components against a singular value decomposition."""

import numpy as np
import torch

from atoken.metrics.pca import leading, principal
from tests.tolerances import FP32, LEAST_SQUARES


def test_components_and_deviations_are_those_of_the_svd():
    rows = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 12) + 3
    vectors, deviations = principal(rows, 5)
    _, values, wanted = torch.linalg.svd((rows - rows.mean(0)).double(), full_matrices=False)
    cosines = (wanted[:5] @ vectors.double()).abs()
    np.testing.assert_allclose(cosines, np.eye(5), atol=FP32)
    np.testing.assert_allclose(deviations, values[:5] / 200**0.5, rtol=FP32)
    assert vectors.dtype == deviations.dtype == torch.float32


def test_leading_eigenvectors_come_largest_first():
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())[0]
    covariance = turn @ torch.diag(torch.tensor([5.0, 1, 4, 2, 3, 0]).double()) @ turn.T
    vectors, variances = leading(covariance, 3)
    np.testing.assert_allclose(variances, [5, 4, 3], rtol=LEAST_SQUARES)
    np.testing.assert_allclose((turn.T @ vectors).abs(), np.eye(6)[[0, 2, 4]].T, atol=LEAST_SQUARES)
