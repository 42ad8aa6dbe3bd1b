"""Image files made byte by byte: what Pillow does not write."""

import struct
import zlib

import numpy as np


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def wide_png(values: np.ndarray, *more: bytes) -> bytes:
    """A PNG of 16 bits a channel: values (H, W, 1 to 4)."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values.astype(">u2")))
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def wide_tiff(values: np.ndarray, order: str, compression: int) -> bytes:
    """A TIFF of 16 bits a channel: values (H, W, 3 or 4); order ``<`` or ``>``; compression 1 (none) or 8 (deflate)."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compression == 8 else data
    entries = {256: width, 257: height, 259: compression, 262: 2, 277: channels, 278: height, 279: len(data)}
    entries |= {338: 2} if channels == 4 else {}
    end = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries |= {258: end, 273: end + 2 * channels}
    body = b""
    for tag, value in sorted(entries.items()):
        short = tag in (259, 262, 277, 338)
        stored = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        kind, count = (3, channels) if tag == 258 else (3 if short else 4, 1)
        body += struct.pack(f"{order}HHI", tag, kind, count) + stored
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + body + struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels) + data
