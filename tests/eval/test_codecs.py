"""Codecs of images and videos: whole files, at a quality and at the bytes of something else."""

import functools
import io
import sys
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest
from PIL import features

from atoken.errors import AtokenError
from atoken.io import Image, Video, read_video
from atoken.metrics.pixels import psnr
from eval.contract import Item
from eval.models.codecs import FORMATS, AtMost, ImageCodec, largest
from eval.models.video_codecs import CRFS, VideoCodec, decoded
from eval.models.video_codecs import FORMATS as VIDEO_FORMATS
from tests.eval.media import pixels, synthetic_image, synthetic_video
from tests.media.video_cases import digests_by_memory

BUILT_IN = [
    pytest.param(name, marks=pytest.mark.skipif(not features.check(format.feature), reason="not in this Pillow"))
    for name, format in FORMATS.items()
]
WITH_ENCODER = [
    pytest.param(name, marks=pytest.mark.skipif(format.encoder not in av.codecs_available, reason="not in this PyAV"))
    for name, format in VIDEO_FORMATS.items()
]


# ---------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize("levels", [0, 1, 2, 7, 100])
def test_bisection_finds_the_largest_that_is_small_enough(levels):
    sizes = sorted(np.random.default_rng(levels).integers(1, 50, levels).tolist())
    for most in range(52):
        fitting = [level for level in range(levels) if sizes[level] <= most]
        found = largest(range(levels), lambda level: bytes(sizes[level]), most)
        assert found == ((fitting[-1], bytes(sizes[fitting[-1]])) if fitting else None)


def test_where_sizes_do_not_rise_the_level_above_is_still_too_large():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = np.maximum(rng.integers(1, 30, 20).cumsum() + rng.integers(-40, 40, 20), 1).tolist()
        most = int(rng.integers(1, 400))
        found = largest(range(20), lambda level, sizes=sizes: bytes(sizes[level]), most)
        level = -1 if found is None else found[0]
        assert level == -1 or len(found[1]) == sizes[level] <= most
        assert level == 19 or sizes[level + 1] > most


def test_targets_are_one_number_or_one_for_each_key():
    assert AtMost(1000).of("anything") == 1000
    assert AtMost({"a": 7}, "nano").of("a") == 7
    assert (str(AtMost(1000)), str(AtMost({"a": 7}, "nano"))) == ("at most 1,000", "at most those of nano")
    with pytest.raises(AtokenError, match="no number of bytes for b; measure nano"):
        AtMost({"a": 7}, "nano").of("b")


# ---------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("format", BUILT_IN)
@pytest.mark.parametrize(("height", "width"), [(48, 64), (1, 1), (17, 33)])
def test_a_image_takes_the_bytes_of_its_file(format, height, width, tmp_path):
    item, codec = synthetic_image(height, width), ImageCodec(format, 40)
    [sample] = codec.reconstruct([item])
    path = tmp_path / f"image.{format}"
    PIL.Image.fromarray(item.media.pixels).save(path, quality=40, **codec.format.options)
    assert sample.size == path.stat().st_size
    assert np.array_equal(sample.target[0], item.media.pixels)
    assert np.array_equal(sample.prediction[0], np.asarray(PIL.Image.open(path).convert("RGB")))


@pytest.mark.parametrize("quality", [1, 40, 100])
@pytest.mark.parametrize("format", BUILT_IN)
def test_the_file_has_the_subsampling_that_the_record_states(format, quality):
    codec = ImageCodec(format, quality)
    assert codec.record["codec"].endswith(", 4:2:0")
    with av.open(io.BytesIO(codec.encoded(synthetic_image(48, 64).media.pixels, quality))) as file:
        assert file.streams.video[0].pix_fmt in ("yuv420p", "yuvj420p")


@pytest.mark.parametrize("format", WITH_ENCODER)
def test_a_video_file_has_the_subsampling_that_the_record_states(format):
    codec, item = VideoCodec(format, 20), synthetic_video(3, 32, 48)
    assert ", 4:2:0, " in codec.record["codec"]
    with av.open(io.BytesIO(codec.encoded(item.media.frames, item.media.fps, 20))) as file:
        assert file.streams.video[0].pix_fmt == "yuv420p"


