"""Differences, windows and frames that a report shows are the worst ones."""

import re
from io import BytesIO

import numpy as np
import PIL.Image

from atoken.io import Image
from eval.contract import Item, Output
from eval.report import findings


def test_differences_are_amplified_by_the_largest_power_of_two_that_fits():
    target = np.full((20, 20, 3), 100, np.uint8)
    for distance, factor in ((0, 64), (1, 64), (3, 64), (4, 32), (15, 16), (16, 8), (127, 2), (128, 1), (155, 1)):
        prediction = target + np.uint8(distance)
        difference, found = findings.amplified(target, prediction)
        assert found == factor
        assert (difference == distance * factor).all()
        assert (findings.amplified(prediction, target)[0] == difference).all()
    prediction = target + np.uint8(2)
    prediction[0, 0] = 255  # 3 of 1,200 values may go over
    difference, found = findings.amplified(target, prediction)
    assert found == 64
    assert difference[0, 0].tolist() == [255] * 3
    assert difference[1, 1].tolist() == [128] * 3


def test_the_worst_window_is_that_of_brute_force():
    errors = np.random.default_rng(1).integers(0, 9, (13, 17)).astype(float)
    sums = {(top, left): errors[top : top + 5, left : left + 5].sum() for top in range(9) for left in range(13)}
    top, left = max(sums, key=lambda place: sums[place])
    assert findings.worst_window(errors, 5) == (left, top, left + 5, top + 5)
    assert findings.worst_window(errors, 15) == findings.worst_window(errors, 15)
    assert findings.worst_window(errors, 99) == (0, 0, 17, 13)
    large = np.zeros((400, 900, 3), np.uint8)
    spot = large.copy()
    spot[390:, 800:810] = 9
    figure = findings.Pair("key", "title", large, spot).triptych()
    assert PIL.Image.open(BytesIO(figure.data)).size == (3 * findings.SHOWN, findings.SHOWN)
    top, bottom, left, right, *size = map(int, re.findall(r"\d+", figure.words)[1:])
    assert size == [400, 900]
    assert left <= 800 < 810 <= right
    assert (top, bottom) == (16, 400)


def test_the_frame_that_is_kept_is_the_worst_where_pixels_count():
    rng = np.random.default_rng(2)
    target = rng.integers(0, 200, (4, 6, 8, 3), np.uint8)
    prediction, mask = target.copy(), np.ones((4, 6, 8), bool)
    prediction[1, 0, 0], prediction[2, 3, 3] = target[1, 0, 0] + 50, target[2, 3, 3] + 20
    item = Item("video", Image(target[0]))
    assert (findings.keep(Output(item, target, prediction))[1] == prediction[1]).all()
    mask[1, 0, 0] = False
    kept = findings.keep(Output(item, target, prediction, mask))
    assert (kept[0] == target[2]).all()
    assert (kept[1] == prediction[2]).all()
    assert findings.keep(Output(item)) is None
