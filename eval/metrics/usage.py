"""What tokens cost: how much of its codes a discrete tokenizer uses, and the bytes of an item on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.usage import code_counts, code_usage
from eval.contract import Output, State
from eval.metrics.exact import Mean

CODES = 4096  # of a group of six channels of four levels (paper section 3.4)
OF_GROUPS = ("codes used", "codes dead", "code perplexity")  # shown of each group, as "codes used/3"


class CodeUsage:
    """The numbers of ``atoken.metrics.usage``, over all tokens of all outputs: mean over groups, some of each group.

    Without tokens all are NaN. Raises: AtokenError (an output without codes, codes out of range, outputs with different
    numbers of groups).
    """

    name = "usage"

    def __init__(self, codes: int = CODES) -> None:
        self.codes = codes
        self.record: Mapping[str, str] = {"codes of a group": str(codes)}

    def start(self) -> State:
        """No groups: the first output tells how many there are."""
        return {"counts": np.zeros((0, self.codes), np.int64)}

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Count the codes of outputs, in place; no output has numbers alone."""
        total = state["counts"]
        for output in outputs:
            total = _sum(total, self._counts(output))
        state["counts"] = total
        return [{} for _ in outputs]

    def merge(self, first: State, second: State) -> State:
        """The counts of both."""
        return {"counts": _sum(first["counts"], second["counts"])}

    def finish(self, state: State) -> dict[str, float]:
        """Shares, numbers of codes and perplexities, by name."""
        found = code_usage(state["counts"])
        means = {name: float(of_G.mean()) if len(of_G) else np.nan for name, of_G in found.items()}
        return means | {f"{name}/{group}": float(of) for name in OF_GROUPS for group, of in enumerate(found[name])}

    def _counts(self, output: Output) -> np.ndarray:
        codes_NG = output.codes
        if codes_NG is None:
            raise AtokenError("This tokenizer has no codes, so their usage cannot be measured; leave that metric out.")
        if codes_NG.size and not (codes_NG.min() >= 0 and codes_NG.max() < self.codes):
            raise AtokenError(
                f"A code of {output.item.key} is outside [0, {self.codes}); state the right number of codes."
            )
        return code_counts(codes_NG, self.codes)


def _sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if len(first) and len(second) and len(first) != len(second):
        raise AtokenError(
            f"Outputs have {len(first)} and {len(second)} groups of codes; measure one tokenizer at a time."
        )
    return first + second if len(first) and len(second) else first if len(first) else second


class Size(Mean):
    """``bytes``: the mean over outputs. ``bits per pixel``: all bits by all pixels, of videos those of all frames.

    pixels: False for assets, whose views have pixels and whose tokens do not depend on them.
    """

    name = "size"

    def __init__(self, *, pixels: bool = True) -> None:
        self.numbers = ("bytes", "pixels") if pixels else ("bytes",)
        self.record = {"bytes": "as the model's record says", "bits per pixel": "all bits by all pixels"}

    def measure(self, output: Output) -> dict[str, float]:
        """``bytes``, and ``pixels`` of the original. Raises: AtokenError where the model does not tell."""
        if output.size is None or output.target is None:
            raise AtokenError(f"The model does not tell how many bytes {output.item.key} takes; leave sizes out.")
        found = {"bytes": float(output.size), "pixels": float(output.target.size // 3)}
        return {name: found[name] for name in self.numbers}

    def finish(self, state: State) -> dict[str, float]:
        """The mean, and the ratio of sums."""
        means = super().finish(state)
        rate = {"bits per pixel": 8 * means["bytes"] / means["pixels"]} if "pixels" in means else {}
        return {"bytes": means["bytes"]} | rate