@pytest.mark.parametrize("format", BUILT_IN)
def test_more_quality_is_more_bytes_and_less_error(format):
    items = [synthetic_image(64, 64, number) for number in range(3)]
    samples = [ImageCodec(format, quality).reconstruct(items) for quality in (5, 30, 60, 90)]
    sizes = [sum(sample.size for sample in row) for row in samples]
    quality = [np.mean([psnr(sample.prediction, sample.target) for sample in row]) for row in samples]
    assert sizes == sorted(sizes)
    assert quality == sorted(quality)


@pytest.mark.parametrize("format", BUILT_IN)
def test_a_image_at_the_bytes_of_another_is_never_larger_and_the_best_that_fits(format):
    item, best = synthetic_image(), FORMATS[format].qualities[-1]
    codec = ImageCodec(format, AtMost(0))
    sizes = {quality: len(codec.encoded(item.media.pixels, quality)) for quality in codec.format.qualities}
    for most in (sizes[20], sizes[60] - 1, sizes[80] + 1, 100_000):
        [sample] = ImageCodec(format, AtMost({item.key: most}, "something")).reconstruct([item])
        assert sample.size <= most
        fitting = [quality for quality, size in sizes.items() if size == sample.size]
        assert any(quality == best or sizes[quality + 1] > most for quality in fitting)


@pytest.mark.parametrize("format", BUILT_IN)
def test_where_even_the_smallest_file_is_too_large_the_item_fails(format):
    item = synthetic_image()
    least = len(ImageCodec(format, 1).encoded(item.media.pixels, FORMATS[format].qualities[0]))
    with pytest.raises(
        AtokenError, match=rf"takes {least:,} bytes for {item.key} at its lowest .* {least - 1:,} asked"
    ):
        ImageCodec(format, AtMost(least - 1)).reconstruct([item])


def test_a_codec_of_images_says_what_it_cannot_do(monkeypatch):
    with pytest.raises(AtokenError, match="no image codec 'png'; choose from jpeg, webp, avif"):
        ImageCodec("png", 50)
    with pytest.raises(AtokenError, match="quality of JPEG is from 1 to 100, got 0"):
        ImageCodec("jpeg", 0)
    with pytest.raises(AtokenError, match=r"stores images and video-.* is a video"):
        ImageCodec("jpeg", 50).reconstruct([synthetic_video()])
    with pytest.raises(AtokenError, match="cannot hold an image of 70000x1"):
        ImageCodec("jpeg", 50).reconstruct([Item("wide", Image(np.zeros((1, 70_000, 3), np.uint8)))])
    with pytest.raises(AtokenError, match="no vectors"):
        ImageCodec("jpeg", 50).embed([synthetic_image()])
    monkeypatch.setattr(features, "check", lambda _: False)
    with pytest.raises(AtokenError, match="built without AVIF"):
        ImageCodec("avif", 50)


# ------------------------------------------------------------------------------------------------------------- videos


@pytest.mark.parametrize("format", WITH_ENCODER)
def test_a_video_is_its_file_as_the_house_reads_it(format, tmp_path):
    item, codec = synthetic_video(7, 32, 48), VideoCodec(format, 30)
    [sample] = codec.reconstruct([item])
    data = codec.encoded(item.media.frames, item.media.fps, 30)
    path = tmp_path / "video.mp4"
    path.write_bytes(data)
    video = read_video(path)
    assert sample.size == path.stat().st_size
    assert np.array_equal(sample.prediction, video.frames[:, :32, :48])  # x265 has it in a corner of 128x128
    assert (video.fps, video.timestamps) == (item.media.fps, None)
    assert b"x26" not in data  # the remark of the encoder


