"""How much of its codes a discrete tokenizer uses: share, perplexity and dead codes of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from atoken.errors import AtokenError
from eval.contract import Sample, State

CODES = 4096  # of a group of six channels of four levels (paper section 3.4)


class CodeUsage:
    """Counts of codes by group, over all tokens of all samples.

    ``codes used``: share of the codes of a group that occur. ``codes dead``: how many do not. ``code perplexity``:
    exp of the entropy in nats, so 4096 where all are equally frequent. Each is the mean of the groups, and
    ``codes used/3`` that of group 3. ``codes used at best``: the share that as many even draws would use on average,
    as few tokens cannot use all codes. ``tokens counted``: in each group. Without tokens all are NaN. Raises:
    AtokenError (a sample without codes, codes out of range, samples with different numbers of groups).
    """

    name = "usage"

    def __init__(self, codes: int = CODES) -> None:
        self.codes = codes
        self.record: Mapping[str, str] = {"codes of a group": str(codes)}

    def start(self) -> State:
        """No groups: the first sample says how many there are."""
        return {"counts": np.zeros((0, self.codes), np.int64)}

    def add(self, state: State, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Count the codes of samples, in place; no sample has numbers alone."""
        total = state["counts"]
        for sample in samples:
            total = _sum(total, self._counts(sample))
        state["counts"] = total
        return [{} for _ in samples]

    def merge(self, first: State, second: State) -> State:
        """The counts of both."""
        return {"counts": _sum(first["counts"], second["counts"])}

    def finish(self, state: State) -> dict[str, float]:
        """Shares, numbers of codes and perplexities, by name."""
        counts_GK = state["counts"].astype(np.float64)
        tokens = counts_GK.sum(1)
        with np.errstate(invalid="ignore"):
            shares = counts_GK / tokens[:, None]
        terms = shares * np.log(np.where(shares > 0, shares, 1))
        dead = np.where(tokens > 0, (counts_GK == 0).sum(1), np.nan)
        groups = {
            "codes used": 1 - dead / self.codes,
            "codes dead": dead,
            "code perplexity": np.exp(-terms.sum(1)),
        }
        best = -np.expm1(tokens * np.log1p(-1 / self.codes))
        means = {name: _mean(of) for name, of in groups.items()}
        rest = {"codes used at best": _mean(best), "tokens counted": _mean(tokens)}
        return means | rest | {f"{name}/{g}": float(of[g]) for name, of in groups.items() for g in range(len(of))}

    def _counts(self, sample: Sample) -> np.ndarray:
        codes_NG = sample.codes
        if codes_NG is None:
            raise AtokenError("This tokenizer has no codes, so their usage cannot be measured; leave that metric out.")
        if codes_NG.size and not (codes_NG.min() >= 0 and codes_NG.max() < self.codes):
            raise AtokenError(
                f"A code of {sample.item.key} lies outside [0, {self.codes}); say how many codes there are."
            )
        groups = codes_NG.shape[1]
        flat = codes_NG + np.arange(groups) * self.codes
        return np.bincount(flat.ravel(), minlength=groups * self.codes).reshape(groups, self.codes)


def _sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if len(first) and len(second) and len(first) != len(second):
        raise AtokenError(
            f"Samples have {len(first)} and {len(second)} groups of codes; measure one tokenizer at a time."
        )
    return first + second if len(first) and len(second) else first if len(first) else second


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
