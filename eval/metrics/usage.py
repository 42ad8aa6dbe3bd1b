"""How much of its codes a discrete tokenizer uses: share, perplexity and dead codes of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.usage import code_counts, code_usage
from eval.contract import Sample, State

CODES = 4096  # of a group of six channels of four levels (paper section 3.4)
_SHOWN = ("codes used", "codes dead", "code perplexity")  # also of each group


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
        groups = code_usage(state["counts"])
        means = {name: _mean(of) for name, of in groups.items()}
        single = {f"{name}/{g}": float(of[g]) for name, of in groups.items() if name in _SHOWN for g in range(len(of))}
        return means | single

    def _counts(self, sample: Sample) -> np.ndarray:
        codes_NG = sample.codes
        if codes_NG is None:
            raise AtokenError("This tokenizer has no codes, so their usage cannot be measured; leave that metric out.")
        if codes_NG.size and not (codes_NG.min() >= 0 and codes_NG.max() < self.codes):
            raise AtokenError(
                f"A code of {sample.item.key} lies outside [0, {self.codes}); say how many codes there are."
            )
        return code_counts(codes_NG, self.codes)


def _sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if len(first) and len(second) and len(first) != len(second):
        raise AtokenError(
            f"Samples have {len(first)} and {len(second)} groups of codes; measure one tokenizer at a time."
        )
    return first + second if len(first) and len(second) else first if len(first) else second


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
