"""What is counted in a store: sums of latents by modality, codes, labels. Totals of pieces add up to the whole's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from typing import Any

import torch
from torch import Tensor

from atoken.statistics import ALL, Sums
from atoken.store.layout import numbers_first
from atoken.store.plan import Model


class Totals:
    """``sums``: by modality. ``codes`` (G, codes): how often each of a discrete model's occurs. ``labels``: of rows.

    ``items``: of the source, each once whatever its flips and draws.
    Floats are fp64 and are added in the order of the items, so that they are the same whoever made which piece.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.items = 0
        self.sums: dict[str, Sums] = {}
        self.labels: Counter[str] = Counter()
        shape = (model.channels // len(model.levels), prod(model.levels)) if model.levels else (0, 0)
        self.codes = torch.zeros(shape, dtype=torch.int64)

    def add(self, modality: str, latents: Tensor, codes: Tensor | None, samples: int) -> None:
        """Count (N, C) latents, and (N, G) codes if there are, of so many new samples."""
        self.sums.setdefault(modality, Sums(self.model.channels)).add(latents, samples)
        if codes is not None:
            for counts, column in zip(self.codes, codes.T, strict=True):
                counts += torch.bincount(column, minlength=len(counts))

    def __iadd__(self, other: Totals) -> Totals:
        self.items += other.items
        for modality, sums in other.sums.items():
            self.sums[modality] = self.sums.get(modality, Sums(self.model.channels)) + sums
        self.labels += other.labels
        self.codes += other.codes
        return self

    def plain(self) -> dict[str, Any]:
        """What ``of`` takes, for msgpack."""
        sums = {name: (s.samples, s.tokens, s.sums.tolist(), s.ends.tolist()) for name, s in self.sums.items()}
        return {"items": self.items, "sums": sums, "labels": self.labels, "codes": self.codes.tolist()}

    @staticmethod
    def of(model: Model, plain: Mapping[str, Any]) -> Totals:
        """The totals that ``plain`` gave."""
        totals = Totals(model)
        totals.items = plain["items"]
        for name, (samples, tokens, sums, ends) in plain["sums"].items():
            one = totals.sums[name] = Sums(model.channels)
            one.samples, one.tokens = samples, tokens
            one.sums, one.ends = (torch.tensor(rows, dtype=torch.float64) for rows in (sums, ends))
        totals.labels.update(plain["labels"])
        totals.codes += torch.tensor(plain["codes"], dtype=torch.int64).reshape(totals.codes.shape)
        return totals

    def statistics(self) -> dict[str, Any]:
        """For ``stats.json``: of each modality and of all, with the sums, so that those of stores can be added."""
        every = {name: sums for name, sums in sorted(self.sums.items()) if sums.tokens}
        every[ALL] = sum(every.values(), start=Sums(self.model.channels))
        named = ("sums", "squares", "least", "most")
        latents = {
            name: asdict(sums.statistics()) | dict(zip(named, [*sums.sums.tolist(), *sums.ends.tolist()], strict=True))
            for name, sums in every.items()
        }
        codes = self.codes.tolist() if self.model.levels else None
        labels = {label: self.labels[label] for label in sorted(self.labels, key=numbers_first)}
        return {"latents": latents, "codes": codes, "labels": labels}
