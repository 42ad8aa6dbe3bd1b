"""Videos: what is written comes back, with exact counts, times, rates, colours and orientation."""

from __future__ import annotations

import sys
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from atoken.errors import AtokenWarning, MediaError
from atoken.io import Video, VideoReader, VideoWriter, load_media, read_video, sniff, write_video
from atoken.media.clock import resampled
from tests.media.video_cases import X265_SIDE, digests_by_memory, encoded, moving, psnr, remuxed, turned, written


@pytest.mark.parametrize("count", [1, 2, 3, 17])
@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_written_video_comes_back(tmp_path: Path, count: int, size: tuple[int, int]) -> None:
    frames = moving(count, *size)
    Video(frames, Fraction(12)).save(tmp_path / "a.mp4")
    video = load_media(tmp_path / "a.mp4")
    assert isinstance(video, Video)
    assert video.frames.shape == frames.shape
    assert psnr(video.frames, frames) > 30
    assert video.fps == 12
    assert video.timestamps is None
    assert video.frames.flags.owndata


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (5, 1), (2, 300)])
def test_tiny_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = np.full((2, *size, 3), (200, 60, 90), np.uint8)
    write_video(Video(frames), tmp_path / "a.mp4")
    video = read_video(tmp_path / "a.mp4")
    assert video.frames.shape == frames.shape
    assert np.abs(video.frames.astype(int) - frames).max() <= 6


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 100, 50]], np.uint8)
    frames = np.repeat(np.repeat(colours, 16, 0)[None, None], 32, 1)
    for frame in (frames, frames[:, :31]):
        write_video(Video(np.ascontiguousarray(frame)), tmp_path / "a.mp4", crf=4)
        assert np.abs(read_video(tmp_path / "a.mp4").frames[:, :, 8::16].astype(int) - colours).max() <= 4


@pytest.mark.parametrize("fps", ["30000/1001", "24000/1001", "12", "24", "60", "1/3", "2997/100"])
@pytest.mark.parametrize("count", [1, 5])
def test_rates_are_exact(tmp_path: Path, fps: str, count: int) -> None:
    path = written(tmp_path / "a.mp4", count, 16, 16, Fraction(fps))
    with VideoReader(path) as video:
        assert video.info.fps == Fraction(fps)
        assert video.info.declared_frames == video.expected_frames == count
        assert [frame.seconds for frame in video] == [float(i / Fraction(fps)) for i in range(count)]
    assert read_video(path).timestamps is None


def test_varying_rate_keeps_its_times(tmp_path: Path) -> None:
    times = np.array([0.0, 0.04, 0.05, 0.3, 0.30003, 1.25, 2.0])
    frames = moving(7, 32, 32)
    write_video(Video(frames, Fraction(24), times), tmp_path / "a.mp4")
    video = read_video(tmp_path / "a.mp4")
    assert video.timestamps is not None
    assert np.abs(video.timestamps - times).max() < 1 / 90_000
    assert psnr(video.frames, frames) > 30
    part = read_video(tmp_path / "a.mp4", frames=(3, 6))
    assert part.timestamps is not None
    np.testing.assert_allclose(part.timestamps, times[3:6] - times[3], atol=1 / 90_000)


def test_writer_takes_parts(tmp_path: Path) -> None:
    frames = moving(10, 32, 32)
    with VideoWriter(tmp_path / "a.mp4", 24, size=(32, 32)) as writer:
        for part in (frames[:3], frames[3:3], frames[3:]):
            writer.write(part)
    write_video(Video(frames), tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="fills new memory by glibc's MALLOC_PERTURB_")
@pytest.mark.parametrize("size", [(32, 48), (33, 31)])
def test_a_file_does_not_depend_on_what_memory_held(size):
    code = (
        "import hashlib, pathlib, tempfile; from tests.media.video_cases import written; folder = tempfile.mkdtemp();"
        f"path = written(pathlib.Path(folder) / 'a.mp4', 12, *{size});"
        "print(hashlib.sha256(path.read_bytes()).hexdigest()); path.unlink(); pathlib.Path(folder).rmdir()"
    )
    assert len(digests_by_memory(code)) == 1


