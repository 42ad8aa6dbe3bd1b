"""Small videos for the tests of reading and writing video."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from atoken.io import Video, write_video

X265_SIDE = 128  # pixels; of 64 or less a side, x265 writes outside its memory


def moving(count: int, height: int, width: int) -> np.ndarray:
    """Give frames (count, H, W, 3) that all differ, smooth enough to survive a codec."""
    t, y, x = np.ogrid[:count, :height, :width]
    wave = [np.sin(x / 9 + t / 3) + 0 * y, np.cos(y / 7 - t / 4) + 0 * x, np.sin((x + y) / 11 + t / 2)]
    return np.rint(127.5 + 120 * np.stack(np.broadcast_arrays(*wave), -1)).astype(np.uint8)


def written(path: Path, count: int = 24, height: int = 32, width: int = 48, fps: Fraction | int = 24) -> Path:
    """Write a video of our own at ``path``."""
    write_video(Video(moving(count, height, width), Fraction(fps)), path)
    return path


def encoded(
    path: Path,
    codec: str,
    frames: np.ndarray,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    audio: bool = False,
    fps: Fraction | int = 24,
    format: str | None = None,
    muxing: dict[str, str] | None = None,
) -> Path:
    """Write RGB or RGBA ``frames`` with any encoder and container, with a silent audio track if wanted."""
    with av.open(str(path), "w", format=format, options=muxing or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        sound = container.add_stream("aac", rate=16_000, layout="mono") if audio else None
        for pixels in frames:
            layout = "rgba" if pixels.shape[-1] == 4 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format=layout)))
        container.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16_000
            container.mux([*sound.encode(silence), *sound.encode(None)])
    return path


def remuxed(path: Path, target: Path, tags: dict[str, str], opaque: Collection[int] = ()) -> Path:
    """Copy the packets of a video with other tags, those of ``opaque`` frames without the alpha beside them."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        stream.metadata.clear()
        stream.metadata.update(tags)
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                plain = av.Packet(bytes(packet))
                plain.pts, plain.dts, plain.time_base = packet.pts, packet.dts, packet.time_base
                plain.duration, plain.is_keyframe = packet.duration, packet.is_keyframe
                kept = plain if number in opaque else packet
                kept.stream = stream
                container.mux(kept)
    return target


def digests_by_memory(code: str) -> set[str]:
    """What ``code`` prints in processes whose new memory holds one byte, or another (glibc's MALLOC_PERTURB_)."""
    root = Path(__file__).parents[2]
    return {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"MALLOC_PERTURB_": byte}, cwd=root, capture_output=True,
            text=True, check=True,
        ).stdout
        for byte in ("85", "170")
    }  # fmt: skip


def turned(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Patch the display matrix of the MP4 at ``path``."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Give the peak signal-to-noise ratio in dB."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
