"""Zero-shot classification: the class whose prompts are nearest to an item (Radford et al. 2021, section 3.1).

Of all items among the same classes, or of each among captions of its own.

Shape letters: ``C`` classes, ``T`` templates, ``D`` the width of vectors.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.ranking import ahead_of_own, in_top, interval
from eval.contract import Model, Output, State
from eval.metrics.exact import on_grid


@dataclass(frozen=True)
class Templates:
    """Sentences with ``{}`` where the name of a class goes, and the name of this set of sentences."""

    name: str
    sentences: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.sentences or any(sentence.count("{}") != 1 for sentence in self.sentences):
            raise AtokenError(f"Each template of {self.name} needs one {{}} for the name of the class; add it.")

    def prompts(self, label: str) -> list[str]:
        """The sentences about one class; a brace in its name stays."""
        return [sentence.replace("{}", label) for sentence in self.sentences]


CLASS_NAME_ONLY = Templates("class name only", ("{}",))
A_PHOTO = Templates("a photo of", ("a photo of {}",))
# Those of CLIP on ImageNet, which open_clip and most papers use; "a origami" is OpenAI's.
_SENTENCES = Path(__file__).with_name("openai_templates.txt").read_text(encoding="utf-8")
OPENAI = Templates("80 of OpenAI", tuple(_SENTENCES.splitlines()))


class _Nearest(ABC):
    """The share of items whose own candidate is the nearest, and of those where it is among the nearest few.

    Pessimistic: a candidate that is as near as the own one counts as nearer, and a vector that is not finite is a miss;
    both are counted. The order of items and candidates does not matter.
    """

    name: str
    best: tuple[int, ...] = (1,)

    @abstractmethod
    def candidates(self, output: Output) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors (C, D) that an output is compared with, on the grid, and (C,) bool: which is its own."""

    def start(self) -> State:
        """Counts of items, of hits, of ties and of vectors that are not finite."""
        return {name: np.zeros(1) for name in ("items", *self._hits(), *self._counts())}

    def _hits(self) -> dict[str, int]:
        return {f"{self.name} top-{best}": best for best in self.best}

    def _counts(self) -> tuple[str, str]:
        return f"{self.name} ties", f"{self.name} not finite"

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Fold outputs into ``state``, in place. Raises: AtokenError for one without a vector or an own candidate."""
        found = [self._of_one(output) for output in outputs]
        for name, value in (pair for numbers in found for pair in numbers.items()):
            state[name] += value
        return [{name: numbers[name] for name in self._hits()} for numbers in found]

    def _of_one(self, output: Output) -> dict[str, float]:
        candidates_CD, own_C = self.candidates(output)
        assert output.vector is not None, "candidates raises where there is none"
        scores_C = candidates_CD @ on_grid(output.vector[None], output.item.key)[0]
        ahead, ties = ahead_of_own(scores_C[None], own_C[None])
        hits = {name: float(in_top(ahead, best)[0]) for name, best in self._hits().items()}
        return hits | {"items": 1.0} | dict(zip(self._counts(), (float(ties[0]), float(ahead[0] < 0)), strict=True))

    def merge(self, first: State, second: State) -> State:
        """The counts of both."""
        return {name: first[name] + second[name] for name in first}

    def finish(self, state: State) -> dict[str, float]:
        """Shares from 0 to 1, NaN without items, the 95 % interval of top-1, and the counts."""
        items, first = float(state["items"][0]), f"{self.name} top-1"
        shares = {name: float(state[name][0]) / items if items else np.nan for name in self._hits()}
        low, high = interval(shares[first], int(items))
        counts = {name: float(state[name][0]) for name in self._counts()}
        return shares | {f"{first} low": low, f"{first} high": high} | counts


class ZeroShot(_Nearest):
    """The share of items whose own class is the nearest, and of those where it is among the nearest five.

    vectors_CD: from ``class_vectors``. labels: the names of the C classes, and templates: what their vectors were made
    from, for the record. Raises: AtokenError for vectors that do not fit the labels, or are not unit vectors.
    """

    name, best = "zero-shot", (1, 5)

    def __init__(self, vectors_CD: np.ndarray, labels: Sequence[str], templates: Templates) -> None:
        if len(vectors_CD) != len(labels):
            raise AtokenError(f"There are {len(vectors_CD)} vectors for {len(labels)} classes; give one for each.")
        self._classes_CD = on_grid(vectors_CD, "a class")
        if not self._classes_CD.any(axis=1).all() or np.isnan(self._classes_CD).any():
            raise AtokenError("The vector of a class is zero or not finite; look for the fault in the model.")
        self.record = {
            "templates": f"{templates.name}, SHA-256 {_digest(templates.sentences)}",
            "classes": f"{len(labels)}, SHA-256 {_digest(labels)}",
            "ties": "misses",
        }

    def candidates(self, output: Output) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of all classes. Raises: AtokenError (an output without a vector or a label)."""
        label = output.item.label
        if output.vector is None or label is None or not 0 <= label < len(self._classes_CD):
            what = "vector" if output.vector is None else f"label below {len(self._classes_CD)}"
            raise AtokenError(f"{output.item.key} has no {what}; zero-shot classification needs both of every item.")
        return self._classes_CD, np.arange(len(self._classes_CD)) == label


class Choice(_Nearest):
    """The share of items that are nearest to the right one of their captions: the one whose number is the label.

    The captions of an item differ in what is asked, and in nothing else. model: embeds them when the item comes.
    """

    name = "choice"

    def __init__(self, model: Model) -> None:
        self._model = model
        self.record = {"candidates": "captions of each item", "ties": "misses"}

    def candidates(self, output: Output) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of the captions. Raises: AtokenError (an output without a vector, captions or a label)."""
        captions, label = output.item.captions, output.item.label
        if output.vector is None or label is None or not 0 <= label < len(captions):
            what = "vector" if output.vector is None else "caption with the number of its label"
            raise AtokenError(f"{output.item.key} has no {what}; a choice needs both of every item.")
        vectors_CD = _units(self._model.embed_texts(list(captions)))
        return on_grid(vectors_CD, output.item.key), np.arange(len(captions)) == label


def class_vectors(model: Model, labels: Sequence[str], templates: Templates) -> np.ndarray:
    """(C, D) float64: of each class, the mean of the normalised vectors of its prompts, normalised.

    A class at a time, so that its vector does not depend on the others.
    Raises: AtokenError without classes, or for a model without a text side.
    """
    if not labels:
        raise AtokenError("There are no classes; give the names of some.")
    means_CD = np.stack([_units(model.embed_texts(templates.prompts(label))).mean(axis=0) for label in labels])
    return _units(means_CD)


def _units(vectors_TD: np.ndarray) -> np.ndarray:
    values_TD = np.asarray(vectors_TD, np.float64)
    lengths_T1 = np.linalg.norm(values_TD, axis=1, keepdims=True)
    return values_TD / np.where(lengths_T1 == 0, 1, lengths_T1)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