def test_a_range_is_a_slice_of_the_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 20)
    whole = read_video(path)
    for start, stop in ((0, 1), (3, 9), (None, 4), (17, None), (15, 100), (19, 20), (None, None)):
        with VideoReader(path, frames=(start, stop)) as video:
            seconds, frames, _ = zip(*video, strict=True)
            assert video.expected_frames == len(frames)
        np.testing.assert_array_equal(np.stack(frames), whole.frames[start:stop])
        assert seconds[0] == (start or 0) / 24
    part = read_video(path, frames=(3, 9))
    np.testing.assert_array_equal(part.frames, whole.frames[3:9])
    assert part.timestamps is None


FAR = {  # how a file is encoded of which a range late in it is read -> suffix, encoder, pixel format, options
    "H.264": ("mp4", "libx264", "yuv420p", {"g": "12"}),
    "open groups": ("mkv", "libx264", "yuv420p", {"g": "12", "x264-params": "open-gop=1:bframes=3:scenecut=0"}),
    "no key frames but the first": ("mkv", "libx264", "yuv420p", {"x264-params": "intra-refresh=1:keyint=20"}),
    "H.265": ("mp4", "libx265", "yuv420p", {"x265-params": "keyint=12:open-gop=1:log-level=error"}),
    "VP9 with alpha": ("webm", "libvpx-vp9", "yuva420p", {"g": "12", "lag-in-frames": "0"}),
    "AVI": ("avi", "mpeg4", "yuv420p", {"g": "12"}),
}


@pytest.mark.parametrize("kind", FAR)
def test_a_range_late_in_a_video_is_a_slice_of_the_whole(tmp_path: Path, kind: str) -> None:
    suffix, codec, pix_fmt, options = FAR[kind]
    frames = moving(130, *((X265_SIDE, X265_SIDE) if codec == "libx265" else (32, 48)))
    rgba = np.concatenate([frames, frames[..., 1:2]], -1) if "a" in pix_fmt else frames
    path = encoded(tmp_path / f"a.{suffix}", codec, rgba, pix_fmt, options, fps=Fraction(30000, 1001))
    whole = list(VideoReader(path))
    for start, stop in ((60, 66), (71, 73), (72, 74), (117, None), (129, 900)):
        part = list(VideoReader(path, frames=(start, stop)))
        assert [frame.seconds for frame in part] == [frame.seconds for frame in whole[start:stop]]
        for actual, expected in zip(part, whole[start:stop], strict=True):
            np.testing.assert_array_equal(actual.pixels, expected.pixels)
            np.testing.assert_array_equal(actual.alpha, expected.alpha)
    with pytest.raises(MediaError, match="ends before frame 130"):
        read_video(path, frames=(130, 140))


def test_frames_before_the_key_frame_of_a_range_are_not_decoded(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.mp4", "libx264", moving(130, 64, 96), options={"g": "12"})
    whole = read_video(path).frames
    data = bytearray(path.read_bytes())
    damaged = len(data) // 4
    data[damaged : damaged + 600] = np.random.default_rng(0).bytes(600)
    path.write_bytes(data)
    with pytest.raises(MediaError, match="damaged after"):
        read_video(path)
    np.testing.assert_array_equal(read_video(path, frames=(100, 110)).frames, whole[100:110])


@pytest.mark.parametrize("frames", [(4, 4), (5, 2), (-3, None), (0, -1), (0.5, 2)])
def test_impossible_ranges_are_refused(tmp_path: Path, frames: tuple) -> None:
    with pytest.raises(MediaError, match="frames"):
        read_video(written(tmp_path / "a.mp4", 5), frames=frames)


def test_a_range_beyond_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="ends before frame 5"):
        read_video(written(tmp_path / "a.mp4", 5), frames=(5, 9))


