"""What the vector of an item says about its class: k-NN and linear classifiers, and the accuracy of a blind guess.

Letters: ``N`` items to train on, ``M`` items to test on, ``D`` the width of vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from atoken.data.synthetic.labelled import FIGURE_PROMPTS, WAYS, class_of, labelled_image
from atoken.errors import AtokenError
from atoken.io import Image
from atoken.metrics.ranking import ahead_of_own, in_top
from eval.contract import Item, Model
from eval.probes.linear import Fit, best, finite, logistic, ridge

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of k-NN (Wu et al. 2018)
SHARE = 0.25  # of the items of each class, held out
CHUNK = 256  # items compared with all others at once
SEED = 2_000_029  # of images that no stage trains on
BATCH = 16  # images that a model is given at once


def labelled_items(each: int, side: int, seed: int = SEED) -> Iterator[Item]:
    """Procedural images of one figure, ``side`` pixels square, ``each`` of all 48 classes in turn."""
    for index in range(each * WAYS):
        pixels = labelled_image(seed, index, side, side).frames[0]
        label = class_of(index)
        yield Item(f"labelled/{seed}/{index}", Image(pixels), label, (FIGURE_PROMPTS[label],))


def vectors_of(model: Model, items: Iterable[Item]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors (N, D) and labels (N,) of items, in constant memory but for these.

    Raises: as ``embed``; AtokenError (no items, or one without label or vector).
    """
    waiting, vectors, labels = iter(items), [], []
    while some := list(islice(waiting, BATCH)):
        for item, sample in zip(some, model.embed(some), strict=True):
            if item.label is None or sample.vector is None:
                raise AtokenError(f"A probe needs a label and a vector of every item; {item.key} lacks one.")
            vectors.append(sample.vector)
            labels.append(item.label)
    if not labels:
        raise AtokenError("A probe needs items to train on, got none; look at the data.")
    return np.stack(vectors).astype(np.float64), np.array(labels, np.int64)


def probe_vectors(vectors_ND: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """The accuracy of three classifiers on held-out items: ``knn``, ``linear`` (logistic regression) and ``ridge``.

    The last quarter of each class, in order, is held out; every class is in both parts. ``chance``: the accuracy of
    always predicting the commonest class; ``classes``, ``learned``, ``tested``: how many classes and items. Raises:
    AtokenError (a class of one item to train on, vectors that are not finite or zero).
    """
    _, labels = np.unique(labels_N, return_inverse=True)
    test = held_out(labels)
    parts = vectors_ND[~test], labels[~test], vectors_ND[test], labels[test]
    sizes = {"classes": labels.max() + 1, "learned": len(parts[1]), "tested": len(parts[3])}
    return {
        "knn": knn(*parts),
        "linear": linear(logistic, *parts),
        "ridge": linear(ridge, *parts),
        "chance": chance(parts[1], parts[3]),
    } | {name: float(size) for name, size in sizes.items()}


def held_out(labels_N: np.ndarray, share: float = SHARE) -> np.ndarray:
    """(N,) bool: the last items of each class, ``share`` of them, one at least and not all.

    Raises: AtokenError (a class of one item).
    """
    chosen = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        (indices,) = (labels_N == label).nonzero()
        if len(indices) < 2:
            raise AtokenError(f"Class {label} has one item only; a probe needs one to train on and one to test on.")
        chosen[indices[-max(1, min(round(share * len(indices)), len(indices) - 1)) :]] = True
    return chosen


def chance(labels_N: np.ndarray, truth_M: np.ndarray) -> float:
    """The accuracy of always predicting the class that is commonest among ``labels_N``."""
    return float((truth_M == np.bincount(labels_N).argmax()).mean())


def knn(
    vectors_ND: np.ndarray, labels_N: np.ndarray, tests_MD: np.ndarray, truth_M: np.ndarray, k: int = NEIGHBOURS
) -> float:
    """Share of tests whose own class gets strictly the most votes of their ``k`` nearest neighbours by cosine.

    A neighbour votes with exp(cosine / 0.07) (Wu et al. 2018, arXiv 1805.01978); of equally near ones the first
    counts. Ties of votes are misses. Raises: AtokenError (vectors that are not finite or zero).
    """
    known, asked = _unit(vectors_ND), _unit(tests_MD)
    ways, k = int(max(labels_N.max(), truth_M.max())) + 1, min(k, len(known))
    hits = 0
    for first in range(0, len(asked), CHUNK):
        cosines, truth = asked[first : first + CHUNK] @ known.T, truth_M[first : first + CHUNK]
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(truth), ways))
        rows = np.arange(len(truth))
        weights = np.exp((np.take_along_axis(cosines, nearest, 1) - 1) / TEMPERATURE)
        np.add.at(votes, (rows[:, None], labels_N[nearest]), weights)
        hits += wins(votes, truth)
    return hits / len(asked)


def linear(fit: Fit, vectors_ND: np.ndarray, labels_N: np.ndarray, tests_MD: np.ndarray, truth_M: np.ndarray) -> float:
    """Share of tests whose own class a linear classifier of the vectors scores strictly highest.

    The classifier is ``linear.best`` on one-hot classes; the last quarter of each class of the training items chooses
    its strength. Raises: AtokenError (a class of one item, vectors that are not finite).
    """
    ways = int(max(labels_N.max(), truth_M.max())) + 1
    classifier = best(fit, vectors_ND, np.eye(ways)[labels_N], held_out(labels_N))
    return wins(classifier(finite(tests_MD)), truth_M) / len(truth_M)


def wins(scores_MC: np.ndarray, truth_M: np.ndarray) -> int:
    """How many rows score their own class strictly higher than any other."""
    own_MC = np.arange(scores_MC.shape[1]) == truth_M[:, None]
    return int(in_top(ahead_of_own(scores_MC, own_MC)[0], 1).sum())


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(finite(vectors), axis=1, keepdims=True)
    if not lengths.all():
        raise AtokenError("Some vectors are zero and have no direction; look for the fault in the model.")
    return vectors / lengths
