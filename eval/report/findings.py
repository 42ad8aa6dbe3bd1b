"""What a report shows of single images: where a reconstruction is worst, how it differs, and crops of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import PIL.Image

from atoken.errors import MediaError, ReportError
from atoken.io import read_image
from atoken.metrics.pixels import psnr
from atoken.report.page import Figure
from eval.contract import Output
from eval.report.results import Row
from eval.report.tables import number_text

SHOWN = 384  # pixels a side of an image on the page; three of them stand side by side
SMALLEST = 192  # pixels that an image is wide on the page, at least; smaller ones are enlarged
CLIPPED = 0.01  # share of a difference map's values that may go over white


class Box(msgspec.Struct):
    """Left, top, right, bottom in pixels of the image as it was measured (the last two are outside); what is in it."""

    box: tuple[int, int, int, int]
    what: str = "box"


Boxes = Mapping[str, list[Box]]  # by key


def keep(output: Output) -> tuple[np.ndarray, np.ndarray] | None:
    """The target and the prediction that a report shows of an output, (H, W, 3) uint8 each; None if it has no images.

    Of a video or an asset it is the frame or view with the largest squared error in the pixels that count.
    """
    if output.target is None or output.prediction is None or not len(output.target):
        return None
    counts = np.ones(output.target.shape[:3], bool) if output.mask is None else output.mask
    errors = [
        squared_errors(*images)[mask].sum() / max(mask.sum(), 1)
        for *images, mask in zip(output.target, output.prediction, counts, strict=True)
    ]
    frame = int(np.argmax(errors))
    return output.target[frame], output.prediction[frame]


def squared_errors(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(H, W) float64: sum over colours of squared differences of two (H, W, 3) uint8 images."""
    return np.square(target.astype(np.int32) - prediction).sum(-1).astype(np.float64)


@dataclass(frozen=True)
class Pair:
    """Target and prediction that were kept of an item, (H, W, 3) uint8; ``title``: its key and what was measured."""

    key: str
    title: str
    target: np.ndarray
    prediction: np.ndarray

    def triptych(self) -> Figure:
        """Target, prediction and amplified difference.

        Of an image larger than ``SHOWN`` it is the window in which the squared error is largest, pixel by pixel: an
        image scaled down would hide what went wrong.
        """
        left, top, right, bottom = worst_window(squared_errors(self.target, self.prediction), SHOWN)
        target, prediction = (image[top:bottom, left:right] for image in (self.target, self.prediction))
        difference, factor = amplified(target, prediction)
        words = f"target, prediction, difference x {factor}"
        if target.shape != self.target.shape:
            height, width = self.target.shape[:2]
            words += f"; the worst part, rows {top} to {bottom}, columns {left} to {right} of {height} x {width}"
        return side_by_side(self.title, words, target, prediction, difference)

    def crops(self, boxes: Boxes) -> Iterator[Figure]:
        """The boxes of this image. Raises: ReportError (a box that is not inside)."""
        height, width = self.target.shape[:2]
        for one in boxes.get(self.key, ()):
            left, top, right, bottom = one.box
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise ReportError(
                    f"The box {one.box} of {self.key} is not inside its {width}x{height} pixels as it was measured; "
                    "scale the box as the image was scaled."
                )
            target, prediction = (image[top:bottom, left:right] for image in (self.target, self.prediction))
            title = f"{one.what} of {self.key}, PSNR {psnr(prediction, target):.2f} dB"
            yield side_by_side(title, "target, prediction", target, prediction)


def side_by_side(title: str, words: str, *images: np.ndarray) -> Figure:
    """Images of one size, (H, W, 3) uint8 each, side by side; small ones are enlarged by a whole factor."""
    file, width = BytesIO(), images[0].shape[1]
    PIL.Image.fromarray(np.concatenate(images, axis=1)).save(file, format="PNG", optimize=True)
    return Figure(title, file.getvalue(), words, -(-SMALLEST // width) * width * len(images))


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
        numbers = [f"{name} {number_text(value)}" for name, value in one.items() if isinstance(value, int | float)]
        yield Pair(str(one["key"]), ", ".join([str(one["key"]), *numbers]), target, prediction)


def amplified(target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, int]:
    """|prediction - target| x factor, cut at 255: the largest power of two up to 64 that cuts at most 1 %."""
    difference = np.abs(prediction.astype(np.int32) - target)
    high = np.quantile(difference, 1 - CLIPPED, method="inverted_cdf")
    factor = next(2**power for power in range(6, -1, -1) if 2**power * high <= 255)
    return np.minimum(difference * factor, 255).astype(np.uint8), factor


def worst_window(errors_HW: np.ndarray, side: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the first window of at most ``side`` x ``side`` pixels with the largest sum."""
    height, width = (min(side, length) for length in errors_HW.shape)
    total = np.pad(errors_HW.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(left), int(top), int(left) + width, int(top) + height


def read_boxes(path: str | Path) -> Boxes:
    """Boxes of texts, faces or what else: ``{KEY: [{"box": [left, top, right, bottom], "what": "face"}]}``.

    Raises: ReportError.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=dict[str, list[Box]])
    except OSError as error:
        raise ReportError(f"Cannot read {path}: {error.strerror or error}.") from error
    except msgspec.MsgspecError as error:
        form = '{"KEY": [{"box": [left, top, right, bottom], "what": "face"}]}'
        raise ReportError(f"{path} holds no boxes; write them as {form}.") from error
