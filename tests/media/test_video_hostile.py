"""Videos that are damaged, hostile or hang: always one sentence, never a crash, a wait or a process left behind."""

from __future__ import annotations

import io
import os
import re
import signal
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest

from atoken.errors import MediaError
from atoken.io import Limits, Video, VideoReader, load_media, read_video, sniff, write_video
from atoken.media.video_decoder import Decoder
from tests.media.video_cases import encoded, moving, written


def decoders() -> list[psutil.Process]:
    """Give the child processes that decode videos, zombies included."""
    found = []
    for child in psutil.Process().children():
        try:
            actual = child.status() == psutil.STATUS_ZOMBIE or "atoken.media.video_worker" in child.cmdline()
        except psutil.NoSuchProcess:
            continue
        found += [child] if actual else []
    return found


def decoded(data: bytes, path: Path) -> tuple[np.ndarray, str]:
    """The frames that come before the decoder's error, and the error; in this process, which takes less time."""
    pixels = []

    def collect() -> None:
        decoder = Decoder(io.BytesIO(data), sniff(path).format.name, path.name, Limits(), lambda: None)
        for _, decoded in decoder.frames():
            _, rows, stride = decoder.pixels(decoded)
            height, width = decoded.frame.height, decoded.frame.width
            pixels.append(np.array(rows).reshape(-1, stride)[:, : 3 * width].reshape(height, -1, 3))

    with pytest.raises(MediaError, match="damaged after") as caught:
        collect()
    return np.stack(pixels), str(caught.value)


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert not decoders()


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsibling.mp4\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile sibling.mp4\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?><MPD><Period><BaseURL>file:///etc/passwd</BaseURL></Period></MPD>',
    "url": "http://127.0.0.1:9/a.mp4",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_are_no_videos(tmp_path: Path, kind: str) -> None:
    sibling = written(tmp_path / "sibling.mp4", 2)
    read_before = sibling.stat().st_atime_ns
    (tmp_path / "a.mp4").write_text(PLAYLISTS[kind])
    with pytest.raises(MediaError, match="none of the supported"):
        load_media(tmp_path / "a.mp4")
    assert sibling.stat().st_atime_ns == read_before


def test_mp4_without_index(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match="damaged"):
        read_video(path)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("libx264", "mkv"), ("mpeg4", "avi"), ("libvpx-vp9", "webm"), ("libx264", "mp4")]
)
def test_truncated_video_names_what_is_sound(tmp_path: Path, codec: str, suffix: str) -> None:
    """The frames named are the first of the whole video, without a gap, wherever between B-frames the file was cut."""
    muxing = {"movflags": "faststart"} if suffix == "mp4" else {}
    path = encoded(tmp_path / f"a.{suffix}", codec, moving(40, 64, 64), muxing=muxing)
    whole, data = read_video(path).frames, path.read_bytes()
    counts = []
    for percent in range(61, 92, 3):
        frames, error = decoded(data[: len(data) * percent // 100], path)
        counts += [int(re.findall(r"frames=\(0, (\d+)\)", error)[0])]
        np.testing.assert_array_equal(frames, whole[: counts[-1]])
    assert counts == sorted(counts)
    assert counts[-1] > 20
    path.write_bytes(data[: len(data) * 91 // 100])
    with pytest.raises(MediaError, match=rf"damaged after {counts[-1]} frames"):
        read_video(path)
    np.testing.assert_array_equal(read_video(path, frames=(0, counts[-1])).frames, whole[: counts[-1]])


@pytest.mark.parametrize(("missing", "is_lost"), [(0, False), (1.9, False), (2.1, True), (10, True)])
def test_a_stated_length_shows_the_loss_of_more_than_two_frames(tmp_path: Path, missing: float, is_lost: bool) -> None:
    path = encoded(tmp_path / "a.mkv", "libx264", moving(24, 32, 48))
    stated = f"00:00:{(24 + missing) / 24:012.9f}".encode()
    path.write_bytes(path.read_bytes().replace(b"00:00:01.000000000", stated))
    if is_lost:
        with pytest.raises(MediaError, match=rf"only 24 of {24 + round(missing)} frames"):
            read_video(path)
    else:
        assert len(read_video(path).frames) == 24


def test_an_index_of_too_few_frames_is_an_error(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.avi", "mpeg4", moving(40, 64, 64))
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32  # the stream's length in frames
    assert int.from_bytes(data[at : at + 4], "little") == 40
    data[at : at + 4] = (60).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(MediaError, match="only 40 of 60 frames"):
        read_video(path)


def test_frames_hidden_by_an_edit_list_are_not_missed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 24)
    whole = read_video(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    length, begin = struct.unpack(">Ii", data[at : at + 8])
    data[at : at + 8] = struct.pack(">Ii", length // 2, begin)
    path.write_bytes(data)
    with VideoReader(path) as video:
        assert video.info.declared_frames == 12
        np.testing.assert_array_equal(np.stack([frame.pixels for frame in video]), whole.frames[:12])


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("mpeg4", "avi"), ("libx264", "mkv")])
def test_a_damaged_packet_is_an_error(tmp_path: Path, codec: str, suffix: str) -> None:
    path = encoded(tmp_path / f"a.{suffix}", codec, moving(40, 96, 96))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = np.random.default_rng(3).bytes(600)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"damaged|can be decoded"):
        read_video(path)


def test_the_start_of_a_damaged_video_can_be_read(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.avi", "mpeg4", moving(40, 64, 64))
    whole = read_video(path)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"00dc", 0, data.rindex(b"idx1")) - 600
    data[at : at + 400] = bytes(400)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_video(path, frames=(0, 8)).frames, whole.frames[:8])


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_pixels=1000), "1,000 pixels"),
        (Limits(max_side=40), "40 a side"),
        (Limits(max_frames=10), "more than 10 frames"),
        (Limits(max_seconds=0.5), "longer than 0.5 seconds"),
        (Limits(max_memory=100_000), "GiB in memory"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, reason: str) -> None:
    path = written(tmp_path / "a.mp4", 24, 32, 48)
    with pytest.raises(MediaError, match=reason):
        read_video(path, limits=limits)
    if limits.max_pixels > 1000 and limits.max_side > 40:
        assert len(read_video(path, limits=limits, frames=(0, 5)).frames) == 5


