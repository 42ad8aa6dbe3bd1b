"""Images: every mode of Pillow, orientation, alpha, and files that are not what they say."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from atoken.errors import AtokenWarning, MediaError, MissingExtraError
from atoken.io import Image, Limits, Video, from_pil, load_media, read_image, write_image
from tests.media.image_files import chunk, wide_png, wide_tiff

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


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "webp"])
def test_lossless_formats_give_the_pixels(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    image = load_media(save(PIL.Image.fromarray(COLOURS), tmp_path / f"a.{suffix}", **options))
    assert isinstance(image, Image)
    assert image.alpha is None
    np.testing.assert_array_equal(image.pixels, COLOURS)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jp2", {}), ("a.j2k", {}), ("a.ppm", {}), ("a.tga", {}), ("a.tga", {"compression": "tga_rle"}),
     ("no-suffix", {"format": "TGA"}), ("a.ico", {}), ("a.ico", {"bitmap_format": "bmp"})],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_more_lossless_formats(tmp_path: Path, mode: str, name: str, options: dict) -> None:
    square = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    pil = PIL.Image.fromarray(square).convert(mode)
    if mode == "RGBA" and name == "a.ppm":
        pytest.skip("a PPM has no alpha")
    image = read_image(save(pil, tmp_path / name, **options | ({"sizes": [(16, 16)]} if name == "a.ico" else {})))
    np.testing.assert_array_equal(image.pixels, np.asarray(pil.convert("RGB")))
    if mode == "RGBA":
        np.testing.assert_array_equal(image.alpha, square[..., 3])
    elif "bitmap_format" not in options:  # whose mask is opaque here
        assert image.alpha is None


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_avif_and_heic(tmp_path: Path, kind: str) -> None:
    if kind == "HEIF":
        heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
        heif.register_heif_opener()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for alpha in (None, SHADES):
        pixels = np.dstack([grey(SHADES), *([] if alpha is None else [alpha])])
        path = save(PIL.Image.fromarray(pixels), tmp_path / "a", format=kind, quality=95, exif=exif.tobytes())
        image = load_media(path)
        assert np.abs(image.pixels.astype(int) - np.rot90(grey(SHADES), -1)).max() <= 4
        assert (image.alpha is None) == (alpha is None)
        if alpha is not None:
            assert np.abs(image.alpha.astype(int) - np.rot90(alpha, -1)).max() <= 4
        with pytest.raises(MediaError, match="over the limit of 100 pixels"):
            read_image(path, limits=Limits(max_pixels=100))


def test_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'atoken\[heic\]'"):
        load_media(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


@pytest.mark.parametrize("binary", [True, False])
def test_portable_maps_of_all_depths(binary: bool) -> None:
    for most, given, expected in ((1, 1, 255), (15, 3, 51), (255, 77, 77), (4095, 4095, 255), (65_535, 0x1234, 0x12)):
        stored = given.to_bytes(1 + (most > 255), "big") if binary else f"{given} ".encode()
        rest = (most.to_bytes(1 + (most > 255), "big") if binary else f"{most} ".encode()) * 2
        data = f"P{5 if binary else 2}\n# a comment\n3 1\n{most}\n".encode() + stored + rest
        np.testing.assert_array_equal(read_image(data).pixels[0, :, 0], [expected, 255, 255], err_msg=str(most))


def test_an_icon_gives_its_largest_image_within_limits(tmp_path: Path) -> None:
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    path = save(PIL.Image.fromarray(square), tmp_path / "a.ico", sizes=[(16, 16), (64, 64), (32, 32)])
    np.testing.assert_array_equal(read_image(path).pixels, square[..., :3])
    large = bomb(20_000, 20_000)
    directory = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(large), 22)
    with pytest.raises(MediaError, match="over the limit"):
        read_image(directory + large)
    for width, height in ((20_000, 16), (16, 20_000), (16, -16)):
        bitmap = struct.pack("<IiiHHIIiiII", 40, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0)
        with pytest.raises(MediaError, match=f"a bitmap of an icon cannot be {width}x{height}"):
            read_image(directory + bitmap)


def test_jpeg_and_gif_come_close(tmp_path: Path) -> None:
    smooth = grey(SHADES)
    for suffix in ("jpg", "gif"):
        image = read_image(save(PIL.Image.fromarray(smooth), tmp_path / f"a.{suffix}"))
        assert np.abs(image.pixels.astype(int) - smooth).max() <= 4


def test_extension_says_nothing(tmp_path: Path) -> None:
    path = save(PIL.Image.fromarray(COLOURS), tmp_path / "a.png").rename(tmp_path / "a.mp4")
    np.testing.assert_array_equal(load_media(path).pixels, COLOURS)


def test_modes_without_alpha() -> None:
    wide = (SHADES.astype(np.uint16) << 8) + 255
    bits = SHADES > 100
    expected = {
        "L": (PIL.Image.fromarray(SHADES), SHADES),
        "1": (PIL.Image.fromarray(bits), bits * np.uint8(255)),
        "I;16": (PIL.Image.fromarray(wide), SHADES),  # the high byte, whatever the low one is
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
    pil = PIL.Image.fromarray(np.full((2, 2), value, np.float32))
    with pytest.raises(MediaError, match=r"^The image has float values from .*scale it"):
        from_pil(pil)
    file = io.BytesIO()
    pil.save(file, "TIFF")
    with pytest.raises(MediaError, match=r"^The image phase\.tif has float values from .*scale it"):
        read_image(file.getvalue(), name="phase.tif")


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


def wide_files(values: np.ndarray) -> Iterator[bytes]:
    """Files of these values (H, W, C) of 16 bits."""
    yield wide_png(values)
    if values.shape[2] > 2:
        yield from (wide_tiff(values, order, compression) for order in "<>" for compression in (1, 8))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("high", "bits"),
    [(255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16_383, 14), (16_384, 16), (65_535, 16)],
)
def test_values_of_16_bits_keep_the_top_of_the_bits_that_they_use(channels: int, high: int, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, high + 1, (9, 7, channels))
    values[4, 4] = high
    if channels in (2, 4):
        values[..., -1] = np.arange(63).reshape(9, 7) * 1000 + 255  # the high byte, not the nearest of 0..255
    colours = values[..., :3] if channels > 2 else values[..., :1]
    for data in wide_files(values):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            image = read_image(data, name="a.tif")
        np.testing.assert_array_equal(image.pixels, np.broadcast_to(colours >> (bits - 8), (9, 7, 3)))
        np.testing.assert_array_equal(image.alpha, values[..., -1] >> 8 if channels in (2, 4) else None)
        expected = f"The image a.tif has 16-bit values up to {high}; 0..{2**bits - 1} is mapped to 0..255."
        assert [str(one.message) for one in said] == ([] if bits == 16 else [expected])


def test_integers_of_32_bits_follow_the_same_rule() -> None:
    values = np.arange(4096, dtype=np.int32).reshape(64, 64)
    with pytest.warns(AtokenWarning, match=r"32-bit values up to 4095; 0\.\.4095 is mapped to 0\.\.255"):
        np.testing.assert_array_equal(from_pil(PIL.Image.fromarray(values)).pixels, grey(values >> 4))


@pytest.mark.filterwarnings("error")
def test_black_images_of_16_bits_need_no_warning() -> None:
    for channels in (1, 3):
        assert not read_image(wide_png(np.zeros((2, 2, channels), int))).pixels.any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("high", [4095, 65_535])
def test_the_transparent_colour_of_16_bits_is_compared_exactly(channels: int, high: int) -> None:
    """One whose high bytes are the same is not hidden."""
    values = np.random.default_rng(0).integers(0, high + 1, (9, 7, channels))
    values[0, 0], values[1, 1], values[2, 2] = high, 0x0455, 0x0456
    values[3, 3, -1], values[3, 3, 0] = 0x0455, 0x0456  # of a colour, one channel alone
    key = struct.pack(f">{channels}H", *[0x0455] * channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AtokenWarning)
        image = read_image(wide_png(values, chunk(b"tRNS", key)))
    hidden = (values == 0x0455).all(-1)
    assert hidden[1, 1]
    assert not hidden[2, 2]
    np.testing.assert_array_equal(image.alpha, np.where(hidden, 0, 255))
    np.testing.assert_array_equal(image.pixels, np.broadcast_to(values >> (8 if high > 4095 else 4), (9, 7, 3)))


def test_colours_of_16_bits_that_pillow_has_cut_are_said() -> None:
    """Of an image in Pillow's hands, or of a kind that it reads in one way only."""
    values = np.full((9, 7, 4), 4095)
    values[..., 3] = 65_535
    premultiplied = wide_tiff(values, "<", 1).replace(
        struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 338, 3, 1, 1, 0)
    )
    for image in (
        lambda: from_pil(PIL.Image.open(io.BytesIO(wide_png(values)))),
        lambda: from_pil(PIL.Image.open(io.BytesIO(wide_tiff(values, ">", 1)))),
        lambda: read_image(premultiplied, name="a.tif"),
    ):
        with pytest.warns(AtokenWarning, match="only the high byte of 16 bits is read"):
            assert image().pixels.max() == 15
    values = np.random.default_rng(0).integers(0, 65_536, (9, 7, 3))
    hidden = chunk(b"tRNS", struct.pack(">HHH", *values[2, 3]))
    image = from_pil(PIL.Image.open(io.BytesIO(wide_png(values, hidden))))
    np.testing.assert_array_equal(image.pixels, values >> 8)
    assert np.argwhere(image.alpha == 0).tolist() == [[2, 3]]


def test_16_bit_images_are_upright() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    values = np.random.default_rng(0).integers(0, 4096, (9, 7, 3))
    values[0, 0] = 4095
    with pytest.warns(AtokenWarning, match=r"0\.\.4095"):
        image = read_image(wide_png(values, chunk(b"eXIf", exif.tobytes()[6:])))
    np.testing.assert_array_equal(image.pixels, np.rot90(values >> 4, -1))


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp", "avif", "jp2", "ppm", "tga", "ico"])
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
        b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nENDHDR\nabc",
        b"\0\0\2" + bytes(9) + b"\1\0\1\0\x18\0abc",  # a TGA needs such a name, too
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