@pytest.mark.parametrize("format", WITH_ENCODER)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 23), (2, 16, 2), (5, 34, 31)])
def test_videos_of_odd_sizes_come_back_at_their_size(format, shape):
    frames = np.broadcast_to(np.linspace(30, 200, shape[2]).astype(np.uint8)[:, None], (*shape, 3)).copy()
    [sample] = VideoCodec(format, 5).reconstruct([Item("grey", Video(frames))])
    assert sample.prediction.shape == sample.target.shape == frames.shape
    assert (
        psnr(sample.prediction, frames) > 30
    )  # grey has no chroma to lose: what is left is the codec and its rounding


@pytest.mark.parametrize("format", WITH_ENCODER)
def test_less_crf_is_more_bytes_and_less_error(format):
    item = synthetic_video(8, 48, 64)
    samples = [VideoCodec(format, crf).reconstruct([item])[0] for crf in (45, 35, 25, 15)]
    sizes, quality = zip(*[(one.size, psnr(one.prediction, one.target)) for one in samples], strict=True)
    assert list(sizes) == sorted(sizes)
    assert list(quality) == sorted(quality)


@pytest.mark.parametrize("format", WITH_ENCODER)
def test_a_video_at_the_bytes_of_another_is_never_larger_and_the_best_that_fits(format):
    item, codec = synthetic_video(5, 32, 32), VideoCodec(format, 30)

    @functools.cache
    def size(crf):
        return len(codec.encoded(item.media.frames, item.media.fps, crf))

    for most in (size(38), size(30) - 1, 1_000_000):
        [sample] = VideoCodec(format, AtMost(most)).reconstruct([item])
        assert sample.size <= most
        chosen = [place for place, crf in enumerate(CRFS) if size(crf) == sample.size]
        assert any(place == len(CRFS) - 1 or size(CRFS[place + 1]) > most for place in chosen)


@pytest.mark.parametrize("format", WITH_ENCODER)
def test_where_even_the_smallest_video_is_too_large_the_item_fails(format):
    with pytest.raises(AtokenError, match=r"bytes for video-0-6-48x32 at its lowest quality, over the 100 asked"):
        VideoCodec(format, AtMost(100)).reconstruct([synthetic_video()])


@pytest.mark.parametrize("format", WITH_ENCODER)
def test_twice_is_the_same_file(format):
    item, codec = synthetic_video(9, 48, 64), VideoCodec(format, 28)
    files = {codec.encoded(item.media.frames, item.media.fps, 28) for _ in range(3)}
    assert len(files) == 1
    assert np.array_equal(decoded(files.pop())[:, :48, :64], codec.reconstruct([item])[0].prediction)


@pytest.mark.skipif(sys.platform != "linux", reason="fills new memory by glibc's MALLOC_PERTURB_")
@pytest.mark.parametrize("format", WITH_ENCODER)
def test_a_file_does_not_depend_on_what_memory_held(format):
    code = (
        "import hashlib; from tests.eval.test_codecs import VideoCodec, synthetic_video;"
        "item = synthetic_video(7, 32, 48);"
        f"data = VideoCodec({format!r}, 30).encoded(item.media.frames, item.media.fps, 30);"
        "print(hashlib.sha256(data).hexdigest())"
    )
    assert len(digests_by_memory(code)) == 1


@pytest.mark.parametrize("format", WITH_ENCODER)
def test_a_image_is_a_video_of_one_frame(format):
    [sample] = VideoCodec(format, 20).reconstruct([synthetic_image(17, 33)])
    assert sample.prediction.shape == pixels(synthetic_image(17, 33)).shape
    with av.open(io.BytesIO(VideoCodec(format, 20).encoded(sample.target, Fraction(24), 20))) as container:
        assert len(list(container.decode(video=0))) == 1


def test_a_codec_of_videos_says_what_it_cannot_do():
    with pytest.raises(AtokenError, match="no video codec 'av2'; choose from h264, h265"):
        VideoCodec("av2", 30)
    for crf in (-1, 52, float("nan")):
        with pytest.raises(AtokenError, match=r"H\.264 takes a CRF from 0 to 51, got"):
            VideoCodec("h264", crf)
    with pytest.raises(AtokenError, match="no vectors"):
        VideoCodec("h264", 30).embed_texts(["a cat"])
