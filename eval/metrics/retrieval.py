"""Retrieval by vectors: items by their captions and captions by their items, R@1, R@5 and R@10.

Shape letters: ``I`` items, ``K`` captions, ``Q`` queries and ``C`` candidates of either direction, ``D`` the width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.ranking import ahead_of_own, in_top, interval
from eval.contract import Model, Output, State
from eval.metrics.exact import on_grid

BEST = (1, 5, 10)
SCORES = 1 << 22  # similarities that are held at a time: 32 MB
_NONE = np.zeros((0, 1), np.float32)


class Retrieval:
    """R@k in both directions, where every item has one caption or more.

    text to item: every caption is a query, and its own item a hit among the k nearest. item to text: every item is a
    query, and a hit where any of its own captions is among the k nearest of all. Pessimistic: a candidate that is as
    near as the own one counts as nearer; a vector that is not finite is never found, finds nothing, and does not count
    as nearer than others. Queries with such ties and vectors are counted. The order of items and shards does not
    matter. model: embeds the captions, once, when their item comes. scores: how many to hold at a time.
    """

    name = "retrieval"

    def __init__(self, model: Model, *, scores: int = SCORES) -> None:
        self._model, self._scores = model, scores
        self.record = {
            "text to item": "every caption a query",
            "item to text": "any own caption a hit",
            "ties": "misses",
        }

    def start(self) -> State:
        """No vectors, and for each caption the position of its item."""
        return {"items": _NONE, "captions": _NONE, "owners": np.zeros(0, np.int64)}

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Fold outputs into ``state``, in place; none has a number alone.

        Raises: AtokenError for an output without a vector or captions, or a model without texts.
        """
        for part in [self._of_one(output) for output in outputs]:
            state.update(self.merge(state, part))
        return [{} for _ in outputs]

    def _of_one(self, output: Output) -> State:
        vector, captions = output.vector, output.item.captions
        if vector is None or not captions:
            what = "vector" if vector is None else "captions"
            raise AtokenError(f"{output.item.key} has no {what}; retrieval needs both of every item.")
        found = np.asarray(self._model.embed_texts(captions), np.float32)
        return {"items": vector[None], "captions": found, "owners": np.zeros(len(captions), np.int64)}

    def merge(self, first: State, second: State) -> State:
        """The vectors of ``first``, then those of ``second``."""
        owners = np.concatenate([first["owners"], second["owners"] + len(first["items"])])
        return {name: _joined(first[name], second[name]) for name in ("items", "captions")} | {"owners": owners}

    def finish(self, state: State) -> dict[str, float]:
        """Shares from 0 to 1 by direction and k, NaN without items, the 95 % interval of R@1, and the counts."""
        items_ID, captions_KD = (on_grid(state[name], name) for name in ("items", "captions"))
        positions_I, owners_K = np.arange(len(items_ID)), state["owners"]
        found = {
            "text to item": self._ahead(captions_KD, owners_K, items_ID, positions_I),
            "item to text": self._ahead(items_ID, positions_I, captions_KD, owners_K),
        }
        return {f"{way} {name}": value for way, ranks in found.items() for name, value in _recalls(*ranks).items()}

    def _ahead(
        self, queries_QD: np.ndarray, groups_Q: np.ndarray, candidates_CD: np.ndarray, groups_C: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``ahead_of_own`` of all queries, where a candidate of the same group is an own one."""
        step = max(1, self._scores // max(1, len(candidates_CD)))
        ahead_Q, ties_Q = np.zeros(len(queries_QD), np.int64), np.zeros(len(queries_QD), bool)
        for some in (slice(first, first + step) for first in range(0, len(queries_QD), step)):
            own_QC = groups_Q[some, None] == groups_C
            ahead_Q[some], ties_Q[some] = ahead_of_own(queries_QD[some] @ candidates_CD.T, own_QC)
        return ahead_Q, ties_Q


def _recalls(ahead_Q: np.ndarray, ties_Q: np.ndarray) -> dict[str, float]:
    shares = {f"R@{best}": float(in_top(ahead_Q, best).mean()) if len(ahead_Q) else np.nan for best in BEST}
    low, high = interval(shares["R@1"], len(ahead_Q))
    counts = {"ties": float(ties_Q.sum()), "not finite": float((ahead_Q < 0).sum())}
    return shares | {"R@1 low": low, "R@1 high": high} | counts


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([first, second]) if len(first) else second  # empty ones have no width yet
