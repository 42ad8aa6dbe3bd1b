"""Hostile files made by hand for ``benchmarks.fuzz``, each with what must become of it."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.media.seed_files import Case, encoded, moving, not_files


def secrets(folder: Path) -> list[Path]:
    """Files that lie beside the cases, that those name, and that nothing may open."""
    names = {"secret.mp4": "libx264", "secret.ts": "mpeg4"}
    return [encoded(folder / name, codec, moving(4, 48, 64)) for name, codec in names.items()]


def hostile_images(folder: Path, seeds: Path) -> Iterator[Case]:
    """Bombs, endless structures, other formats under an image's name, and what is no file at all."""
    data = _image_bytes(seeds)
    for name, (content, expected) in data.items():
        (folder / name).write_bytes(content)
        yield Case(folder / name, expected)
    yield from not_files(folder, ".png")


def hostile_videos(folder: Path, seeds: Path, port: int) -> Iterator[Case]:
    """Playlists and references to other files, false sizes and counts, other formats under a video's name."""
    data = {name: (text.encode(), "refused") for name, text in _playlists(folder, port).items()}
    for name, (content, expected) in (data | _video_bytes(seeds)).items():
        (folder / name).write_bytes(content)
        yield Case(folder / name, expected)
    yield from not_files(folder, ".mp4")


