"""Zero-shot classification: the class whose prompts are nearest to an item (Radford et al. 2021, section 3.1).

Shape letters: ``C`` classes, ``T`` templates, ``D`` the width of vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.ranking import ahead_of_own, in_top
from eval.contract import Model, Sample, State
from eval.metrics.exact import on_grid

HITS = {"zero-shot top-1": 1, "zero-shot top-5": 5}
COUNTS = ("zero-shot ties", "zero-shot not finite")


@dataclass(frozen=True)
class Templates:
    """Sentences with a place ``{}`` for the name of a class, and what this set of them is called."""

    name: str
    sentences: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.sentences or any(sentence.count("{}") != 1 for sentence in self.sentences):
            raise AtokenError(f"Each template of {self.name} needs one {{}} where the class is named; write it there.")

    def prompts(self, label: str) -> list[str]:
        """The sentences about one class; a brace in its name stays."""
        return [sentence.replace("{}", label) for sentence in self.sentences]


CLASS_NAME_ONLY = Templates("class name only", ("{}",))
OPENAI = Templates(
    "80 of OpenAI",  # of CLIP on ImageNet, which open_clip and most papers evaluate with; "a origami" is target
    (
        "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
        "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
        "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
        "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
        "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
        "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.",
        "a painting of a {}.", "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.",
        "a cropped photo of a {}.", "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.",
        "a {} in a video game.", "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.",
        "a photo of a {}.", "the origami {}.", "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.",
        "a origami {}.", "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.",
        "a photo of the clean {}.", "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.",
        "a photo of a weird {}.", "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.",
        "a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.", "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.",
        "a photo of the weird {}.", "the cartoon {}.", "art of the {}.", "a drawing of the {}.",
        "a photo of the large {}.", "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.",
        "itap of a {}.", "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.",
        "a photo of a small {}.", "a tattoo of the {}.",
    ),
)  # fmt: skip


class ZeroShot:
    """The share of items whose own class is the nearest, and of those where it is among the nearest five.

    Pessimistic: a class that is as near as the own one counts as nearer, and a vector that is not finite is a miss;
    both are counted beside. The order of neither items nor classes matters. vectors_CD: as ``class_vectors`` makes
    them. labels: the names of the C classes, and templates: what made vectors of them, for the record.
    Raises: AtokenError for vectors that do not fit the labels, or are no unit vectors.
    """

    name = "zero-shot"

    def __init__(self, vectors_CD: np.ndarray, labels: Sequence[str], templates: Templates) -> None:
        if len(vectors_CD) != len(labels):
            raise AtokenError(f"There are {len(vectors_CD)} vectors for {len(labels)} classes; make one for each.")
        self._classes_CD = on_grid(vectors_CD, "a class")
        if not self._classes_CD.any(axis=1).all() or np.isnan(self._classes_CD).any():
            raise AtokenError("The vector of a class is zero or not finite; look for the fault in the model.")
        self.record = {
            "templates": f"{templates.name}, SHA-256 {_digest(templates.sentences)}",
            "classes": f"{len(labels)}, SHA-256 {_digest(labels)}",
            "ties": "misses",
        }

    def start(self) -> State:
        """Counts of items, of hits, of ties and of vectors that are not finite."""
        return {name: np.zeros(1) for name in ("items", *HITS, *COUNTS)}

    def add(self, state: State, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Fold samples into ``state``, in place. Raises: AtokenError for one without a vector or a label."""
        found = [self._of_one(sample) for sample in samples]
        for name, value in (pair for numbers in found for pair in numbers.items()):
            state[name] += value
        return [{name: numbers[name] for name in HITS} for numbers in found]

    def _of_one(self, sample: Sample) -> dict[str, float]:
        vector, label = sample.vector, sample.item.label
        if vector is None or label is None or not 0 <= label < len(self._classes_CD):
            what = "vector" if vector is None else f"label below {len(self._classes_CD)}"
            raise AtokenError(f"{sample.item.key} has no {what}; embed items of the classes that are named.")
        scores_C = self._classes_CD @ on_grid(vector[None], sample.item.key)[0]
        ahead, ties = ahead_of_own(scores_C[None], np.arange(len(scores_C))[None] == label)
        hits = {name: float(in_top(ahead, best)[0]) for name, best in HITS.items()}
        return hits | {"items": 1.0, "zero-shot ties": float(ties[0]), "zero-shot not finite": float(ahead[0] < 0)}

    def merge(self, first: State, second: State) -> State:
        """The counts of both."""
        return {name: first[name] + second[name] for name in first}

    def finish(self, state: State) -> dict[str, float]:
        """Shares from 0 to 1, NaN without items; numbers of items that tie and that are not finite."""
        items = float(state["items"][0])
        shares = {name: float(state[name][0]) / items if items else np.nan for name in HITS}
        return shares | {name: float(state[name][0]) for name in COUNTS}


def class_vectors(model: Model, labels: Sequence[str], templates: Templates) -> np.ndarray:
    """(C, D) float64: of each class, the mean of the normalised vectors of its prompts, normalised.

    A class at a time, so that its vector does not depend on the others.
    Raises: AtokenError without classes, or for a model without a text side.
    """
    if not labels:
        raise AtokenError("There are no classes to name; give the names of some.")
    means_CD = np.stack([_units(model.embed_texts(templates.prompts(label))).mean(axis=0) for label in labels])
    return _units(means_CD)


def zero_shot(model: Model, labels: Sequence[str], templates: Templates = OPENAI) -> ZeroShot:
    """The metric of a model and the names of classes. Raises: AtokenError, as ``class_vectors`` and ``ZeroShot``."""
    return ZeroShot(class_vectors(model, labels, templates), labels, templates)


def _units(vectors_TD: np.ndarray) -> np.ndarray:
    values_TD = np.asarray(vectors_TD, np.float64)
    lengths_T1 = np.linalg.norm(values_TD, axis=1, keepdims=True)
    return values_TD / np.where(lengths_T1 == 0, 1, lengths_T1)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