@pytest.mark.parametrize("source", [24, Fraction(30000, 1001)])
@pytest.mark.parametrize("fps", [1, 7, 12, 23.976, 24, 30, 60])
def test_resampling_gives_the_frame_shown(tmp_path: Path, source: Fraction, fps: float) -> None:
    path = written(tmp_path / "a.mp4", 24, 16, 16, source)
    whole, video = read_video(path), read_video(path, fps=fps)
    rate = video.fps
    assert rate == Fraction(fps).limit_denominator(100_000)
    shown = [int(k * source / rate) for k in range(1000) if k / rate < 24 / Fraction(source)]
    np.testing.assert_array_equal(video.frames, whole.frames[shown])
    assert video.timestamps is None
    with VideoReader(path, fps=fps, frames=(1, None)) as video:
        assert video.expected_frames == len(shown) - 1 or len(shown) == 1


def test_resampling_takes_a_frame_that_begins_within_the_rounding_of_the_clock() -> None:
    slack, step = Fraction(1, 2000), Fraction(1, 10**9)

    def shown(*starts: Fraction, last: Fraction = Fraction(1, 20)) -> list[int]:
        frames = ((start, number) for number, start in enumerate(starts))
        found = list(resampled(frames, Fraction(10), last, slack))
        assert [seconds for seconds, _ in found] == [Fraction(k, 10) for k in range(len(found))]
        return [number for _, number in found]

    tenth, zero = Fraction(1, 10), Fraction(0)
    assert shown(zero, tenth + slack, 2 * tenth - slack) == [0, 1, 2]
    assert shown(zero, tenth + slack + step, 2 * tenth + slack + step) == [0, 0, 1]
    assert shown(zero, last=tenth + slack) == [0]
    assert shown(zero, last=tenth + slack + step) == [0, 0]


@pytest.mark.parametrize("suffix", ["webm", "mkv"])
def test_resampling_to_the_same_rate_changes_nothing(tmp_path: Path, suffix: str) -> None:
    """Matroska rounds times to milliseconds: frame 2 of 30 a second begins at 67 ms, which is later than 2/30 s."""
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    path = encoded(tmp_path / f"a.{suffix}", codec, moving(20, 32, 48), fps=30)
    np.testing.assert_array_equal(read_video(path, fps=30).frames, read_video(path).frames)


def test_resampling_a_varying_rate(tmp_path: Path) -> None:
    times = np.array([0.0, 0.1, 0.5, 0.9])
    write_video(Video(moving(4, 32, 32), Fraction(10), times), tmp_path / "a.mp4")
    whole = read_video(tmp_path / "a.mp4")
    video = read_video(tmp_path / "a.mp4", fps=10)
    np.testing.assert_array_equal(video.frames[:10], whole.frames[[0, 1, 1, 1, 1, 2, 2, 2, 2, 3]])
    np.testing.assert_array_equal(read_video(tmp_path / "a.mp4", fps=10, frames=(4, 7)).frames, video.frames[4:7])


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),  # a phone held upright: a quarter turn clockwise
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
        ((0, 0, 0, 0), lambda frame: frame),
    ],
)
def test_the_display_matrix_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int], turn) -> None:
    path = written(tmp_path / "a.mp4", 3, 32, 48)
    upright = np.stack([turn(frame) for frame in read_video(path).frames])
    turned(path, *matrix)
    np.testing.assert_array_equal(read_video(path).frames, upright)
    with VideoReader(path) as video:
        assert (video.info.height, video.info.width) == upright.shape[1:3]


