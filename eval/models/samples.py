"""Images that stand for the items of a data set: for each item one of its class, made by a generator or real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from atoken.errors import AtokenError
from eval.contract import Dataset, Item, Model, Output
from eval.models.pixels import frames_of


class Samples:
    """A generator as a model under test: what it makes of an item is a sample of the item's class.

    record: which images they are. images: by the keys of the items that they stand for. judge: the model whose vectors
    say what is seen in them, where vectors are asked for. real: the keys of items that stand for themselves, such as
    those that a probe learns from.
    """

    def __init__(
        self,
        name: str,
        record: Mapping[str, str],
        images: Dataset,
        judge: Model | None = None,
        real: Callable[[str], bool] = lambda key: False,
    ) -> None:
        self.name, self._images, self._judge, self._real = name, images, judge, real
        self.record = dict(record)
        if judge is not None:
            self.name += f", seen by {judge.name}"
            self.record["judge"] = f"{judge.name} {judge.record.get('fingerprint', '')}".strip()
        self._indices = {images.key(index): index for index in range(len(images))}

    def reconstruct(self, items: Sequence[Item]) -> list[Output]:
        """The image that stands for each item, beside the item. Raises: AtokenError."""
        return [Output(item, frames_of(item, self.name), frames_of(self._stand_in(item), self.name)) for item in items]

    def embed(self, items: Sequence[Item]) -> list[Output]:
        """Its vector. Raises: AtokenError."""
        assert self._judge is not None, "a task of vectors has a judge"
        found = self._judge.embed([self._stand_in(item) for item in items])
        return [Output(item, vector=output.vector) for item, output in zip(items, found, strict=True)]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """As the judge does. Raises: AtokenError."""
        assert self._judge is not None, "a task of vectors has a judge"
        return self._judge.embed_texts(texts)

    def _stand_in(self, item: Item) -> Item:
        if self._real(item.key):
            return item
        if item.key not in self._indices:
            raise AtokenError(f"No image of {self.name} stands for {item.key}.")
        return replace(item, media=self._images[self._indices[item.key]].media)
