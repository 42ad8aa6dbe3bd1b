"""Crops against plain Pillow and closed forms, NaFlex sizes against transformers, videos against their frames."""

from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
from PIL.Image import Resampling
from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

from atoken.errors import MediaError
from atoken.io import Image, Video, write_image, write_video
from eval import prepare
from eval.prepare import Preparation, adm_crop, evenly, naflex_size
from tests.folder_of_views import write_views
from tests.tolerances import EXACT

SIZES = [(256, 256), (300, 500), (511, 700), (512, 512), (513, 1025), (1200, 800), (40, 90), (257, 256), (100, 3000)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ramp(height, width):
    """Red grows by column, green by row, one step a pixel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns % 256, rows % 256, np.zeros_like(rows)], -1).astype(np.uint8)


def plain_adm(pixels, side):
    """The published recipe, step by step, in the names of Pillow."""
    image = PIL.Image.fromarray(pixels)
    while min(*image.size) >= 2 * side:
        image = image.resize(tuple(length // 2 for length in image.size), resample=PIL.Image.BOX)
    scale = side / min(*image.size)
    image = image.resize(tuple(round(length * scale) for length in image.size), resample=PIL.Image.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side]


@pytest.mark.parametrize("size", SIZES)
def test_the_crop_of_adm_is_the_published_recipe(size):
    pixels = noise(*size)
    found = Preparation("adm", 256)(Image(pixels)).pixels
    assert found.shape == (256, 256, 3)
    assert np.abs(found.astype(int) - plain_adm(pixels, 256)).max() <= EXACT


def test_a_image_of_twice_the_side_becomes_means_of_four_pixels():
    pixels = noise(512, 512)
    means = pixels.reshape(256, 2, 256, 2, 3).mean((1, 3))
    found = np.asarray(adm_crop(PIL.Image.fromarray(pixels), 256, Resampling.BICUBIC))
    assert np.abs(found - means).max() <= 1  # Pillow rounds after each of two directions


def test_a_square_of_the_right_side_stays_as_it_is():
    pixels = noise(64, 64)
    for crop in ("adm", "centre"):
        assert np.array_equal(Preparation(crop, 64)(Image(pixels)).pixels, pixels)


def test_the_cut_is_around_the_centre():
    for crop in ("adm", "centre"):
        wide = Preparation(crop, 64)(Image(ramp(64, 165))).pixels  # 101 columns too many: 50 go left, 51 right
        assert np.array_equal(wide, ramp(64, 165)[:, 50:114])
        tall = Preparation(crop, 64)(Image(ramp(97, 64))).pixels
        assert np.array_equal(tall, ramp(97, 64)[16:80])


def test_without_a_crop_nothing_changes_but_that_alpha_is_left_out():
    pixels = noise(7, 9)
    found = Preparation()(Image(pixels, np.zeros((7, 9), np.uint8)))
    assert np.array_equal(found.pixels, pixels)
    assert found.alpha is None


@pytest.mark.parametrize("tokens", [196, 256, 576, 1024])  # transformers enlarges at most a hundredfold
def test_naflex_sizes_are_those_of_transformers(tokens):
    rng = np.random.default_rng(tokens)
    for height, width in [(12, 12), (1, 5000), (480, 640), (1000, 10), *rng.integers(12, 3000, (60, 2)).tolist()]:
        rows, columns = naflex_size(height, width, tokens)
        assert rows * columns <= tokens
        wanted = get_image_size_for_max_num_patches(height, width, 16, tokens)
        assert (rows * 16, columns * 16) == wanted, (height, width)


def test_naflex_of_a_square_is_a_square_of_all_tokens():
    assert [naflex_size(333, 333, tokens) for tokens in (256, 576, 1024)] == [(16, 16), (24, 24), (32, 32)]
    pixels = Preparation("naflex", 256, "bilinear")(Image(noise(300, 600))).pixels
    assert pixels.shape == (11 * 16, 22 * 16, 3)
    plain = PIL.Image.fromarray(noise(300, 600)).resize((22 * 16, 11 * 16), Resampling.BILINEAR)
    assert np.array_equal(pixels, np.asarray(plain))


def test_large_images_become_smaller_and_small_ones_stay():
    most = Preparation("at most", 64)
    assert most(Image(noise(64, 64))).pixels.shape == (64, 64, 3)
    assert most(Image(noise(128, 512))).pixels.shape == (32, 128, 3)
    assert most(Image(noise(1, 100))).pixels.shape == (1, 100, 3)
    short = Preparation("short side at most", 48)
    assert short(Image(noise(96, 192))).pixels.shape == (48, 96, 3)
    assert short(Image(noise(40, 192))).pixels.shape == (40, 192, 3)


def test_frames_are_chosen_as_the_record_says():
    frames = np.stack([np.full((4, 6, 3), number, np.uint8) for number in range(20)])
    video = Video(frames, Fraction(24))

    def chosen(**options):
        found = Preparation(**options)(video)
        return found.frames[:, 0, 0, 0].tolist(), found.fps

    assert chosen() == (list(range(20)), 24)
    assert chosen(frames=3) == ([0, 1, 2], 24)
    assert chosen(frames=4, spread=True) == ([0, 6, 12, 19], 24)
    assert chosen(frames=30, spread=True)[0] == list(range(20))
    assert Preparation(frames=4, spread=True).record()["frames"] == "4 evenly"


def test_evenly_are_those_of_numpy():
    for count in (2, 5, 13, 100):
        for wanted in range(1, count):
            places = np.linspace(0, count - 1, wanted).astype(int) if wanted > 1 else [0]
            assert evenly(count, wanted) == list(places)


def test_a_video_on_disk_is_prepared_as_one_in_memory(tmp_path):
    frames = np.repeat(np.linspace(0, 250, 12, dtype=np.uint8)[:, None, None, None], 64, 1).repeat(80, 2).repeat(3, 3)
    write_video(Video(frames, Fraction(8)), tmp_path / "a.mp4")
    for preparation in (Preparation("centre", 32), Preparation(frames=3), Preparation(fps=Fraction(4), frames=2)):
        read = preparation.read(tmp_path / "a.mp4")
        assert isinstance(read, Video)
        wanted = frames[::2] if preparation.fps else frames
        wanted = Preparation(preparation.crop, preparation.size, frames=preparation.frames)(Video(wanted)).frames
        assert read.frames.shape == wanted.shape
        assert np.abs(read.frames.astype(int) - wanted).max() < 12  # of a lossy file; frames are 22 apart
        assert read.fps == (preparation.fps or 8)


def test_a_folder_of_frames_is_a_video(tmp_path):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        write_image(Image(np.full((8, 10, 3), number, np.uint8)), paths[-1])
    found = Preparation(frames=2, spread=True).read(paths)
    assert found.frames[:, 0, 0, 0].tolist() == [0, 4]
    write_image(Image(noise(9, 10)), paths[2])
    with pytest.raises(MediaError, match="differ in size"):
        Preparation().read(paths)


def test_a_video_of_too_many_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(prepare, "DEFAULT_LIMITS", prepare.DEFAULT_LIMITS.__class__(max_memory=1000))
    with pytest.raises(MediaError, match="GiB of frames"):
        Preparation()(Video(np.zeros((9, 8, 8, 3), np.uint8)))


def test_a_mesh_is_seen_from_the_cameras_on_black():
    pytest.importorskip("embreex")
    from atoken.cameras import Cameras
    from atoken.data.synthetic.procedural import make_asset
    from atoken.modalities.views import render_views

    mesh = make_asset(5, 0).mesh
    found, wanted = Preparation(views=3, view_size=32)(mesh), render_views(mesh, Cameras.sphere(3), 32)
    assert np.array_equal(found.rgb, wanted.rgb)
    assert (found.rgb[found.depth < 0] == 0).all()
    assert Preparation(views=3, view_size=32)(found) is found


def test_views_of_the_data_stay_as_they_are(tmp_path):
    pytest.importorskip("embreex")
    from atoken.cameras import Cameras
    from atoken.data.synthetic.procedural import make_asset
    from atoken.media.views import read_views
    from atoken.modalities.views import render_views

    mesh = make_asset(5, 0).mesh
    write_views(render_views(mesh, Cameras.sphere(2), 32), tmp_path / "chair")
    own = Preparation(views=None, view_size=32)
    assert np.array_equal(own.read(tmp_path / "chair").rgb, read_views(tmp_path / "chair", 32).rgb)
    assert own.record()["cameras"] == "those of the data, 32 pixels (Lanczos)"
    with pytest.raises(MediaError, match="has no views of its own"):
        own(mesh)


def test_the_record_is_text_and_tells_preparations_apart():
    every = [
        Preparation(), Preparation("adm", 256), Preparation("centre", 256), Preparation("adm", 128),
        Preparation("adm", 256, "bilinear"), Preparation("naflex", 256), Preparation(frames=4),
        Preparation(frames=4, spread=True), Preparation(fps=Fraction(4)), Preparation(views=4),
        Preparation(view_size=64),
    ]  # fmt: skip
    records = [tuple(preparation.record().items()) for preparation in every]
    assert len(set(records)) == len(every)
    assert all(isinstance(value, str) for record in records for _, value in record)
