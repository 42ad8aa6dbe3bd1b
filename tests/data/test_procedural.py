"""The generator: a pure function of its arguments, with the spectrum, shapes and motion that it states."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atoken.data.synthetic import motion, natural, scenes
from atoken.data.synthetic.artificial import drawing, flat
from atoken.data.synthetic.drawing import figure_outline, mosaic, power_law_sizes, stencil
from atoken.data.synthetic.procedural import make_image, make_video
from atoken.data.synthetic.textures import PATTERNS, Surface, log_radius
from atoken.data.synthetic.words import COLOURS, name_of

SIZES = [(1, 1), (1, 40), (40, 1), (3, 2), (37, 53), (16, 300)]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def fingerprint() -> str:
    return f"{make_image(3, 5, 40, 31).frames.tobytes().hex()} {make_video(3, 5, 9, 20, 24).frames.tobytes().hex()}"


def test_the_same_arguments_give_the_same_sample() -> None:
    assert fingerprint() == fingerprint()
    assert make_image(3, 5, 40, 31).caption == make_image(3, 5, 40, 31).caption


def test_another_process_gives_the_same_sample() -> None:
    code = "import test_procedural; print(test_procedural.fingerprint())"
    here = Path(__file__).parent
    other = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint()


def test_each_seed_index_and_modality_has_its_own_sample() -> None:
    samples = [make_image(0, index, 24, 24).frames for index in range(20)] + [make_image(1, 0, 24, 24).frames]
    samples.append(make_video(0, 0, 1, 24, 24).frames)
    assert len({sample.tobytes() for sample in samples}) == len(samples)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_works_in_every_family(height: int, width: int) -> None:
    for family, _ in scenes.FAMILIES:
        surface = Surface(generator(), height, width)
        canvas, caption = family(surface)
        assert scenes.developer(surface)(canvas).shape == (height, width, 3)
        assert caption
        assert caption == caption.lower()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_samples_have_the_shape_asked_for(frames: int, height: int, width: int) -> None:
    for index in range(6):
        still, moving = make_image(0, index, height, width), make_video(0, index, frames, height, width)
        assert still.frames.shape == (1, height, width, 3)
        assert moving.frames.shape == (frames, height, width, 3)
        assert still.frames.dtype == moving.frames.dtype == np.uint8


def test_families_come_in_their_shares() -> None:
    assert sum(share for _, share in scenes.FAMILIES) == pytest.approx(1)
    rng, draws = generator(), 4000
    drawn = [scenes.choose(rng) for _ in range(draws)]
    for family, share in scenes.FAMILIES:
        deviation = np.sqrt(share * (1 - share) / draws)
        assert drawn.count(family) / draws == pytest.approx(share, abs=4.5 * deviation)


def test_images_span_the_range_from_dark_to_bright() -> None:
    images = np.stack([make_image(1, index, 64, 64).frames[0] for index in range(80)])
    assert images.min() < 5
    assert images.max() > 250
    assert 70 < images.mean() < 140
    assert (images.mean((1, 2, 3)) < 30).any()
    assert (images.mean((1, 2, 3)) > 170).any()


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0])
def test_the_power_of_noise_falls_with_its_exponent(exponent: float) -> None:
    field = Surface(generator(), 256, 256).field(exponent)
    assert field.mean() == pytest.approx(0, abs=1e-3)
    assert field.std() == pytest.approx(1, abs=1e-3)
    log_f = log_radius(256, 256)
    power = np.abs(np.fft.rfft2(field.astype(np.float64))) ** 2
    slope = np.polyfit(log_f.ravel()[1:], np.log(power.ravel()[1:]), 1)[0]  # without frequency 0
    assert slope == pytest.approx(-exponent, abs=0.08)


def test_stretched_noise_varies_less_along_its_grain() -> None:
    field = Surface(generator(), 128, 128).field(2.0, angle=0.0, stretch=8.0)
    assert np.abs(np.diff(field, axis=1)).mean() < 0.5 * np.abs(np.diff(field, axis=0)).mean()


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_centred_and_finite(name: str) -> None:
    pattern = Surface(generator(1), 96, 80).pattern(name)
    assert pattern.shape == (96, 80)
    assert np.isfinite(pattern).all()
    assert abs(pattern.mean()) < 0.25
    assert 0.1 < pattern.std() < 1.5


def test_leaf_sizes_follow_the_inverse_cube() -> None:
    radii = power_law_sizes(generator(), 20_000, 2.0, 50.0)
    assert radii.min() >= 2
    assert radii.max() <= 50
    for radius in (3.0, 5.0, 10.0):
        share = (2.0**-2 - radius**-2) / (2.0**-2 - 50.0**-2)
        assert (radii < radius).mean() == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("soft", [0.0, 3.0])
def test_a_stencil_covers_the_area_of_its_outline(soft: float) -> None:
    placed = stencil(20 * figure_outline("circle") + 40, (80, 80), soft)
    assert placed is not None
    assert np.asarray(placed[0]).sum() / 255 == pytest.approx(np.pi * 20**2, rel=0.04)


def test_a_stencil_outside_the_image_is_none() -> None:
    assert stencil(5 * figure_outline("star") - 20, (50, 50)) is None


def test_leaves_occlude_and_have_luma_above_chroma() -> None:
    luma = chroma = 0.0
    for seed in range(8):
        rgb = mosaic(Surface(generator(seed), 96, 96), 120, 2.0, 40.0)
        luma += float(rgb.mean(-1).var())
        chroma += float((rgb - rgb.mean(-1, keepdims=True)).var())
    assert luma > 2 * chroma


def test_every_colour_has_its_own_name() -> None:
    assert [name_of(np.array(rgb)) for rgb in COLOURS.values()] == list(COLOURS)


def test_a_flat_image_is_what_its_caption_says() -> None:
    canvas, caption = flat(Surface(generator(), 9, 7))
    pixels = np.asarray(canvas).reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    assert caption == f"a plain {name_of(pixels[0])} picture"


def test_a_drawn_colour_is_in_the_drawing() -> None:
    for seed in range(10):
        canvas, caption = drawing(Surface(generator(seed), 96, 96))
        figures, _ = caption.split(" on ", 1)
        colour = figures.split()[1]
        distance = np.abs(np.asarray(canvas, int) - COLOURS[colour]).max(-1)
        assert (distance < 60).any(), caption


def test_nights_are_dark_with_bright_stars() -> None:
    pixels = np.asarray(natural.night(Surface(generator(), 128, 128))[0])
    assert np.median(pixels) < 45
    assert pixels.max() > 100


def test_a_pan_by_whole_pixels_is_a_shift() -> None:
    canvas = Image.fromarray(generator().integers(0, 256, (*motion.canvas_size(40, 48), 3), np.uint8))
    first, second = (np.asarray(motion.View((36.0 + x, 31.0 + y)).of(canvas, 40, 48)) for x, y in ((0, 0), (3, 2)))
    assert (first[2:, 3:] == second[:-2, :-3]).all()


def test_a_turned_view_by_a_right_angle_turns_the_pixels() -> None:
    canvas = Image.fromarray(generator().integers(0, 256, (64, 64, 3), np.uint8))
    turned = np.asarray(motion.View((32.0, 32.0), angle=np.pi / 2).of(canvas, 20, 20))
    straight = np.asarray(motion.View((32.0, 32.0)).of(canvas, 20, 20))
    assert (turned == np.rot90(straight)).all()


@pytest.mark.parametrize("camera", ["still", "pan", "zoom", "turn", "drift"])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (32, 200)])
def test_the_camera_stays_on_the_canvas(camera: str, height: int, width: int) -> None:
    white = Image.new("RGB", motion.canvas_size(height, width)[::-1], "white")
    for seed in range(15):
        path = motion.views(generator(seed), camera, 8, height, width)
        seen = np.stack([np.asarray(view.of(white, height, width)) for view in path])
        assert seen.min() == 255
        assert (camera == "still") == (len(set(path)) == 1)


def test_videos_move_and_some_stand_still() -> None:
    changes = np.array(
        [np.diff(make_video(0, index, 4, 32, 32).frames.astype(int), axis=0).any() for index in range(80)]
    )
    assert 0.75 < changes.mean() < 1


def test_water_keeps_its_colour_and_never_stands_still() -> None:
    shot, caption = motion.water(generator(), 6, 48, 48)
    assert caption.startswith("rippling")
    assert np.ptp(shot.mean((1, 2, 3))) < 6
    assert (np.abs(np.diff(shot.astype(int), axis=0)).mean((1, 2, 3)) > 0.2).all()
