"""Linear classifiers of features: ridge regression in closed form and logistic regression by L-BFGS, both in float64.

Letters: ``N`` examples, ``D`` the width of features, ``C`` classes. The target of an example is a row of shares (C,):
one-hot, or, of a token on the border of two classes, how much it has of each; a row with a smaller sum counts less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoken.errors import AtokenError

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of a penalty, to choose from
STEPS = 200  # of L-BFGS, at most
MEMORY = 10  # steps that L-BFGS remembers
CONSTANT = 1e-12  # of the mean: a smaller spread is rounding


@dataclass(frozen=True)
class Linear:
    """scores = features @ weights + bias: ``weights`` (D, C), ``bias`` (C,)."""

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(..., D) to (..., C)."""
        return features @ self.weights + self.bias


Fit = Callable[[np.ndarray, np.ndarray, float], Linear]  # ``ridge`` or ``logistic``


def ridge(features_ND: np.ndarray, shares_NC: np.ndarray, strength: float) -> Linear:
    """Least squares: mean squared error + ``strength`` x |weights|^2, of features scaled to variance 1.

    The bias is free; a feature that does not vary has weight 0. Raises: AtokenError (features that are not finite).
    """
    mean, scale, x = _scaled(features_ND)
    y = np.asarray(shares_NC, np.float64)
    system = x.T @ x / len(x) + strength * np.eye(x.shape[1])
    return _unscaled(np.linalg.solve(system, x.T @ (y - y.mean(0)) / len(x)), y.mean(0), mean, scale)


def logistic(features_ND: np.ndarray, shares_NC: np.ndarray, strength: float) -> Linear:
    """Multinomial: ``cross_entropy`` + ``strength`` / 2 x |weights|^2, of features scaled to variance 1.

    At most ``STEPS`` steps of L-BFGS with strong Wolfe line search, from zero; the bias is free. Deterministic for a
    given number of threads. Raises: AtokenError (features that are not finite).
    """
    mean, scale, x = _scaled(features_ND)
    inputs, shares = torch.from_numpy(x), torch.from_numpy(np.asarray(shares_NC, np.float64))
    weights = torch.zeros(x.shape[1], shares.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(shares.shape[1], dtype=torch.double, requires_grad=True)
    search = torch.optim.LBFGS(
        [weights, bias], max_iter=STEPS, history_size=MEMORY, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        search.zero_grad()
        value = _cross_entropy(inputs @ weights + bias, shares) + strength / 2 * weights.square().sum()
        value.backward()
        return value

    search.step(loss)
    return _unscaled(weights.detach().numpy(), bias.detach().numpy(), mean, scale)


def cross_entropy(scores_NC: np.ndarray, shares_NC: np.ndarray) -> float:
    """Of the softmax of scores against shares, in nats, mean weighted by shares."""
    return float(_cross_entropy(torch.from_numpy(scores_NC), torch.from_numpy(np.asarray(shares_NC, np.float64))))


def squared_error(scores_NC: np.ndarray, shares_NC: np.ndarray) -> float:
    """Mean over examples, summed over classes."""
    return float(np.square(scores_NC - shares_NC).sum(1).mean())


def best(fit: Fit, features_ND: np.ndarray, shares_NC: np.ndarray, checks_N: np.ndarray) -> Linear:
    """A classifier fitted on all examples, with the strength of ``STRENGTHS`` that predicts ``checks`` best.

    To choose it, the other examples are fitted and ``checks`` are predicted; the error is cross-entropy, or squared
    error for ``ridge``; the first of equal ones is taken. Raises: as the fit.
    """
    error = squared_error if fit is ridge else cross_entropy
    features = finite(features_ND)

    def held_out(strength: float) -> float:
        return error(fit(features[~checks_N], shares_NC[~checks_N], strength)(features[checks_N]), shares_NC[checks_N])

    return fit(features, shares_NC, min(STRENGTHS, key=held_out))


def finite(features: np.ndarray) -> np.ndarray:
    """As float64. Raises: AtokenError where a number is not finite, which would be hidden in the weights."""
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        raise AtokenError(
            "Some features are NaN or infinite, so nothing can be probed; look for the fault in the model."
        )
    return features


def _cross_entropy(scores: Tensor, shares: Tensor) -> Tensor:
    return -(shares * torch.log_softmax(scores, 1)).sum() / shares.sum()


def _scaled(features_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (D,), the scale that brings the deviation to 1 (0 for a constant feature), and the scaled features."""
    x = finite(features_ND)
    mean, spread = x.mean(0), x.std(0)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > CONSTANT * np.abs(mean))
    return mean, scale, (x - mean) * scale


def _unscaled(weights: np.ndarray, bias: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Linear:
    scaled = weights * scale[:, None]
    return Linear(scaled, bias - mean @ scaled)
