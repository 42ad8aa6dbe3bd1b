"""How many answers to questions are right, of all and of each type of question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.ranking import interval
from eval.contract import Output, State
from mllm.answers import is_right


class Accuracy:
    """The share of right answers; an item's captions are a question and its answer, its label the type of question.

    types: of questions, by label.
    """

    name = "accuracy"

    def __init__(self, types: Sequence[str]) -> None:
        self._types = types
        self.record = {
            "right": "the same text but for case, a first article and a last full stop",
            "types": ", ".join(types),
        }

    def start(self) -> State:
        """Counts of items and of right answers by type, and of answers that were cut."""
        return {"items": np.zeros(len(self._types)), "right": np.zeros(len(self._types)), "cut": np.zeros(1)}

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Fold outputs into ``state``, in place. Raises: AtokenError (no answer, question or type)."""
        return [self._add_one(state, output) for output in outputs]

    def _add_one(self, state: State, output: Output) -> dict[str, float]:
        label, captions = output.item.label, output.item.captions
        if output.answer is None or label is None or len(captions) != 2:
            raise AtokenError(f"{output.item.key} has no answer, or no question with a type; accuracy needs both.")
        right = float(is_right(output.answer, captions[1]))
        state["items"][label] += 1
        state["right"][label] += right
        state["cut"] += output.cut
        return {"accuracy": right}

    def merge(self, first: State, second: State) -> State:
        """The counts of both."""
        return {name: first[name] + second[name] for name in first}

    def finish(self, state: State) -> dict[str, float]:
        """Shares from 0 to 1 of all (NaN without items), with the 95 % interval, and of each type that was asked."""
        items, right = state["items"], state["right"]
        share = float(right.sum() / items.sum()) if items.any() else np.nan
        low, high = interval(share, int(items.sum()))
        numbers = {"accuracy": share, "accuracy low": low, "accuracy high": high}
        for name, of, hits in zip(self._types, items, right, strict=True):
            if of:
                numbers[f"accuracy, {name}"] = float(hits / of)
        return numbers | {"answers cut": float(state["cut"][0])}
