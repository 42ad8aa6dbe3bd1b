"""Labelled samples: every class in turn, what the caption says is what is there, and nothing but the figure moves."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from atoken.data.synthetic import labelled
from atoken.data.synthetic.labelled import (
    FIGURE_PROMPTS,
    FIGURES,
    SOLID_PROMPTS,
    SOLIDS,
    TINTS,
    WAYS,
    class_of,
    grounded_image,
    labelled_asset,
    labelled_image,
    labelled_video,
    scene,
)
from atoken.data.synthetic.textures import Surface
from atoken.data.synthetic.words import COLOURS, NUMBERS

SIZES = [(16, 16), (64, 48), (17, 120)]


def test_each_class_has_a_prompt_of_its_own():
    assert WAYS == len(TINTS) * len(FIGURES) == len(TINTS) * len(SOLIDS) >= 40
    assert len(set(FIGURE_PROMPTS)) == len(set(SOLID_PROMPTS)) == WAYS
    assert all(prompt.split()[0] == ("an" if "orange" in prompt else "a") for prompt in FIGURE_PROMPTS + SOLID_PROMPTS)


@pytest.mark.parametrize("first", [0, 17])
def test_as_many_samples_as_there_are_classes_have_each_of_them_once(first):
    assert {class_of(first + index) for index in range(WAYS)} == set(range(WAYS))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_samples_have_the_shape_asked_for(height, width):
    for index in range(WAYS):
        assert labelled_image(0, index, height, width).frames.shape == (1, height, width, 3)
        assert labelled_video(0, index, 3, height, width).frames.shape == (3, height, width, 3)
        assert scene(0, index, height, width).frames.shape == (1, height, width, 3)


@pytest.mark.parametrize(
    "make", [labelled_image, grounded_image, scene, lambda *of: labelled_video(*of[:2], 3, *of[2:])]
)
def test_a_sample_is_a_function_of_its_arguments(make):
    one, two, other, series = make(3, 5, 40, 31), make(3, 5, 40, 31), make(3, 5 + WAYS, 40, 31), make(4, 5, 40, 31)
    assert one.caption == two.caption
    assert np.array_equal(one.frames, two.frames)
    assert not np.array_equal(one.frames, other.frames)
    assert not np.array_equal(one.frames, series.frames)


def test_captions_begin_with_the_prompt_and_some_say_no_more():
    more = Counter()
    for index in range(2 * WAYS):
        prompt = FIGURE_PROMPTS[class_of(index)]
        image, video = labelled_image(1, index, 16, 16).caption, labelled_video(1, index, 2, 16, 16).caption
        assert image == prompt or image.startswith(f"{prompt} on ")
        assert video == prompt or video.startswith(f"{prompt} moving over ")
        more["image"] += image != prompt
        more["video"] += video != prompt
    assert all(WAYS / 2 < count < 3 * WAYS / 2 for count in more.values())


def test_grounded_neighbours_are_of_one_class_and_say_their_ground():
    captions = [grounded_image(1, index, 16, 16).caption for index in range(2 * WAYS)]
    for index, caption in enumerate(captions):
        assert caption.startswith(f"{FIGURE_PROMPTS[index // WAYS]} on ")
    assert len(set(captions)) > WAYS


def test_captions_of_assets_end_with_colour_and_shape():
    captions = [labelled_asset(1, index).caption.split() for index in range(WAYS)]
    for index, words in enumerate(captions):
        assert words[-2:] == SOLID_PROMPTS[class_of(index)].split()[1:]
        assert words[0] == ("an" if words[1] == "orange" else "a")
    assert {len(words) for words in captions} == {3, 4}  # some name the texture


def test_assets_have_their_colour_and_fill_their_box():
    textured = 0
    for index in range(WAYS):
        mesh, tint = labelled_asset(2, index).mesh, TINTS[index // len(SOLIDS)]
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        assert (high - low).max() == pytest.approx(1.0, abs=1e-5)
        textured += bool(mesh.textures)
        if not mesh.textures:
            assert (mesh.colors[..., :3] == COLOURS[tint]).all()
    assert 0 < textured < WAYS


def test_the_figure_has_the_colour_of_its_class(monkeypatch):
    """Before the camera changes it: on a black ground without light and noise, the brightest tone is the colour's."""
    plain(monkeypatch)
    for index in range(WAYS):
        pixels = labelled_image(0, index, 64, 64).frames.reshape(-1, 3)
        assert (pixels == COLOURS[TINTS[index // len(FIGURES)]]).all(1).any()


def test_only_the_figure_moves_and_it_stays_whole(monkeypatch):
    plain(monkeypatch)
    for index in range(0, WAYS, 5):
        inside = labelled_video(0, index, 5, 48, 64).frames.any(-1)
        areas = inside.sum((1, 2))
        assert areas.min() > 0.93 * areas.max() > 0  # its edge meets the pixels in other ways as it moves
        rows, columns = (np.array([np.nonzero(frame)[axis].mean() for frame in inside]) for axis in (0, 1))
        for path in (rows, columns):  # straight and even: second differences vanish but for that
            np.testing.assert_allclose(np.diff(path, 2), 0, atol=0.5)


def test_a_figure_and_its_development_are_the_same_in_each_frame():
    for index in range(12):
        surface = Surface(np.random.default_rng(index), 40, 60)
        lay = labelled.figure_painter(surface, FIGURES[index % 6], np.array([200, 40, 90], np.float32))
        develop, frames = labelled.scenes.developer(surface), []
        for _ in range(2):
            canvas = Image.new("RGB", (60, 40))
            lay(canvas, np.array([30.3, 18.2]), 15.0, 0.3)
            frames.append(develop(canvas))
        assert frames[0].any()
        np.testing.assert_array_equal(*frames)


def test_scenes_tell_of_two_or_three_columns():
    for index in range(40):
        caption = scene(0, index, 32, 32).caption
        columns = caption.split(" on ")[0].split(" left of ")
        assert len(columns) in (2, 3)
        assert all(words.split()[0] in ("a", "an", *NUMBERS[2:4]) for words in columns)
        assert all(words.split()[1] in COLOURS for words in columns)
    assert len({scene(0, index, 8, 8).caption for index in range(40)}) == 40


class Calm:
    """Random numbers by which a figure is painted plain and without an edge."""

    def random(self):
        return 0.5


def plain(monkeypatch):
    """Figures in their plain colour on black, with no tone curve and no noise."""
    figure_painter = labelled.figure_painter

    def painter(surface, *figure):
        surface.rng = Calm()
        return figure_painter(surface, *figure)

    def black(surface):
        return Image.new("RGB", (surface.width, surface.height)), "black"

    monkeypatch.setattr(labelled, "backdrop", black)
    monkeypatch.setattr(labelled, "figure_painter", painter)
    monkeypatch.setattr(labelled.scenes, "developer", lambda surface: np.asarray)
    monkeypatch.setattr(labelled, "with_sensor_noise", lambda rng, frames: frames)
