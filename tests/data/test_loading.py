"""Samples come at the size that a budget has, whole or the middle of them; videos at their stride; or one sentence."""

import io
import math
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atoken.data.loading import crop_image, fitting, load_asset, load_image, load_video
from atoken.data.sources import Sample
from atoken.errors import AtokenError, MediaError
from atoken.io import Video, read_image, read_mesh, write_video
from atoken.modalities.views import render_views
from atoken.modalities.voxels import voxelize
from tests.media.mesh_cases import ply
from tests.media.video_cases import encoded, moving

SIDES = st.integers(1, 3000)


def sample(media: Path | bytes, suffix: str = "") -> Sample:
    return Sample("the key", media, suffix or Path(str(media)).suffix, ())


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


# Sizes


def patches_at(scale: Fraction, height: int, width: int) -> tuple[int, int]:
    return max(1, math.floor(scale * height)), max(1, math.floor(scale * width))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 400), SIDES, SIDES)
def test_a_grid_is_that_of_the_largest_scale_whose_patches_fit(patches: int, height: int, width: int) -> None:
    rows, columns = fitting(patches, height, width)
    scales = [Fraction(count, side) for side in (height, width) for count in range(1, patches + 1)]
    grids = [patches_at(scale, height, width) for scale in scales]
    assert math.prod((rows, columns)) == max(math.prod(grid) for grid in grids if math.prod(grid) <= patches)
    assert (rows, columns) in grids


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 64), st.integers(1, 20))
def test_an_image_is_scaled_whole_up_to_a_patch_and_never_enlarged(
    height: int, width: int, patches: int, least: int
) -> None:
    least = min(least, patches)
    frames = load_image(sample(png(image(height, width)), ".png"), patches, least)
    rows, columns = frames.shape[1] // 16, frames.shape[2] // 16
    assert frames.shape == (1, rows * 16, columns * 16, 3)
    assert rows * columns <= patches
    if min(height, width) >= 16 and (height // 16) * (width // 16) >= least:
        assert rows * 16 <= height
        assert columns * 16 <= width
    if min(rows, columns) > 1:  # there is a scale at which neither side has a whole patch more
        assert max(Fraction(rows, height), Fraction(columns, width)) < min(
            Fraction(rows + 1, height), Fraction(columns + 1, width)
        )


def test_what_fits_keeps_its_pixels_and_loses_its_edges() -> None:
    pixels = image(70, 100)
    frames = load_image(sample(png(pixels), ".png"), 24)
    assert frames.shape == (1, 64, 96, 3)
    assert np.array_equal(load_image(sample(png(pixels[:64, :96]), ".png"), 1000)[0], pixels[:64, :96])


@pytest.mark.parametrize(
    ("size", "patches", "whole", "grid"),
    [
        ((160, 240), 6, (32, 48), (2, 3)),
        ((100, 100), 16, (64, 64), (4, 4)),
        ((100, 160), 4, (30, 48), (1, 3)),
        ((20, 800), 16, (16, 640), (1, 16)),  # a panorama: its middle
        ((800, 20), 16, (640, 16), (16, 1)),
    ],
)
def test_an_image_is_the_middle_of_the_whole_antialiased(
    size: tuple[int, int], patches: int, whole: tuple[int, int], grid: tuple[int, int]
) -> None:
    pixels = image(*size)
    (frame,) = load_image(sample(png(pixels), ".png"), patches)
    scaled = np.asarray(Image.fromarray(pixels).resize(whole[::-1], Image.Resampling.LANCZOS))
    height, width = grid[0] * 16, grid[1] * 16
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    assert np.array_equal(frame, scaled[top : top + height, left : left + width])


def test_an_image_below_the_least_size_is_enlarged_to_it() -> None:
    flat = np.full((20, 20, 3), 77, np.uint8)
    for least, side in ((1, 16), (9, 48), (10, 48), (16, 64)):
        frames = load_image(sample(png(flat), ".png"), 100, least)
        assert frames.shape == (1, side, side, 3)
        assert (frames == 77).all()


def test_parts_of_images_are_not_scaled_or_are_larger() -> None:
    """Each pixel of this image says where it is."""
    height, width = 200, 300
    y, x = np.mgrid[:height, :width]
    where = np.stack([y, x % 256, x // 256 * 40], -1).astype(np.uint8)
    whole, native = sample(png(where), ".png"), 0
    for n in range(40):
        frames = crop_image(whole, 16 + n, 4.0, np.random.default_rng(n))
        assert frames.shape[1] * frames.shape[2] <= (16 + n) * 256
        top, left = frames[0, 0, 0, 0], int(frames[0, 0, 0, 1]) + 256 * (int(frames[0, 0, 0, 2]) // 40)
        part = where[top : top + frames.shape[1], left : left + frames.shape[2]]
        native += np.array_equal(frames[0], part)
    assert 12 <= native <= 28
    assert crop_image(whole, 256, 4.0, np.random.default_rng(0)).shape == (1, 192, 288, 3)  # all that there is
    rows, columns = np.array([crop_image(whole, 24, 4.0, np.random.default_rng(n)).shape[1:3] for n in range(40)]).T
    assert (rows / columns).min() < 0.6 < 1.4 < (rows / columns).max()


def test_a_part_of_an_image_smaller_than_a_patch_is_enlarged_to_one() -> None:
    assert crop_image(sample(png(image(5, 9)), ".png"), 16, 4.0, np.random.default_rng(0)).shape == (1, 16, 16, 3)


def test_transparent_places_have_the_colours_that_the_tokenizer_sees(tmp_path: Path) -> None:
    rgba = np.dstack([image(32, 32), np.random.default_rng(1).integers(0, 256, (32, 32), np.uint8)])
    (tmp_path / "a.png").write_bytes(png(rgba))
    assert np.array_equal(load_image(sample(tmp_path / "a.png"), 4)[0], read_image(tmp_path / "a.png").pixels)


# Videos


def numbered(path: Path, count: int, fps: Fraction | int = 24) -> Sample:
    """A video whose frames show their number in binary, a bit in each of eight bars."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    bars = np.broadcast_to((bits * 255).astype(np.uint8).repeat(6, 1)[:, None, :, None], (count, 32, 48, 3))
    write_video(Video(np.ascontiguousarray(bars), Fraction(fps)), path)
    return sample(path)


def numbers(frames: np.ndarray) -> list[int]:
    bits = frames.reshape(len(frames), 32, 8, 6, 3).mean((1, 3, 4)) > 127
    return (bits << np.arange(8)).sum(1).tolist()


def test_frames_are_taken_at_a_drawn_stride_from_a_drawn_start(tmp_path: Path) -> None:
    video, strides, found = numbered(tmp_path / "a.mp4", 120), ((1, 3), (4, 12)), []
    for seed in range(12):
        frames = load_video(video, 2, 6, np.random.default_rng(seed), strides=strides)
        assert frames.shape == (8, 32, 48, 3)
        first, *_ = taken = numbers(frames)
        (stride,) = set(np.diff(taken).tolist())
        found.append((first, stride))
        if seed < 3:
            again = load_video(video, 2, 6, np.random.default_rng(seed), strides=strides)
            assert np.array_equal(frames, again)
    assert len({first for first, _ in found}) > 8
    assert {stride <= 3 for _, stride in found} == {True, False}
    assert all(1 <= stride <= 12 and first + 7 * stride < 120 for first, stride in found)


@pytest.mark.parametrize(("fps", "own"), [(6, 24), (10, 24), (24, 24), (1.5, 30), (48, 24)])
def test_frames_are_taken_at_a_rate(fps: float, own: int, tmp_path: Path) -> None:
    video = numbered(tmp_path / "a.mp4", 120, own)
    taken = numbers(load_video(video, 1, 6, np.random.default_rng(3), fps=fps))
    assert taken == [taken[0] + math.ceil(k * own / Fraction(fps)) for k in range(4)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(22, list(range(0, 22, 3))), (9, range(8)), (8, range(8)), (5, [0, 1, 2, 3, 4, 4, 4, 4]), (1, [0] * 8)],
)
@pytest.mark.parametrize("fps", [None, 8])
def test_a_short_video_is_taken_closer_and_then_its_last_frame_repeated(
    count: int, expected: list[int], fps: float | None, tmp_path: Path
) -> None:
    video = numbered(tmp_path / "a.mp4", count)
    taken = numbers(load_video(video, 2, 6, np.random.default_rng(0), strides=((3, 3),), fps=fps))
    assert [number - taken[0] for number in taken] == list(expected)
    assert taken[0] <= (1 if count == 9 else 0)


def test_frames_are_scaled_as_images_are(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.mkv", "ffv1", moving(8, 100, 150), pix_fmt="bgr0")
    frames = load_video(sample(path), 2, 6, np.random.default_rng(0))
    for result, whole in zip(frames, moving(8, 100, 150), strict=True):
        assert np.array_equal(result, load_image(sample(png(whole), ".png"), 6)[0])


# Assets


def square(path: Path) -> Sample:
    path.write_text(ply(["-1 -1 0", "1 -1 0", "1 1 0", "-1 1 0"], ["3 0 1 2", "3 0 2 3"]))
    return sample(path)


def test_an_asset_is_its_voxels_on_the_finest_grid_that_fits(tmp_path: Path) -> None:
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    asset = square(tmp_path / "a.ply")
    views = render_views(read_mesh(tmp_path / "a.ply"))
    whole = voxelize(views, 64).tokens
    for most, resolution in ((len(whole.coords), 64), (len(whole.coords) - 1, 32), (1, 1)):
        tokens = load_asset(asset, most)
        assert len(tokens.coords) <= most
        assert np.array_equal(tokens.coords, voxelize(views, resolution).tokens.coords)


# What all media have in common


def test_bytes_and_a_file_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(image(50, 60)))
    write_video(Video(moving(12, 40, 60)), tmp_path / "a.mp4")
    cases = {
        "a.png": lambda one: load_image(one, 6),
        "a.mp4": lambda one: load_video(one, 1, 4, np.random.default_rng(0), strides=((1, 3),)),
    }
    for name, load in cases.items():
        path = tmp_path / name
        assert np.array_equal(load(sample(path)), load(sample(path.read_bytes(), path.suffix)))


def test_an_asset_of_bytes_is_that_of_its_file(tmp_path: Path) -> None:
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    of_file = square(tmp_path / "a.ply")
    result, expected = load_asset(of_file, 500), load_asset(sample((tmp_path / "a.ply").read_bytes(), ".ply"), 500)
    assert np.array_equal(result.feats, expected.feats)
    assert np.array_equal(result.coords, expected.coords)


def loaders(one: Sample) -> list:
    return [
        lambda: load_image(one, 4),
        lambda: load_video(one, 1, 4, np.random.default_rng(0)),
        lambda: load_asset(one, 4),
    ]


def test_media_of_another_modality_are_broken_samples(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(image(16, 16)))
    write_video(Video(moving(4, 16, 16)), tmp_path / "1.mp4")
    square(tmp_path / "2.ply")
    for own, name in enumerate(("0.png", "1.mp4", "2.ply")):
        for wanted, load in enumerate(loaders(sample(tmp_path / name))):
            if wanted != own:
                with pytest.raises(MediaError, match=r"^Cannot read [^\n]*\.$"):
                    load()


@pytest.mark.parametrize("media", [b"", b"nonsense", b"\x89PNG\r\n\x1a\n", b"glTF\2\0\0\0", Path("no such file.png")])
def test_what_is_no_modality_is_a_broken_sample(media: bytes | Path) -> None:
    for load in loaders(sample(media, ".png")):
        with pytest.raises(AtokenError, match=r"^[^\n]*\.$"):
            load()


def test_damaged_images_load_or_are_broken_samples() -> None:
    rng, whole, broken = np.random.default_rng(0), png(image(40, 40)), 0
    for n in range(60):
        data = bytearray(whole[: int(rng.integers(1, len(whole)))] if n % 3 == 0 else whole)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(256)
        try:
            load_image(sample(bytes(data), ".png"), 4)
        except AtokenError:
            broken += 1
    assert broken > 20


def test_damaged_videos_load_or_are_broken_samples(tmp_path: Path) -> None:
    write_video(Video(moving(12, 32, 48)), tmp_path / "a.mp4")
    rng, whole, broken = np.random.default_rng(0), (tmp_path / "a.mp4").read_bytes(), 0
    for n in range(6):
        data = bytearray(whole[: len(whole) * n // 6 + 20] if n % 2 else whole)
        for at in rng.integers(0, len(data), 20):
            data[at] = rng.integers(256)
        try:
            load_video(sample(bytes(data), ".mp4"), 2, 4, np.random.default_rng(n))
        except AtokenError:
            broken += 1
    assert broken > 2


def test_nobody_is_warned_of_what_is_not_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(image(16, 16)) for _ in range(2)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:])
    encoded(tmp_path / "a.mp4", "libx264", moving(8, 32, 48), audio=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(sample(tmp_path / "a.gif"), 4)
        load_video(sample(tmp_path / "a.mp4"), 1, 4, np.random.default_rng(0))


def test_nobody_is_warned_of_a_coarser_grid(tmp_path: Path) -> None:
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    asset = square(tmp_path / "a.ply")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_asset(asset, 100)


def test_samples_of_bytes_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(Video(moving(8, 32, 48)), tmp_path / "a.mp4")
    video = (tmp_path / "a.mp4").read_bytes()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    load_image(sample(png(image(16, 16)), ".png"), 4)
    load_video(sample(video, ".mp4"), 1, 4, np.random.default_rng(0))
    with pytest.raises(AtokenError, match=r"the key\.png"):
        load_image(sample(b"nonsense", ".png"), 4)
