"""Media scaled down: the aspect, the filter, alpha, and what is left alone."""

import numpy as np
import PIL.Image
import pytest

from atoken.data.synthetic.procedural import make_asset
from atoken.errors import MediaError
from atoken.io import Image, Video
from atoken.media.scaling import at_most, fitted, smaller
from tests.tokenizer.small import random_frames


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((90, 60), 30, (30, 20)), ((60, 90), 30, (20, 30)), ((500, 3), 100, (100, 1)), ((1000, 1), 10, (10, 1)),
     ((90, 60), 90, (90, 60)), ((90, 60), 1000, (90, 60)), ((90, 60), None, (90, 60)), ((90, 60), 1, (1, 1))],
)  # fmt: skip
def test_the_longer_side_is_at_most_so_long_and_nothing_is_enlarged(size, side, expected):
    assert fitted(*size, side) == expected
    pixels = random_frames(*size)
    scaled = at_most(pixels, side)
    assert scaled.shape == (*expected, 3)
    assert (scaled is pixels) == (expected == size)


def test_what_is_too_fine_is_averaged_and_does_not_alias():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 254
    assert np.abs(at_most(stripes, 50).astype(int) - 127).max() <= 1


def test_alpha_weighs_colours():
    """Black behind nothing must not darken the edge."""
    pixels, alpha = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    pixels[:, :30], alpha[:, :30] = 200, 255
    scaled = smaller(Image(pixels, alpha), 16)
    assert (scaled.pixels.shape, scaled.alpha.shape) == ((16, 16, 3), (16, 16))
    assert scaled.pixels[scaled.alpha > 32].min() >= 195


def test_videos_frame_by_frame_and_other_media_not_at_all():
    frames = np.stack([random_frames(40, 20, seed=seed) for seed in range(3)])
    scaled = smaller(Video(frames, 12), 10)
    image = PIL.Image.fromarray(frames[1]).resize((5, 10), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)
    assert np.array_equal(scaled.frames[1], image)
    assert (scaled.frames.shape, scaled.fps) == ((3, 10, 5, 3), 12)
    mesh = make_asset(0, 0).mesh
    assert smaller(mesh, 10) is mesh


def test_a_side_below_one_is_refused():
    with pytest.raises(MediaError, match="max_side must be 1 pixel or more, got 0"):
        smaller(Image(random_frames(4, 4)), 0)
