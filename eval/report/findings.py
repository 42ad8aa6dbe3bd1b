"""What a report shows of single images: where a reconstruction is worst, how it differs, and crops of it.

Letters: ``T`` frames or views, ``H`` rows and ``W`` columns of pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoken.errors import MediaError, ReportError
from atoken.io import read_image
from atoken.metrics.pixels import psnr
from eval.contract import Sample
from eval.report.results import Row

SHOWN = 384  # pixels a side of an image on the page; three of them stand side by side
MOST_AMPLIFIED = 64
CLIPPED = 0.01  # share of a difference map's values that may go over white

Box = tuple[int, int, int, int]  # left, top, right, bottom: pixels of the image as it was measured


def keep(sample: Sample) -> tuple[np.ndarray, np.ndarray] | None:
    """The original and the reconstruction that a report shows of a sample, (H, W, 3) uint8 each.

    Of a video or an asset the frame or view with the largest squared error in the pixels that count; None of a sample
    without images. A runner writes both as PNG and names them in the row (``worst``, ``shown``).
    """
    if sample.target is None or sample.prediction is None or not len(sample.target):
        return None
    errors = []
    for place, (target, prediction) in enumerate(zip(sample.target, sample.prediction, strict=True)):
        squares = squared_errors(target, prediction)
        counts = None if sample.mask is None else sample.mask[place]
        errors.append(squares.mean() if counts is None else squares[counts].sum() / max(counts.sum(), 1))
    frame = int(np.argmax(errors))
    return sample.target[frame], sample.prediction[frame]


def squared_errors(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(H, W) float64: sum over colours of squared differences of two (H, W, 3) uint8 images."""
    return np.square(target.astype(np.int32) - prediction).sum(-1).astype(np.float64)


@dataclass(frozen=True)
class Pair:
    """An image that was kept: the original and the reconstruction, (H, W, 3) uint8, and what was measured of it."""

    key: str
    target: np.ndarray
    prediction: np.ndarray
    numbers: Mapping[str, float]


def pairs(row: Row, block: str) -> Iterator[Pair]:
    """The images that a row names in ``block`` (``worst`` or ``shown``). Raises: ReportError."""
    for one in row.record.get(block, ()):
        if "prediction" not in one:  # an item without images
            continue
        try:
            target, prediction = (read_image(row.file(one[side])).pixels for side in ("target", "prediction"))
        except MediaError as error:
            raise ReportError(f"An image that {row.path} names cannot be read: {error}") from error
        if target.shape != prediction.shape:
            raise ReportError(f"The two images of {one['key']} in {row.path} differ in size; run it again.")
        yield Pair(str(one["key"]), target, prediction, _numbers(one))


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in record.items() if isinstance(value, int | float)}


def triptych(target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, int, Box]:
    """Original, reconstruction and amplified difference side by side; the factor; and which part of the image.

    Of an image larger than ``SHOWN`` that window in which the squared error is largest, pixel by pixel: an image made
    smaller would hide what went wrong.
    """
    left, top, right, bottom = window = worst_window(squared_errors(target, prediction), SHOWN)
    target, prediction = (image[top:bottom, left:right] for image in (target, prediction))
    difference, factor = amplified(target, prediction)
    return np.concatenate([target, prediction, difference], axis=1), factor, window


def amplified(target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, int]:
    """|prediction - target| x factor, cut at 255: the largest power of two up to 64 that cuts at most 1 %."""
    difference = np.abs(prediction.astype(np.int32) - target)
    high = np.quantile(difference, 1 - CLIPPED, method="inverted_cdf")
    factor = next(2**power for power in range(6, -1, -1) if 2**power * high <= 255)
    return np.minimum(difference * factor, 255).astype(np.uint8), factor


def worst_window(errors_HW: np.ndarray, side: int) -> Box:
    """The window of at most ``side`` x ``side`` pixels with the largest sum; the first of equal ones."""
    height, width = (min(side, length) for length in errors_HW.shape)
    total = np.pad(errors_HW.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(left), int(top), int(left) + width, int(top) + height


# ------------------------------------------------------------------------------------------------------------ boxes


@dataclass(frozen=True)
class Crop:
    """A box of an image, original and reconstruction side by side (h, 2 w, 3), and the PSNR inside it."""

    key: str
    what: str
    pixels: np.ndarray
    psnr: float


def read_boxes(path: str | Path) -> dict[str, list[tuple[str, Box]]]:
    """Boxes of texts, faces or what else, by key.

    JSON: ``{KEY: [{"box": [left, top, right, bottom], "what": "face"}]}``, in pixels of the image as it was measured;
    right and bottom are the first ones outside. Raises: ReportError.
    """
    try:
        found = json.loads(Path(path).read_bytes())
        return {key: [(str(one.get("what", "box")), _box(one["box"])) for one in of] for key, of in found.items()}
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        form = '{"KEY": [{"box": [left, top, right, bottom], "what": "face"}]}'
        raise ReportError(f"{path} holds no boxes; write them as {form}.") from error


def _box(numbers: Iterable[object]) -> Box:
    left, top, right, bottom = (int(str(number)) for number in numbers)
    if not (0 <= left < right and 0 <= top < bottom):
        raise ValueError(numbers)
    return left, top, right, bottom


def crops(pair: Pair, boxes: Iterable[tuple[str, Box]]) -> Iterator[Crop]:
    """The boxes of one image. Raises: ReportError (a box that is not inside)."""
    height, width = pair.target.shape[:2]
    for what, (left, top, right, bottom) in boxes:
        if right > width or bottom > height:
            raise ReportError(
                f"A box of {pair.key} ends at ({right}, {bottom}), outside its {width}x{height} pixels as measured; "
                "scale it as the image was."
            )
        target, prediction = (image[top:bottom, left:right] for image in (pair.target, pair.prediction))
        yield Crop(pair.key, what, np.concatenate([target, prediction], axis=1), psnr(prediction, target))