def test_an_odd_angle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="multiple of 90 degrees"):
        read_video(turned(written(tmp_path / "a.mp4", 3), 1, 1, -1, 1))


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx265", "mp4"),
        ("libvpx-vp9", "webm"),
        ("mpeg4", "avi"),
        ("libx264", "mkv"),
        ("libx264", "mov"),
        ("mjpeg", "avi"),
    ],
)
def test_other_codecs_and_containers(tmp_path: Path, codec: str, suffix: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    frames = moving(12, X265_SIDE, X265_SIDE)
    options = {"qmin": "1", "qmax": "3"} if codec in ("mpeg4", "mjpeg") else {"crf": "10"}
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    video = read_video(encoded(tmp_path / f"a.{suffix}", codec, frames, pix_fmt, options))
    assert video.frames.shape == frames.shape
    assert (video.fps, video.timestamps) == (24, None)
    assert psnr(video.frames, frames) > 28


STREAMS = {  # file -> codec and FFmpeg's format
    "a.ts": ("libx264", "mpegts"), "mpeg2.ts": ("mpeg2video", "mpegts"), "a.m2ts": ("libx264", "mpegts"),
    "a.y4m": ("rawvideo", "yuv4mpegpipe"), "a.h264": ("libx264", "h264"), "a.hevc": ("libx265", "hevc"),
}  # fmt: skip


@pytest.mark.parametrize("fps", ["24", "30000/1001", "50"])
@pytest.mark.parametrize("name", STREAMS)
def test_streams_without_an_index(tmp_path: Path, name: str, fps: str) -> None:
    codec, format = STREAMS[name]
    frames = moving(30, X265_SIDE, X265_SIDE) if codec == "libx265" else moving(30, 64, 96)
    m2ts = {"mpegts_m2ts_mode": "1"} if name == "a.m2ts" else {}
    options = {"g": "12"} | {"libx265": {"x265-params": "log-level=error"}, "mpeg2video": {"qmax": "2"}}.get(codec, {})
    path = encoded(tmp_path / name, codec, frames, options=options, fps=Fraction(fps), format=format, muxing=m2ts)
    assert (sniff(path).modality.name, sniff(path).format.name) == ("video", format)
    video = load_media(path)
    assert video.frames.shape == frames.shape
    assert psnr(video.frames, frames) > 28
    assert (video.fps, video.timestamps) == (Fraction(fps), None)
    with VideoReader(path) as reader:
        assert (reader.info.declared_frames, reader.expected_frames) == (None, None)
    np.testing.assert_array_equal(read_video(path, frames=(7, 9)).frames, video.frames[7:9])


@pytest.mark.parametrize("seconds", [0, 10, 2**33 / 90_000 - 1])
def test_a_transport_stream_may_start_at_any_time(tmp_path: Path, seconds: float) -> None:
    """Its clock has 33 bits, so that it begins again at 0 after 26.5 hours."""
    offset = {"output_ts_offset": str(seconds)}
    path = encoded(tmp_path / "a.ts", "libx264", moving(48, 32, 48), format="mpegts", muxing=offset)
    with VideoReader(path) as video:
        times = [frame.seconds for frame in video]
    np.testing.assert_allclose(times, np.arange(48) / 24, atol=1 / 90_000)


def test_varying_times_of_a_transport_stream(tmp_path: Path) -> None:
    times = np.array([0.0, 0.04, 0.2, 0.25, 1.0])
    Video(moving(5, 32, 48), timestamps=times).save(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "a.ts"), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    np.testing.assert_allclose(read_video(tmp_path / "a.ts").timestamps, times, atol=1 / 90_000)


def test_a_raw_stream_that_states_no_rate_has_25_frames_a_second(tmp_path: Path) -> None:
    options = {"x265-params": "vui-timing-info=0:log-level=error"}
    path = encoded(tmp_path / "a.hevc", "libx265", moving(5, X265_SIDE, X265_SIDE), options=options, format="hevc")
    assert read_video(path).fps == 25


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_transport_stream_is_read_from_its_first_key_frame(tmp_path: Path, codec: str) -> None:
    path = encoded(tmp_path / "a.ts", codec, moving(40, 64, 96), options={"g": "12"}, format="mpegts")
    whole = read_video(path).frames
    path.write_bytes(path.read_bytes()[188 * 20 :])
    with pytest.warns(AtokenWarning, match=r"begins between key frames; its first \d+ frames are left out"):
        actual = read_video(path)
    assert len(actual.frames) in (28, 16)
    np.testing.assert_array_equal(actual.frames, whole[-len(actual.frames) :])
    assert actual.timestamps is None


def test_audio_gives_one_warning(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.mp4", "libx264", moving(6, 32, 32), audio=True)
    with pytest.warns(AtokenWarning, match="no sound") as caught:
        video = read_video(path)
    assert len(caught) == 1
    assert len(video.frames) == 6
    with pytest.warns(AtokenWarning), VideoReader(path) as video:
        assert video.info.has_audio
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_video(written(tmp_path / "b.mp4", 2))


ALPHA = moving(20, 33, 47)[..., 1]


@pytest.mark.parametrize(("suffix", "least"), [(".mov", 1000), (".webm", 35)])
@pytest.mark.parametrize("timestamps", [None, np.cumsum(np.arange(20) / 100)])
def test_alpha_is_written_and_comes_back(tmp_path: Path, suffix: str, least: float, timestamps: np.ndarray) -> None:
    video = Video(moving(20, 33, 47), Fraction(25), timestamps, ALPHA)
    video.save(tmp_path / f"a{suffix}")
    actual = read_video(tmp_path / f"a{suffix}")
    assert psnr(actual.alpha, ALPHA) > least
    assert psnr(actual.frames, video.frames) > least
    assert actual.fps == 25 or timestamps is not None
    np.testing.assert_allclose(actual.timestamps, timestamps) if timestamps is not None else None
    part = read_video(tmp_path / f"a{suffix}", frames=(7, 9))
    np.testing.assert_array_equal(part.alpha, actual.alpha[7:9])


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mov"])
def test_a_video_without_alpha_has_none_afterwards(tmp_path: Path, suffix: str) -> None:
    Video(moving(3, 33, 47)).save(tmp_path / f"a{suffix}")
    actual = read_video(tmp_path / f"a{suffix}")
    assert actual.alpha is None
    assert actual.frames.shape == (3, 33, 47, 3)
    assert psnr(actual.frames, moving(3, 33, 47)) > 30


def test_mp4_says_that_it_leaves_alpha_out(tmp_path: Path) -> None:
    with pytest.warns(AtokenWarning, match=r"alpha is left out.*\.webm or \.mov keeps it"):
        Video(moving(3, 32, 32), alpha=ALPHA[:3, :32, :32]).save(tmp_path / "a.mp4")
    assert read_video(tmp_path / "a.mp4").alpha is None


def test_a_writer_takes_parts_with_and_without_alpha(tmp_path: Path) -> None:
    frames = moving(6, 33, 47)
    with VideoWriter(tmp_path / "a.mov", 24, size=(33, 47), alpha=True) as writer:
        writer.write(frames[:3], alpha=ALPHA[:3])
        writer.write(frames[3:])
        with pytest.raises(MediaError, match="alpha must be"):
            writer.write(frames[:3], alpha=ALPHA[:2])
    np.testing.assert_array_equal(read_video(tmp_path / "a.mov").alpha, [*ALPHA[:3], *np.full((3, 33, 47), 255)])
    with VideoWriter(tmp_path / "b.mov", 24, size=(33, 47)) as writer:
        writer.write(frames)
        with pytest.raises(MediaError, match="alpha=True"):
            writer.write(frames[:1], alpha=ALPHA[:1])


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt", "most"),
    [("qtrle", "mov", "argb", 0), ("png", "avi", "rgba", 0), ("ffv1", "mkv", "bgra", 0), ("ffv1", "mkv", "yuva420p", 1),
     ("ffv1", "avi", "yuva444p10le", 1), ("prores_ks", "mov", "yuva444p10le", 1)],
)  # fmt: skip
def test_alpha_of_pixel_formats(tmp_path: Path, codec: str, suffix: str, pix_fmt: str, most: int) -> None:
    rgba = np.concatenate([moving(4, 32, 48), np.arange(4 * 32 * 48, dtype=np.uint8).reshape(4, 32, 48, 1)], -1)
    video = read_video(encoded(tmp_path / f"a.{suffix}", codec, rgba, pix_fmt))
    assert np.abs(video.alpha.astype(int) - rgba[..., 3]).max() <= most
    assert psnr(video.frames, rgba[..., :3]) > (28 if most else 1000)


@pytest.mark.parametrize("tags", [{}, {"alpha_mode": "1"}, {"ALPHA_MODE": "1"}, {"alpha_mode": "0"}])
def test_alpha_of_webm_is_found_by_its_blocks(tmp_path: Path, tags: dict[str, str]) -> None:
    video = Video(moving(10, 32, 48), Fraction(10), alpha=ALPHA[:10, :32, :32].repeat(2, 2)[..., :48])
    video.save(tmp_path / "a.webm")
    Video(video.frames, Fraction(10)).save(tmp_path / "b.webm")
    expected = read_video(tmp_path / "a.webm").alpha
    for name, alpha in (("a.webm", expected), ("b.webm", None)):
        actual = read_video(remuxed(tmp_path / name, tmp_path / f"remuxed-{name}", tags))
        assert len(actual.frames) == 10
        np.testing.assert_array_equal(actual.alpha, alpha)


def test_frames_of_a_webm_may_have_alpha_or_not(tmp_path: Path) -> None:
    """Browsers record a canvas so: frames that are opaque have no alpha beside them."""
    Video(moving(10, 32, 48), Fraction(10), alpha=ALPHA[:10, :32, :47].repeat(2, 2)[..., :48]).save(tmp_path / "a.webm")
    whole = read_video(tmp_path / "a.webm")
    opaque = (4, 5, 8, 9)
    actual = read_video(remuxed(tmp_path / "a.webm", tmp_path / "b.webm", {}, opaque))
    np.testing.assert_array_equal(actual.frames, whole.frames)
    np.testing.assert_array_equal(actual.alpha[:4], whole.alpha[:4])
    assert (actual.alpha[[*opaque]] == 255).all()
    with VideoReader(tmp_path / "b.webm") as reader:
        assert [frame.alpha is None for frame in reader] == [number in opaque for number in range(10)]


def test_info(tmp_path: Path) -> None:
    with VideoReader(written(tmp_path / "a.mp4", 12, 32, 48)) as video:
        info = video.info
        assert (info.height, info.width, info.fps, info.declared_frames) == (32, 48, 24, 12)
        assert (info.duration, info.has_audio, info.container, info.codec) == (0.5, False, "mov", "h264")


def break_off(path: Path) -> None:
    with VideoWriter(path, 24, size=(16, 16)) as writer:
        writer.write(moving(2, 16, 16))
        raise FileNotFoundError("the user's own")


def test_failed_writing_leaves_nothing(tmp_path: Path) -> None:
    frames = moving(2, 16, 16)
    path = tmp_path / "a.mp4"
    with pytest.raises(MediaError, match=r"ends in \.mp4, \.webm, \.mov"):
        write_video(Video(frames), tmp_path / "a.mkv")
    with pytest.raises(MediaError, match="No such file"):
        write_video(Video(frames), tmp_path / "absent" / "a.mp4")
    with pytest.raises(MediaError, match="at least one frame"), VideoWriter(path, 24, size=(16, 16)):
        pass
    with pytest.raises(FileNotFoundError, match="the user's own"):
        break_off(path)
    with pytest.raises(MediaError, match="rise by at least"):
        write_video(Video(frames, Fraction(24), np.array([0.0, 1e-7])), path)
    assert not list(tmp_path.iterdir())


def test_writer_checks_its_frames(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 24, size=(16, 16)) as writer:
        writer.write(moving(2, 16, 16))
        for bad in (moving(2, 16, 18), moving(2, 16, 16)[0], moving(2, 16, 16).astype(np.float32)):
            with pytest.raises(MediaError, match="must be uint8 of shape"):
                writer.write(bad)
        with pytest.raises(MediaError, match="every call"):
            writer.write(moving(1, 16, 16), np.array([0.5]))
    assert len(read_video(tmp_path / "a.mp4").frames) == 2
    with pytest.raises(MediaError, match="fps"):
        VideoWriter(tmp_path / "a.mp4", 0, size=(16, 16))


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 2)
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        break_off(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
