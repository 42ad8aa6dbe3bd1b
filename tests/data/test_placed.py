"""Placed figures: what a caption says of number, place and motion is what is there, and neighbours differ in it."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from atoken.data.synthetic import labelled, placed
from atoken.data.synthetic.labelled import FIGURE_PROMPTS, TINTS, WAYS
from atoken.data.synthetic.placed import (
    MOST,
    MOTIONS,
    RELATIONS,
    count_of,
    counted_image,
    motion_of,
    moving_video,
    placed_image,
    relation_of,
)
from atoken.data.synthetic.words import COLOURS
from tests.data.test_labelled import Calm

WINDOW = 48
MAKERS = {
    "moving": lambda seed, index, *size: moving_video(seed, index, 4, *size),
    "counted": counted_image,
    "placed": placed_image,
}


@pytest.fixture
def plain(monkeypatch):
    """Plain figures on black, as they are drawn: no textures, outlines, camera or noise."""
    painter = labelled.figure_painter

    def plain_painter(surface, *figure):
        surface.rng = Calm()
        return painter(surface, *figure)

    def black(surface, tints):
        return Image.new("RGB", (surface.width, surface.height)), "a black ground"

    monkeypatch.setattr(labelled, "figure_painter", plain_painter)
    monkeypatch.setattr(labelled.scenes, "developer", lambda surface: np.asarray)
    monkeypatch.setattr(placed, "_ground", black)
    monkeypatch.setattr(placed, "with_sensor_noise", lambda rng, frames: frames)


def centres(frame):
    """Of each connected figure, as (x, y), and its colour."""
    parts, count = ndimage.label(frame.any(-1), np.ones((3, 3)))
    middles = [middle[::-1] for middle in ndimage.center_of_mass(frame.any(-1), parts, range(1, count + 1))]
    return middles, [frame[parts == part].max(0) for part in range(1, count + 1)]


@pytest.mark.parametrize("series", MAKERS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 64), (17, 120)])
def test_a_sample_is_a_function_of_its_arguments(series, height, width):
    make = MAKERS[series]
    one, two, other, seed = (make(*of, height, width) for of in ((3, 5), (3, 5), (3, 6), (4, 5)))
    assert one.frames.shape == (4 if series == "moving" else 1, height, width, 3)
    assert one.caption == two.caption
    assert np.array_equal(one.frames, two.frames)
    assert not np.array_equal(one.frames, other.frames)
    assert not np.array_equal(one.frames, seed.frames)


def meaning(first, second, relation):
    """A caption of two figures: "a right of b" is "b left of a", and "a below b" is "b above a"."""
    turned = {"right of": "left of", "below": "above"}.get(relation)
    return (second, first, turned) if turned else (first, second, relation)


@pytest.mark.parametrize("told", [motion_of, count_of, lambda index: meaning(*relation_of(index))])
def test_no_two_neighbours_fit_one_caption(told):
    said = [told(index) for index in range(10_000)]
    assert all(len({*said[first : first + WINDOW]}) == WINDOW for first in range(len(said) - WINDOW))


def test_all_pairs_of_figures_come():
    pairs = {relation_of(4 * pair)[:2] for pair in range(WAYS * (WAYS - 1))}
    assert len(pairs) == WAYS * (WAYS - 1)
    assert all(first != second for first, second in pairs)


def test_half_of_the_captions_name_a_ground_of_another_colour():
    for make in MAKERS.values():
        grounds = [make(1, index, 16, 16).caption.split() for index in range(100)]
        named = [words for words in grounds if words[-1] == "ground"]
        assert 30 < len(named) < 70
        assert all(words.count(words[-2]) == 1 and words[-2] in COLOURS for words in named)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 96), (128, 64)])
def test_as_many_figures_are_apart_as_the_caption_counts(plain, height, width):
    for index in range(WAYS):
        sample, (label, count) = counted_image(0, index, height, width), count_of(index)
        middles, colours = centres(sample.frames[0])
        assert len(middles) == count == 1 + index % MOST
        assert all((colour == COLOURS[TINTS[label // 6]]).all() for colour in colours)
        words = sample.caption.split(" on ")[0]
        assert words == placed.counted(label, count)
        assert words.split()[0] == ("one", "two", "three", "four")[count - 1]
        assert words.endswith("s") == (count > 1 or "cross" in words)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 96), (128, 64)])
def test_the_first_figure_is_where_the_caption_says(plain, height, width):
    for index in range(WAYS):
        sample, (first, second, relation) = placed_image(0, index, height, width), relation_of(index)
        said = f"{FIGURE_PROMPTS[first]} {relation} {FIGURE_PROMPTS[second]}"
        assert sample.caption.split(" on ")[0] == said
        middles, colours = centres(sample.frames[0])
        assert len(middles) == 2
        if TINTS[first // 6] == TINTS[second // 6]:
            continue  # which is which cannot be told by colour
        order = [0, 1] if (colours[0] == COLOURS[TINTS[first // 6]]).all() else [1, 0]
        apart = np.subtract(middles[order[0]], middles[order[1]])
        along, across = apart @ np.array(RELATIONS[relation]), apart @ np.array(RELATIONS[relation])[::-1]
        assert along > 2 * abs(across)
        assert along > 0.25 * min(height, width)


@pytest.mark.parametrize("frames", [4, 8, 12])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (96, 48), (64, 128)])
def test_a_figure_goes_where_the_caption_says(plain, frames, height, width):
    for index in range(3 * len(MOTIONS)):
        sample, (label, motion) = moving_video(0, index, frames, height, width), motion_of(index)
        assert sample.caption.split(" over ")[0] == f"{FIGURE_PROMPTS[label]} {MOTIONS[motion]}"
        inside = sample.frames.any(-1)
        path = np.array([[np.nonzero(frame)[axis].mean() for axis in (1, 0)] for frame in inside])
        areas = inside.sum((1, 2))
        assert areas.min() > 0.85 * areas.max()  # it never leaves
        steps = np.diff(path, axis=0)
        words = MOTIONS[motion].split()
        if words[0] == "standing":
            assert np.abs(steps).max() == 0
            continue
        along = steps @ np.array({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[words[1]])
        assert (along > 0).all()
        assert along.sum() > 2.5  # pixels: to be seen
        assert np.abs(path - path[0]).min(1).max() < 0.6  # nothing across, but for where the edge meets the pixels


def test_fast_is_at_least_twice_as_fast_as_slowly(plain):
    moved = {speed: [] for speed in placed.SPEEDS}
    for index in range(8 * len(MOTIONS)):
        motion = MOTIONS[motion_of(index)[1]]
        if motion != "standing still":
            inside = moving_video(0, index, 12, 64, 64).frames[[0, -1]].any(-1)
            ends = np.array([[np.nonzero(frame)[axis].mean() for axis in (0, 1)] for frame in inside])
            moved[motion.split()[-1]].append(np.abs(ends[1] - ends[0]).max())
    assert min(moved["fast"]) > 1.9 * max(moved["slowly"])


def test_a_ground_is_apart_from_the_figures():
    for index in range(60):
        surface = labelled.Surface(np.random.default_rng(index), 24, 24)
        tints = [TINTS[index % 8], TINTS[index % 7]]
        ground, words = placed._ground(surface, tints)
        mean = np.asarray(ground, float).mean((0, 1))
        assert all(np.linalg.norm(mean - COLOURS[tint]) > 60 for tint in tints)
        assert words.split()[1] not in tints