def _image_bytes(seeds: Path) -> dict[str, tuple[bytes, str]]:
    rgb, jpeg, bmp = ((seeds / name).read_bytes() for name in ("rgb.png", "plain.jpg", "rgb.bmp"))
    avif, heic, jp2, webp = ((seeds / f).read_bytes() for f in ("rgb.avif", "rgb.heic", "rgb.jp2", "moving.webp"))
    bomb = zlib.compress(bytes(200 << 20), 9)
    frame = struct.pack("<cHHHHB", b",", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><image href="secret.mp4"/></svg>'
    start = jpeg.index(b"\xff\xc0") + 5
    return {
        "60000x60000.png": (_png(60_000, 60_000), "refused"),
        "lying.png": (_png(8_000, 8_000), "refused"),
        "64-megapixels.png": (_png(8_000, 8_000, pixels=8_000 * 24_001), "image"),
        "no-width.png": (_png(0, 8), "refused"),
        "ztxt.png": (rgb[:33] + _chunk(b"zTXt", b"a\0\0" + bomb) + rgb[33:], ""),
        "itxt.png": (rgb[:33] + _chunk(b"iTXt", b"a\0\x01\0\0\0" + bomb) + rgb[33:], ""),
        "iccp.png": (rgb[:33] + _chunk(b"iCCP", b"a\0\0" + bomb) + rgb[33:], ""),
        "65500x65500.jpg": (jpeg[:start] + b"\xff\xdc\xff\xdc" + jpeg[start + 4 :], "refused"),
        "tall.bmp": (bmp[:18] + struct.pack("<ii", 16, -(2**31)) + bmp[26:], "refused"),
        "frames.gif": (b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff" + frame * 10_000 + b";", "video"),
        "cyclic.tif": (_tiff(following=8), "image"),
        "own-exif.tif": (_tiff((34665, 4, 1, 8)), "image"),
        "own-sub-folder.tif": (_tiff((330, 4, 1, 8)), "image"),
        "four-billion-strips.tif": (_tiff(strips=0xFFFFFFFF), "refused"),
        "half.png": (rgb[: len(rgb) // 2], "refused"),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(secret.mp4) run showpage\n", "refused"),
        "svg.png": (svg.encode(), "refused"),
        "pdf.png": (b"%PDF-1.4\n1 0 obj <</F (secret.mp4)>> endobj\n", "refused"),
        "ppm.png": (b"P6 60000 60000 255\n", "refused"),
        "lying.ppm": (b"P6 8000 8000 255\n" + bytes(999), "refused"),
        "lying-plain.ppm": (b"P3 8000 8000 255\n" + b"1 " * 999, "refused"),
        "endless-number.ppm": (b"P5 " + b"1" * 1_000_000, "refused"),
        "65535x65535.tga": (_tga(65_535, 65_535), "refused"),
        "lying.tga": (_tga(8_000, 8_000), "refused"),
        "64-megapixels.tga": (_tga(8_064, 7_936, pixels=8_064 * 7_936), "image"),
        "60000x60000.ico": (_icon(_png(60_000, 60_000)), "refused"),
        "bitmap.ico": (_icon(struct.pack("<IiiHHIIiiII", 40, 20_000, 40_000, 1, 32, *[0] * 6)), "refused"),
        "many-entries.ico": (b"\0\0\1\0\xff\xff" + bytes(64), "refused"),
        "icon-in-itself.ico": (_icon(b"", offset=0), "refused"),
        "60000x60000.avif": (_sized(avif, 60_000), "refused"),
        # A decoder may go by the size in the stream, or scale to that in the boxes.
        "8000x8000.avif": (_sized(avif, 8_000), ""),
        "60000x60000.heic": (_sized(heic, 60_000), "refused"),
        "8000x8000.heic": (_sized(heic, 8_000), ""),
        "brand-only.avif": (avif[: avif.index(b"meta") - 4], "refused"),
        "brand-only.heic": (heic[: heic.index(b"meta") - 4], "refused"),
        "60000x60000.jp2": (_sized_jp2(jp2, 60_000, 60_000), "refused"),
        "lying.jp2": (_sized_jp2(jp2, 8_000, 8_000), "refused"),
        "many-tiles.jp2": (_sized_jp2(jp2, 8_000, 1), "refused"),
        "many-frames.png": (_animated(rgb, 0x7FFFFFFF), "refused"),
        "missing-frames.png": (_animated(rgb, 200_000), "refused"),
        "65535x65535.gif": (b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff" + frame * 2 + b";", "refused"),
        "wide.webp": (webp[:24] + b"\xff\xff\xff\xff\xff\0" + webp[30:], "refused"),
        "jpeg.mp4": (jpeg, "image"),
    }


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, pixels: int = 1024) -> bytes:
    """An RGB PNG that states this size and holds so many bytes of black pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + _chunk(b"IDAT", zlib.compress(bytes(pixels)))
        + _chunk(b"IEND", b"")
    )


def _tga(width: int, height: int, pixels: int = 9) -> bytes:
    """A run-length encoded RGB TGA that states this size and holds so many black pixels."""
    run = b"\xff\0\0\0"  # 128 pixels
    return struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, width, height, 24, 0) + run * (-(-pixels // 128))


def _icon(image: bytes, offset: int = 22) -> bytes:
    """An icon with one entry."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, max(len(image), 64), offset) + image


def _sized(data: bytes, side: int) -> bytes:
    """An AVIF or HEIC whose boxes state another size."""
    return re.sub(rb"(?s)(ispe\0{4}).{8}", lambda box: box[1] + struct.pack(">II", side, side), data)


def _sized_jp2(data: bytes, side: int, tile: int) -> bytes:
    """A JPEG 2000 whose box and stream state another size, in tiles of that side."""
    stream = data.index(b"\xff\x4f\xff\x51") + 8
    sizes = struct.pack(">8I", side, side, 0, 0, tile, tile, 0, 0)
    boxed = re.sub(rb"(?s)(ihdr).{8}", lambda box: box[1] + struct.pack(">II", side, side), data[:stream])
    return boxed + sizes + data[stream + 32 :]


def _animated(png: bytes, frames: int) -> bytes:
    """A PNG that states so many frames, and holds one."""
    return png[:33] + _chunk(b"acTL", struct.pack(">II", frames, 0)) + png[33:]


def _tiff(*more: tuple[int, int, int, int], following: int = 0, strips: int = 1) -> bytes:
    """A grey TIFF of one pixel, its only folder at byte 8, with ``more`` entries (tag, type, count, value)."""
    plain = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, strips, 0),
             (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, strips, 1)]  # fmt: skip
    entries = sorted([*plain, *more])
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(entries))
        + b"".join(struct.pack("<HHII", *e) for e in entries)
        + struct.pack("<I", following)
    )


def _playlists(folder: Path, port: int) -> dict[str, str]:
    head = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n"
    near, far, web = "secret.ts", str(folder / "secret.ts"), f"http://127.0.0.1:{port}/a.ts"
    hls = {
        name: f"{head}#EXTINF:1,\n{where}\n#EXT-X-ENDLIST\n"
        for name, where in (("near", near), ("far", far), ("web", web))
    }
    return {f"hls-{name}.mp4": text for name, text in hls.items()} | {
        "hls.mkv": hls["near"],
        "hls.avi": hls["near"],
        "hls-behind-ftyp.mp4": f"#EXTftypisom\n{hls['near']}",
        "hls-map.mp4": f'{head}#EXT-X-MAP:URI="secret.mp4"\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n',
        "concat-near.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "concat-far.mp4": f"ffconcat version 1.0\nfile '{folder / 'secret.mp4'}'\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{web}</BaseURL></Period></MPD>',
        "sdp.mp4": f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n",
        "address.mp4": web,
    }