def test_memory_is_checked_while_reading(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.mkv", "libx264", moving(40, 32, 32))
    data = path.read_bytes().replace(b"DURATION", b"DURATIOX").replace(b"\x44\x89\x88", b"\x44\x8a\x88")
    path.write_bytes(data)  # a Matroska file that states no length
    with VideoReader(path) as video:
        assert video.info.declared_frames is None
    assert len(read_video(path).frames) == 40
    with pytest.raises(MediaError, match="GiB in memory"):
        read_video(path, limits=Limits(max_memory=30 * 32 * 32 * 3))


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_impossible_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError, match="Cannot read"):
        load_media(tmp_path / name)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="not a file"):
        load_media(tmp_path / "a.mp4")


def test_no_video_stream(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16_000
        container.mux([*stream.encode(sound), *stream.encode(None)])
    with pytest.raises(MediaError, match="no video"):
        read_video(tmp_path / "a.mp4")


def test_a_still_image_is_no_video(tmp_path: Path) -> None:
    from atoken.io import Image

    Image(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"none of the formats \.mp4"):
        read_video(tmp_path / "a.png")


def long_video(tmp_path: Path) -> Path:
    """Give a video that is too long to lie in the pipe and the reader's buffers at once."""
    return written(tmp_path / "long.mp4", 60, 256, 256)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_decoder_is_an_error_and_the_next_video_works(tmp_path: Path, how: signal.Signals) -> None:
    path = long_video(tmp_path)
    video = VideoReader(path)
    next(video)
    decoders()[0].send_signal(how)
    with pytest.raises(MediaError, match=how.name):
        list(video)
    assert list(video) == []
    assert len(read_video(path, frames=(0, 3)).frames) == 3


def test_a_hung_decoder_is_stopped(tmp_path: Path) -> None:
    video = VideoReader(long_video(tmp_path))
    next(video)
    decoders()[0].send_signal(signal.SIGSTOP)
    video._process.timeout = 0.2  # only now: until here a busy machine may take its time
    with pytest.raises(MediaError, match="hung"):
        list(video)


def test_breaking_off_leaves_no_process(tmp_path: Path) -> None:
    path = long_video(tmp_path)
    with VideoReader(path) as video:
        for _ in video:
            break
        assert len(decoders()) == 1
    assert not decoders()
    for _ in VideoReader(path):  # dropped, not closed
        break
    assert not decoders()


def test_a_decoder_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, sys; from atoken.io import VideoReader; video = VideoReader(sys.argv[1]); next(video);"
        "print(video._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(long_video(tmp_path))], stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == -signal.SIGKILL
    decoder = int(done.stdout)
    for _ in range(1200):
        if not psutil.pid_exists(decoder) or psutil.Process(decoder).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    os.kill(decoder, signal.SIGKILL)
    pytest.fail("the decoder outlived its parent")


def test_reading_and_writing_need_no_torch(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 2)
    script = (
        "import sys, atoken.io; heavy = {'torch', 'av', 'PIL'} & set(sys.modules); assert not heavy, heavy;"
        "import atoken.media.video_worker; assert 'torch' not in sys.modules;"
        f"atoken.io.load_media({str(path)!r}); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_stray_module_in_the_working_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.mp4", 2)
    (tmp_path / "av.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert len(read_video("a.mp4").frames) == 2
    assert path.exists()


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys, numpy as np; from atoken.io import *; from atoken.errors import MediaError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (30, 128, 128, 3), dtype=np.uint8)\n"
        "for thing, name in ((Video(noise), 'a.mp4'), (Image(noise[0]), 'a.png')):\n"
        "    try: thing.save(sys.argv[1] + '/' + name)\n"
        "    except MediaError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.count("Cannot write") == done.stdout.count("File too large") == 2
    assert not list(tmp_path.iterdir())


def test_times_that_do_not_rise_are_replaced(tmp_path: Path) -> None:
    from atoken.media.clock import Times

    times = Times(Fraction(10))
    stamps = [5, None, Fraction("5.3"), Fraction("5.3"), 1, None, 9]
    found = [float(times.next(None if stamp is None else Fraction(stamp))) for stamp in stamps]
    assert found == pytest.approx([0, 0.1, 0.3, 0.4, 0.5, 0.6, 4])


def test_video_without_time_stamps(tmp_path: Path) -> None:
    frames = moving(12, 64, 64)
    video = read_video(encoded(tmp_path / "a.avi", "mpeg4", frames, options={"bf": "2"}))
    assert video.timestamps is None
    assert video.fps == 24
    write_video(Video(video.frames, video.fps), tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4").frames) == 12
