"""Animated images as videos: frames as they are shown, their times, their alpha, and the first frame as an image."""

import io
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from atoken.errors import AtokenWarning, MediaError
from atoken.io import Image, Limits, Video, VideoReader, load_media, read_image, sniff
from tests.media.image_files import chunk

KINDS = {
    "GIF": {},
    "WEBP": {"lossless": True, "exact": True},
    "PNG": {},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
MILLISECONDS = [40, 80, 120, 40, 200]
TIMES = [0, 0.04, 0.12, 0.24, 0.28]


def frames(channels: int = 3, count: int = 5) -> np.ndarray:
    """(T, 12, 20, C) uint8 that all differ, smooth and of few colours; alpha is 0 or 255."""
    t, y, x = np.ogrid[:count, :12, :20]
    colours = [(40 * t + 10 * x + 0 * y) % 256, 20 * y + 0 * x + 0 * t, 50 * t + 0 * x + 0 * y]
    alpha = [255 * (x > 2 * t + 0 * y)]
    return np.stack(np.broadcast_arrays(*colours, *alpha)[:channels], -1).astype(np.uint8)


def animation(kind: str, pixels: np.ndarray, **options: object) -> bytes:
    first, *rest = [PIL.Image.fromarray(one) for one in pixels]
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=rest, **{"duration": MILLISECONDS} | KINDS[kind] | options)
    return file.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_times_and_alpha(kind: str, channels: int) -> None:
    pixels = frames(channels)
    video = load_media(animation(kind, pixels, disposal=2) if kind == "GIF" else animation(kind, pixels))
    assert isinstance(video, Video)
    np.testing.assert_allclose(video.timestamps, TIMES)
    assert video.fps == Fraction(5000, sum(MILLISECONDS))
    shown = np.ones((5, 12, 20), bool) if channels == 3 else pixels[..., 3] > 0
    tolerance = 12 if kind == "AVIF" else 0
    rounded = 32 if (kind, channels) == ("GIF", 4) else tolerance  # Pillow writes those with a palette of fixed colours
    assert np.abs(video.frames.astype(int) - pixels[..., :3])[shown].max() <= rounded
    if channels == 3:
        assert video.alpha is None
    else:
        assert np.abs(video.alpha.astype(int) - pixels[..., 3]).max() <= tolerance


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_frames_that_change_a_part_are_shown_whole_as_ffmpeg_does(kind: str) -> None:
    still = np.tile(frames(count=1), (5, 1, 1, 1))
    for number, frame in enumerate(still):
        frame[number : number + 3, 4:7] = 200  # so that Pillow stores this part of the frame alone
    data = animation(kind, still)
    with av.open(io.BytesIO(data), format={"GIF": "gif", "PNG": "apng"}[kind]) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.testing.assert_array_equal(load_media(data).frames, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_rate_needs_no_time_stamps(kind: str) -> None:
    video = load_media(animation(kind, frames(), duration=50))
    assert (video.fps, video.timestamps) == (20, None)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_frames_without_a_duration_last_as_long_as_in_browsers(kind: str) -> None:
    assert load_media(animation(kind, frames(), duration=0)).fps == 10


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_is_an_image(kind: str) -> None:
    assert isinstance(load_media(animation(kind, frames(count=1), duration=40)), Image)
    with pytest.raises(MediaError, match="as a video: its content is none of the formats"):
        VideoReader(animation(kind, frames(count=1), duration=40))


def test_the_image_of_an_apng_for_other_programs_is_not_shown() -> None:
    pixels = frames()
    video = load_media(animation("PNG", pixels, default_image=True, duration=40))
    np.testing.assert_array_equal(video.frames, pixels[1:])
    assert (video.fps, video.timestamps) == (25, None)
    with pytest.warns(AtokenWarning, match="Only the first"):
        image = load_media(animation("PNG", pixels[:2], default_image=True, duration=40))  # an animation of one frame
    assert isinstance(image, Image)
    np.testing.assert_array_equal(image.pixels, pixels[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_frame_is_an_image_for_those_who_ask(kind: str) -> None:
    data, pixels = animation(kind, frames()), frames()[0].astype(int)
    assert sniff(data).modality.name == "video"
    assert sniff(data, first_frame=True).modality.name == "image"
    for read in (lambda: load_media(data, first_frame=True), lambda: read_image(data)):
        with pytest.warns(AtokenWarning, match="Only the first of the frames"):
            image = read()
        assert np.abs(image.pixels - pixels).max() <= (12 if kind == "AVIF" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_selected_and_resampled(kind: str) -> None:
    data = animation(kind, frames())
    every = load_media(data).frames
    np.testing.assert_array_equal(load_media(data, frames=(1, 3)).frames, every[1:3])
    resampled = load_media(data, fps=25)  # a frame each 40 ms
    np.testing.assert_array_equal(resampled.frames, every[[0, 1, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4]])
    assert resampled.timestamps is None


@pytest.mark.parametrize("kind", KINDS)
def test_limits_hold(kind: str) -> None:
    data = animation(kind, frames())
    for limits, words in (
        (Limits(max_frames=4), "more than 4 frames"),
        (Limits(max_pixels=100), "over the limit of 100 pixels"),
        (Limits(max_seconds=0.2), "longer than 0.2 seconds"),
        (Limits(max_memory=1000), "over the limit of"),
    ):
        with pytest.raises(MediaError, match=words):
            load_media(data, limits=limits)
    assert len(load_media(data, limits=Limits(max_frames=5, max_pixels=240, max_seconds=0.28)).frames) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_animations_are_refused(kind: str) -> None:
    data = animation(kind, frames())
    for kept in (0.5, 0.95):
        with pytest.raises(MediaError, match=r"^Cannot read a: [^\n]*damaged[^\n]*\.$"):
            load_media(data[: int(kept * len(data))], name="a")


def test_animations_are_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    video = load_media(animation("WEBP", frames(), exif=exif))
    np.testing.assert_array_equal(video.frames, np.rot90(frames(), -1, (1, 2)))


def test_grey_of_16_bits_is_refused() -> None:
    """Each frame would have its own range."""
    still = io.BytesIO()
    PIL.Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20) << 8).save(still, "PNG")
    at = still.getvalue().index(b"IDAT") - 4
    head, pixels = (
        still.getvalue()[:at],
        still.getvalue()[at : at + 4 + 4 + int.from_bytes(still.getvalue()[at : at + 4], "big") + 4],
    )
    fields = bytes(3) + b"\x14" + bytes(3) + b"\x0c" + bytes(8) + b"\0\1\0\x0a\0\0"
    shown = [chunk(b"fcTL", number.to_bytes(4, "big") + fields) for number in (0, 1)]
    second = chunk(b"fdAT", (2).to_bytes(4, "big") + pixels[8:-4])
    data = head + chunk(b"acTL", b"\0\0\0\2\0\0\0\0") + shown[0] + pixels + shown[1] + second + chunk(b"IEND", b"")
    with pytest.raises(MediaError, match="its frames have more than 8 bits"):
        load_media(data)
