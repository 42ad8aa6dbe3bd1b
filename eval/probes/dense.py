"""Whether tokens serve dense tasks: a linear classifier of single tokens, scored by token and, enlarged, by pixel.

Letters: ``H`` rows and ``W`` columns of pixels, ``R`` rows and ``K`` columns of tokens, ``D`` the width of features,
``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.errors import AtokenError
from atoken.modalities.pixels import patchify, to_values
from atoken.patches import PATCH, grid
from atoken.tokenizer import Tokenizer
from eval.probes.figures import IGNORED, SETS, Masked
from eval.probes.linear import Linear, best, logistic

Dense = Callable[[np.ndarray], np.ndarray]  # pixels (H, W, 3) uint8 to features (R, K, D)
CHECKED = 4  # of so many training images, the last chooses the strength


def tokens_of(tokenizer: Tokenizer, which: Literal["features", "latents"]) -> Dense:
    """What a probe reads of an image's tokens: the encoder's ``features``, or the ``latents`` that a file stores."""

    @torch.inference_mode()
    def dense(pixels: np.ndarray) -> np.ndarray:
        encoded = tokenizer.model.encode(patchify(to_values(pixels[None])).to(tokenizer.device))
        feats = getattr(encoded, which).feats.double().cpu().numpy()
        return feats.reshape(*grid(1, *pixels.shape[:2])[1:], -1)

    return dense


def pixels_of(pixels: np.ndarray) -> np.ndarray:
    """The pixels of each 16 x 16 patch, (R, K, 768): what a probe finds without any tokenizer."""
    patches = patchify(to_values(pixels[None])).feats.double().numpy()
    first_frame = patches[:, : patches.shape[1] // PATCH[0]]
    return first_frame.reshape(*grid(1, *pixels.shape[:2])[1:], -1)


def segmentation_probe(
    dense: Dense, training: Iterable[Masked], tested: Iterable[Masked], sets: Mapping[str, np.ndarray] = SETS
) -> dict[str, float]:
    """How well single tokens predict the classes of their pixels, for each set of answers by class of ``Masked``.

    Recipe: logistic regression (``linear.best``) from the features of each token to the shares that the classes have of
    its pixels; every fourth training image chooses the strength. Scores are enlarged to pixels (bilinear), and the
    largest is the answer. Least squares fits balanced classes only: it rarely gives a rare one the largest score.

    ``SET/miou``: intersection over union over the pixels of all test images that count, mean over the classes that
    occur in them. ``SET/chance``: that of a guess from how often each class is at each position; ``SET/ceiling``: that
    of the true shares, about the most that this grid of tokens allows. ``SET/tokens``: share of tokens (of which half
    the pixels count) whose commonest class is predicted, and ``SET/tokens-chance``. Memory: the training features.
    Raises: AtokenError (images of several sizes or with partial tokens, too few to train on, none to test on, features
    that are not finite).
    """
    guessers = _learn(dense, training, sets)
    boards = {name: _Board(table) for name, table in sets.items()}
    for image in tested:
        features = dense(image.pixels)
        for name, (classifier, frequency) in guessers.items():
            truth = _shares(image, features, sets[name], frequency)
            boards[name].add(image.classes, {"miou": classifier(features), "chance": frequency, "ceiling": truth})
    return {f"{name}/{key}": number for name, board in boards.items() for key, number in board.finish().items()}


def _learn(
    dense: Dense, training: Iterable[Masked], sets: Mapping[str, np.ndarray]
) -> dict[str, tuple[Linear, np.ndarray]]:
    """For each set the classifier, and how much there is of each class at each position (R, K, C)."""
    features: list[np.ndarray] = []
    shares: dict[str, list[np.ndarray]] = {name: [] for name in sets}
    for image in training:
        features.append(dense(image.pixels))
        for name, table in sets.items():
            shares[name].append(_shares(image, features[-1], table, features[0]))
    checks_P = np.arange(len(features)) % CHECKED == CHECKED - 1  # the images that choose the strength
    found = {}
    for name, of in shares.items():
        counted_P = np.array([one.sum() > 0 for one in of], bool)
        if not (counted_P & checks_P).any() or not (counted_P & ~checks_P).any():
            raise AtokenError(f"A segmentation probe needs {CHECKED} training images, got {len(of)}; add some.")
        x, y = (np.concatenate([one.reshape(-1, one.shape[-1]) for one in rows]) for rows in (features, of))
        counts, checks = y.sum(1) > 0, np.repeat(checks_P, features[0].shape[0] * features[0].shape[1])
        found[name] = best(logistic, x[counts], y[counts], checks[counts]), np.sum(of, axis=0)
    return found


def _shares(image: Masked, features: np.ndarray, table: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The share that each class has of the pixels of each token: (R, K, C). Raises: AtokenError."""
    (rows, columns), (height, width) = features.shape[:2], image.classes.shape
    if height % rows or width % columns or like.shape[:2] != (rows, columns):
        raise AtokenError("A segmentation probe needs images of one size and of whole tokens; crop or scale them.")
    blocks = image.classes.reshape(rows, height // rows, columns, width // columns)
    blocks = blocks.swapaxes(1, 2).reshape(rows, columns, -1, 1)
    return (table[blocks] == np.arange(table.max() + 1)).mean(2)


class _Board:
    """For each guess, pixels by true and predicted class, and the number of tokens that are right."""

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.ways = table, int(table.max()) + 1
        self.pixels: dict[str, np.ndarray] = {}
        self.hits: dict[str, int] = {}
        self.tokens = 0

    def add(self, classes: np.ndarray, guesses: Mapping[str, np.ndarray]) -> None:
        shares, truth = guesses["ceiling"], self.table[classes]
        full, counts = shares.sum(-1) >= 0.5, truth != IGNORED
        for name, scores in guesses.items():
            answers = enlarged(scores, *classes.shape).argmax(-1)
            found = np.bincount(truth[counts] * self.ways + answers[counts], minlength=self.ways**2)
            self.pixels[name] = self.pixels.get(name, 0) + found.reshape(self.ways, self.ways)
            right = scores.argmax(-1) == shares.argmax(-1)
            self.hits[name] = self.hits.get(name, 0) + int(right[full].sum())
        self.tokens += int(full.sum())

    def finish(self) -> dict[str, float]:
        if not self.tokens:
            raise AtokenError("A segmentation probe got no image to test on; give it some.")
        numbers = {name: mean_iou(found) for name, found in self.pixels.items()}
        tokens = {"tokens": self.hits["miou"], "tokens-chance": self.hits["chance"]}
        return numbers | {name: hits / self.tokens for name, hits in tokens.items()}


def mean_iou(confusion_CC: np.ndarray) -> float:
    """Intersection over union of pixels by true (row) and predicted class, mean over the classes that occur."""
    both, truth, answers = confusion_CC.diagonal(), confusion_CC.sum(1), confusion_CC.sum(0)
    occurs = truth > 0
    return float((both[occurs] / (truth + answers - both)[occurs]).mean())


def enlarged(scores_RKC: np.ndarray, height: int, width: int) -> np.ndarray:
    """(R, K, C) to (H, W, C), bilinear between the centres of tokens."""
    scores = torch.from_numpy(np.ascontiguousarray(scores_RKC)).movedim(-1, 0)[None]
    return F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)[0].movedim(0, -1).numpy()
