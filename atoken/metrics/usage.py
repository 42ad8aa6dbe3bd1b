"""How much of its codes a tokenizer uses. Shape letters: ``N`` tokens, ``G`` groups, ``K`` codes of a group."""

from __future__ import annotations

import numpy as np


def code_counts(codes_NG: np.ndarray, codes: int) -> np.ndarray:
    """(G, K) int64: how often each of ``codes`` codes, from 0, occurs in each group."""
    groups = codes_NG.shape[1]
    flat = codes_NG + np.arange(groups) * codes
    return np.bincount(flat.ravel(), minlength=groups * codes).reshape(groups, codes)


def code_usage(counts_GK: np.ndarray) -> dict[str, np.ndarray]:
    """(G,) float64 each: what the counts of ``code_counts`` say of each group; NaN for a group without tokens.

    "codes used": share of the codes that occur. "codes dead": how many do not. "code perplexity": exp of the entropy in
    nats, so K where all codes are equally frequent. "codes used at best": the share that as many draws from a uniform
    distribution would use on average, as few tokens cannot use all codes. "tokens counted".
    """
    counts_GK, codes = counts_GK.astype(np.float64), counts_GK.shape[1]
    tokens_G = counts_GK.sum(1)
    with np.errstate(invalid="ignore"):
        shares_GK = counts_GK / tokens_G[:, None]
    terms_GK = shares_GK * np.log(np.where(shares_GK > 0, shares_GK, 1))
    dead_G = np.where(tokens_G > 0, (counts_GK == 0).sum(1), np.nan)
    return {
        "codes used": 1 - dead_G / codes,
        "codes dead": dead_G,
        "code perplexity": np.exp(-terms_GK.sum(1)),
        "codes used at best": -np.expm1(tokens_G * np.log1p(-1 / codes)),
        "tokens counted": tokens_G,
    }
