"""Images: every mode of Pillow, orientation, alpha, and files that are not what they say."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from atoken.errors import AtokenWarning, MediaError
from atoken.io import Image, Limits, Video, from_pil, load_media, read_image, write_image

SHADES = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (11, 7, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (11, 7), dtype=np.uint8)


def save(pil: PIL.Image.Image, path: Path, **options: object) -> Path:
    pil.save(path, **options)
    return path


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, -1)


def bomb(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """Give a PNG whose header declares a size that its few bytes of pixels do not fill."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp"])
def test_lossless_formats_give_the_pixels(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    image = load_media(save(PIL.Image.fromarray(COLOURS), tmp_path / f"a.{suffix}", **options))
    assert isinstance(image, Image)
    assert image.alpha is None
    np.testing.assert_array_equal(image.pixels, COLOURS)


def test_jpeg_and_gif_come_close(tmp_path: Path) -> None:
    smooth = grey(SHADES)
    for suffix in ("jpg", "gif"):
        image = read_image(save(PIL.Image.fromarray(smooth), tmp_path / f"a.{suffix}"))
        assert np.abs(image.pixels.astype(int) - smooth).max() <= 4


def test_extension_says_nothing(tmp_path: Path) -> None:
    path = save(PIL.Image.fromarray(COLOURS), tmp_path / "a.png").rename(tmp_path / "a.mp4")
    np.testing.assert_array_equal(load_media(path).pixels, COLOURS)


def test_modes_without_alpha() -> None:
    wide = (SHADES.astype(np.uint16) << 8) + 17
    bits = SHADES > 100
    expected = {
        "L": (PIL.Image.fromarray(SHADES), SHADES),
        "1": (PIL.Image.fromarray(bits), bits * np.uint8(255)),
        "I;16": (PIL.Image.fromarray(wide), SHADES),
        "I;16B": (PIL.Image.frombytes("I;16B", (16, 16), wide.astype(">u2").tobytes()), SHADES),
        "I of 8 bits": (PIL.Image.fromarray(SHADES.astype(np.int32)), SHADES),
        "I of 16 bits": (PIL.Image.fromarray(wide.astype(np.int32)), SHADES),
        "F to 1": (PIL.Image.fromarray(SHADES.astype(np.float32) / 255), SHADES),
        "F to 255": (PIL.Image.fromarray(SHADES.astype(np.float32)), SHADES),
    }
    for mode, (pil, values) in expected.items():
        image = from_pil(pil)
        assert image.alpha is None, mode
        np.testing.assert_array_equal(image.pixels, grey(values), err_msg=mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBX", "CMYK", "P", "YCbCr", "HSV"])
def test_colour_modes_as_pillow_converts_them(mode: str) -> None:
    pil = PIL.Image.fromarray(COLOURS).convert(mode)
    np.testing.assert_array_equal(from_pil(pil).pixels, np.asarray(pil.convert("RGB")))


@pytest.mark.parametrize("values", [np.full((2, 2), -1, np.int32), np.full((2, 2), 70_000, np.int32)])
def test_integers_of_unknown_scale_are_refused(values: np.ndarray) -> None:
    with pytest.raises(MediaError, match="scale it"):
        from_pil(PIL.Image.fromarray(values))


@pytest.mark.parametrize("value", [-0.5, 300.0, float("nan"), float("inf")])
def test_floats_of_unknown_scale_are_refused(value: float) -> None:
    with pytest.raises(MediaError, match="scale it"):
        from_pil(PIL.Image.fromarray(np.full((2, 2), value, np.float32)))


def test_modes_with_alpha() -> None:
    rgba = PIL.Image.fromarray(np.dstack([COLOURS, ALPHA]))
    for mode in ("RGBA", "LA", "PA"):
        pil = rgba.convert("P").convert("PA") if mode == "PA" else rgba.convert(mode)
        image = from_pil(pil)
        np.testing.assert_array_equal(image.pixels, np.asarray(pil.convert("RGBA"))[..., :3])
        np.testing.assert_array_equal(image.alpha, np.asarray(pil.getchannel("A")))
    for mode in ("RGBa", "La"):
        image = from_pil((rgba if mode == "RGBa" else rgba.convert("LA")).convert(mode))
        np.testing.assert_array_equal(image.alpha, ALPHA)


def test_transparent_colours_become_alpha(tmp_path: Path) -> None:
    wide = SHADES.astype(np.uint16) * 257
    cases = {
        "palette": (PIL.Image.fromarray(SHADES).convert("P"), 7, SHADES == 7),
        "grey": (PIL.Image.fromarray(SHADES), 7, SHADES == 7),
        "grey 16": (PIL.Image.fromarray(wide), 7 * 257, SHADES == 7),
        "colour": (PIL.Image.fromarray(grey(SHADES)), (7, 7, 7), SHADES == 7),
    }
    for name, (pil, transparent, hidden) in cases.items():
        image = read_image(save(pil, tmp_path / "a.png", transparency=transparent))
        np.testing.assert_array_equal(image.alpha, np.where(hidden, 0, 255), err_msg=name)
        np.testing.assert_array_equal(image.pixels, grey(SHADES), err_msg=name)


def test_16_bit_png_keeps_the_high_byte(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    values = np.repeat((SHADES.astype(np.uint16) << 8)[..., None] + 200, 3, -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    hidden = chunk(b"tRNS", struct.pack(">HHH", *[(9 << 8) + 200] * 3))
    data = b"\x89PNG\r\n\x1a\n" + header + hidden + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.pixels, grey(SHADES))
    np.testing.assert_array_equal(image.alpha, np.where(SHADES == 9, 0, 255))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    image = read_image(save(PIL.Image.fromarray(flat).convert("CMYK"), tmp_path / "a.jpg", quality=95))
    assert np.abs(image.pixels.astype(int) - flat).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_every_exif_orientation_is_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL.Image.Transpose members that EXIF readers must revert
    stored = PIL.Image.fromarray(COLOURS)
    if orientation > 1:
        stored = stored.transpose(PIL.Image.Transpose(undo[orientation]))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(stored, tmp_path / f"a.{suffix}", exif=exif, **options)
    np.testing.assert_array_equal(read_image(path).pixels, COLOURS)
    with PIL.Image.open(path) as pil:
        np.testing.assert_array_equal(from_pil(pil).pixels, COLOURS)


def test_damaged_exif_is_said_and_ignored(tmp_path: Path) -> None:
    path = save(PIL.Image.fromarray(COLOURS), tmp_path / "a.png", exif=b"Exif\0\0no TIFF header")
    with pytest.warns(AtokenWarning, match="orientation is ignored"):
        np.testing.assert_array_equal(read_image(path).pixels, COLOURS)


@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_png_keeps_every_bit(tmp_path: Path, alpha: np.ndarray | None) -> None:
    Image(COLOURS, alpha).save(tmp_path / "a.PNG")
    image = read_image(tmp_path / "a.PNG")
    np.testing.assert_array_equal(image.pixels, COLOURS)
    assert (image.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(image.alpha, alpha)
    assert [path.name for path in tmp_path.iterdir()] == ["a.PNG"]


@pytest.mark.parametrize("suffix", ["webp", "tif", "tiff"])
def test_other_lossless_formats_are_written(tmp_path: Path, suffix: str) -> None:
    for alpha in (None, ALPHA):
        Image(COLOURS, alpha).save(tmp_path / f"a.{suffix}")
        image = read_image(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(image.pixels, COLOURS)
        np.testing.assert_array_equal(image.alpha, alpha)


def test_jpeg_is_written_at_high_quality_and_without_transparency(tmp_path: Path) -> None:
    fine = np.zeros((32, 32, 3), np.uint8)
    fine[:, ::2, 0] = 255  # red lines of one pixel, which a subsampled JPEG would blur
    Image(fine, np.full((32, 32), 255, np.uint8)).save(tmp_path / "a.JPG")
    assert np.abs(read_image(tmp_path / "a.JPG").pixels.astype(int) - fine).max() <= 8
    with pytest.raises(MediaError, match="a JPEG has no transparency"):
        Image(COLOURS, ALPHA).save(tmp_path / "b.jpeg")
    with pytest.raises(MediaError, match=r"Cannot write \S+ as WEBP: "):
        Image(np.zeros((1, 16_384, 3), np.uint8)).save(tmp_path / "b.webp")
    assert [path.name for path in tmp_path.iterdir()] == ["a.JPG"]


def test_other_formats_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"images are written as \.png, \.jpg, "):
        write_image(Image(COLOURS), tmp_path / "a.bmp")
    with pytest.raises(MediaError, match="No such file"):
        write_image(Image(COLOURS), tmp_path / "absent" / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error")  # Pillow's own bomb warning would be an error
@pytest.mark.parametrize("size", [(100_000, 100_000), (12_000, 12_000), (17_000, 1), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(bomb(*size))
    with pytest.raises(MediaError, match="over the limit"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_limits_can_be_raised_beyond_those_of_pillow(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(13_500, 13_500, bits=1, colour=0))
    with pytest.raises(MediaError, match="truncated"):
        read_image(tmp_path / "a.png", limits=Limits(max_pixels=200_000_000))


def test_limits_hold_for_pil_images() -> None:
    with pytest.raises(MediaError, match="over the limit of 10 pixels"):
        from_pil(PIL.Image.fromarray(COLOURS), limits=Limits(max_pixels=10))


def test_compressed_text_bomb(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))
    (tmp_path / "a.png").write_bytes(bomb(1, 1)[:33] + text + bomb(1, 1)[33:])
    with pytest.raises(MediaError):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_images_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(PIL.Image.fromarray(noise), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(MediaError, match="Cannot read"):
        read_image(path)


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n",
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
        b"%PDF-1.7\n",
        b"just text, and enough of it to fill the first bytes",
        b"BMore text that begins like a bitmap",
        b"8BPS\0\1",
        b"\0\0\0\x20ftypheic\0\0\0\0mif1heic",
        b"P6\n1 1\n255\nabc",
        b"\x89PNG",
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MediaError, match=r"none of the supported formats: image \(\.png"):
        load_media(tmp_path / "a.png")


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for name, reason in {"absent.png": "no such file", "empty.png": "empty", ".": "not a file"}.items():
        with pytest.raises(MediaError, match=reason):
            load_media(tmp_path / name)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_further_frames_give_a_warning(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    more = [PIL.Image.fromarray(255 - COLOURS)]
    path = save(
        PIL.Image.fromarray(COLOURS), tmp_path / "a", format=suffix, save_all=True, append_images=more, **options
    )
    with pytest.warns(AtokenWarning, match="Only the first"):
        image = read_image(path)
    assert np.abs(image.pixels.astype(int) - COLOURS).max() <= (60 if suffix == "gif" else 0)


def test_selecting_frames_of_an_image_is_refused(tmp_path: Path) -> None:
    path = save(PIL.Image.fromarray(COLOURS), tmp_path / "a.png")
    with pytest.raises(MediaError, match="from videos only"):
        load_media(path, fps=2)


def test_video_is_no_image(tmp_path: Path) -> None:
    Video(np.zeros((1, 2, 2, 3), np.uint8)).save(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"none of the formats \.png"):
        read_image(tmp_path / "a.mp4")


def test_unreadable_pil_image() -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(COLOURS).save(buffer, "PNG")
    with PIL.Image.open(io.BytesIO(buffer.getvalue()[:150])) as pil, pytest.raises(MediaError, match="damaged"):
        from_pil(pil)