def _video_bytes(seeds: Path) -> dict[str, tuple[bytes, str]]:
    mp4, avi, mkv = ((seeds / name).read_bytes() for name in ("x264.mp4", "mjpeg.avi", "x264.mkv"))
    ts, y4m, webm = ((seeds / name).read_bytes() for name in ("x264.ts", "raw.y4m", "alpha.webm"))
    sizes = mp4.index(b"stsz") + 12
    pixel_width = mkv.index(b"\xb0\x81\x40")
    return {
        "mp4.jpg": (mp4, "video"),
        "other-file-url.mp4": (_referring(mp4, b"url ", b"secret.mp4\0"), ""),
        "other-file-alias.mp4": (_referring(mp4, b"alis", _alias(b"x:secret.mp4")), "refused"),
        "no-index.mp4": (mp4[: mp4.index(b"moov") - 4], "refused"),
        "half.mp4": (mp4[: len(mp4) // 2], "refused"),
        "many-samples.mp4": (mp4[:sizes] + b"\x0f\xff\xff\xff" + mp4[sizes + 4 :], "refused"),
        "deep.mp4": (mp4[:32] + _nested(10_000), "refused"),
        "61680x61680.avi": (_resized_frames(avi, b"\xf0\xf0"), "refused"),
        "zero-wide.mkv": (mkv[:pixel_width] + b"\xb0\x81\x00" + mkv[pixel_width + 3 :], ""),
        "half.mkv": (mkv[: len(mkv) // 2], "refused"),
        "header-only.mkv": (mkv[:64], "refused"),
        "twice.avi": (avi + avi, ""),
        "ts.mp4": (ts, "video"),
        "twice.ts": (ts + ts, ""),
        "tables-only.ts": (ts[: 3 * 188], "refused"),
        "stuffing.ts": ((b"G\x1f\xff\x10" + bytes(184)) * 50_000, "refused"),
        "every-program.ts": (b"".join(b"G%c%c\x10" % (n >> 8, n & 255) + bytes(184) for n in range(8192)), "refused"),
        "60000x60000.y4m": (b"YUV4MPEG2 W60000 H60000 F24:1 C420\nFRAME\n" + bytes(1000), "refused"),
        "negative.y4m": (b"YUV4MPEG2 W-64 H-48 F24:1 C420\nFRAME\n" + bytes(5000), "refused"),
        "no-rate.y4m": (y4m.replace(b" F24:1", b" F0:0"), ""),
        "endless-header.y4m": (b"YUV4MPEG2 W64 H48 F24:1 X" + b"a" * 100_000 + b"\nFRAME\n" + bytes(5000), "refused"),
        "start-codes.h264": (b"\0\0\1\x67" * 10_000, "refused"),
        "start-codes.hevc": (b"\0\0\1\x40\1" * 10_000, "refused"),
        "large-alpha.webm": (_alpha_of_another_size(webm), "refused"),
    }


def _alpha_of_another_size(webm: bytes) -> bytes:
    """The first block of alpha states another width than the colours, in VP9's header of key frames."""
    colours = webm.index(b"\x49\x83\x42")
    size = webm.index(b"\x49\x83\x42", colours + 3) + 4
    return webm[:size] + bytes([webm[size] ^ 4]) + webm[size + 1 :]


def _resized_frames(avi: bytes, side: bytes) -> bytes:
    """Every JPEG in an MJPEG file states this height and width."""
    return re.sub(rb"(?s)(\xff\xc0\0.\x08)....", lambda head: head[1] + 2 * side, avi)


def _referring(mp4: bytes, kind: bytes, payload: bytes) -> bytes:
    """An MP4 whose samples lie in another file: the data reference changed, the boxes around it grown."""
    at = mp4.index(b"dref") + 12
    entry = struct.pack(">I4sI", 12 + len(payload), kind, 0) + payload
    grown = bytearray(mp4[:at] + entry + mp4[at + 12 :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        start = grown.index(box) - 4
        grown[start : start + 4] = struct.pack(">I", struct.unpack_from(">I", grown, start)[0] + len(payload))
    return bytes(grown)


def _alias(path: bytes) -> bytes:
    """An alias of QuickTime to a file in the folder of the video, as FFmpeg reads it."""
    path += b"\0" * (len(path) % 2)
    record = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    return record + struct.pack(">HH", 2, len(path)) + path + struct.pack(">HH", 0xFFFF, 0)


def _nested(depth: int) -> bytes:
    """A box in a box in a box."""
    return b"".join(struct.pack(">I4s", 8 * (depth - level), b"moov") for level in range(depth))
