"""What a linear classifier finds in the vectors of photographs: it learns from some items and is tested on the others.

Shape letters: ``N`` items, ``D`` the width of vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.ranking import interval
from eval.contract import Output, State
from eval.probes.linear import logistic
from eval.probes.pooled import chance, knn, linear


class LinearProbe:
    """The accuracy of logistic regression and of k-NN, as in ``eval/probes``, on items whose own class they know.

    learned: how the keys of the items begin that they learn from; all others are tested. Vectors are kept until the
    end. The order of items decides which of those learned from choose the strength of the penalty.
    """

    name = "linear probe"

    def __init__(self, learned: str) -> None:
        self._learned = learned
        self.record = {
            "learned from": f"items of {learned}",
            "classifier": "logistic regression of vectors scaled to variance 1; a quarter of each class chooses its "
            "penalty; k-NN of 20 neighbours by cosine",
        }

    def start(self) -> State:
        """No vectors, and for each its label and whether it is learned from."""
        return {"vectors": np.zeros((0, 0), np.float32), "labels": np.zeros(0, np.int64), "learned": np.zeros(0, bool)}

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Fold outputs into ``state``, in place; none has a number alone. Raises: AtokenError for one without both."""
        for output in outputs:
            vector, label, key = output.vector, output.item.label, output.item.key
            if vector is None or label is None:
                raise AtokenError(f"{key} lacks a vector or a label; a probe needs both of every item.")
            part = {"vectors": vector[None], "labels": np.array([label]), "learned": np.array([self._is_learned(key)])}
            state.update(self.merge(state, part))
        return [{} for _ in outputs]

    def _is_learned(self, key: str) -> bool:
        return key.startswith(self._learned)

    def merge(self, first: State, second: State) -> State:
        """The items of ``first``, then those of ``second``."""
        if not len(first["labels"]) or not len(second["labels"]):  # the width of no vectors is unknown
            return dict(first if len(first["labels"]) else second)
        return {name: np.concatenate([first[name], second[name]]) for name in first}

    def finish(self, state: State) -> dict[str, float]:
        """Shares from 0 to 1: of both classifiers, the 95 % interval of the first, that of the commonest class.

        Raises: AtokenError without items on either side, for a class of one item to learn from, or vectors that are
        not finite.
        """
        learned_N = state["learned"]
        if learned_N.all() or not learned_N.any():
            raise AtokenError("A probe needs items to learn from and items to test on; measure more of them.")
        vectors_ND, labels_N = state["vectors"], state["labels"]
        known, truth = labels_N[learned_N], labels_N[~learned_N]
        parts = vectors_ND[learned_N], known, vectors_ND[~learned_N], truth
        accuracy = linear(logistic, *parts)
        low, high = interval(accuracy, len(truth))
        return {
            "linear probe": accuracy,
            "linear probe low": low,
            "linear probe high": high,
            "k-NN": knn(*parts),
            "commonest class": chance(known, truth),
            "items tested": float(len(truth)),
        }
