"""What is decoded for the encoder is what the tokenizer encodes of the same pixels, to the bit."""

import json
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from atoken.data.synthetic.labelled import labelled_image, labelled_video
from atoken.errors import AtokenError
from atoken.io import Image, Video, read_image, read_video, write_image
from atoken.io.inputs import Media
from atoken.io.token_file import Tokens
from atoken.mesh import Mesh
from atoken.modalities.asset import VoxelPatches
from atoken.store import media
from atoken.store.layout import Options
from atoken.store.media import Decoded, Stream, decode
from atoken.store.source import Entry, open_source
from tests.media.video_cases import written
from tests.tokenizer.small import exact_tokenizer, random_frames, small_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"


def entry(path: Path) -> Entry:
    return open_source(str(path), Options())[0]


def made(path: Path, **options: object) -> Decoded:
    """As another process sends it."""
    return pickle.loads(pickle.dumps(decode(entry(path), Options(**options))))  # noqa: S301 - our own, made in this line


def same(one: Tokens, other: Tokens) -> bool:
    fields = ("modality", "size", "frames", "fps")
    assert [getattr(one, field) for field in fields] == [getattr(other, field) for field in fields]
    for field in ("alpha", "timestamps"):
        assert np.array_equal(getattr(one, field), getattr(other, field)), field
    return torch.equal(one.latents, other.latents) and torch.equal(one.coords, other.coords)


def encoded(decoded: Decoded) -> Tokens:
    if isinstance(decoded.media, Stream):
        return Tokens.join(exact_tokenizer().encode_tiles(decoded.media.tiles()))
    return exact_tokenizer().encode(decoded.media)


@pytest.mark.parametrize("name", ["leaves.png", "odd.jpg", "ring.png", "pan.mp4"])
def test_without_options_an_item_is_encoded_as_its_file_is(name):
    decoded = made(EXAMPLES / name)
    tokens = exact_tokenizer().encode(EXAMPLES / name)
    assert same(encoded(decoded), tokens)
    assert decoded.tokens == len(tokens.latents)
    assert (decoded.key, decoded.label, decoded.captions) == (name, None, ())


def test_an_asset_becomes_the_patches_of_its_voxels():
    decoded = made(EXAMPLES / "tower.glb")
    assert decoded.tokens == len(decoded.media.cells) > 1000
    assert len(pickle.dumps(decoded)) < 800 * decoded.tokens
    assert same(encoded(decoded), exact_tokenizer().encode(EXAMPLES / "tower.glb"))
    assert [flipped for flipped, _ in decoded.variants(flip=True)] == [False]


def by_hand(pixels: np.ndarray, resize: int | None, crop: int | None, max_side: int | None) -> np.ndarray:
    """Pillow's Lanczos, the shorter side first; then the middle; then the longer side."""

    def scaled(scale: float) -> np.ndarray:
        size = [round(side * scale) for side in image.size]
        return image.resize(size, PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)

    image = PIL.Image.fromarray(pixels)
    image = scaled(resize / min(image.size)) if resize else image
    if crop:
        left, top = ((side - crop) // 2 for side in image.size)
        image = image.crop((left, top, left + crop, top + crop))
    image = scaled(max_side / max(image.size)) if max_side and max(image.size) > max_side else image
    return np.asarray(image)


SIZES = [(64, None, None), (None, 32, None), (48, 48, None), (64, 48, None), (100, 90, 60), (None, None, 40)]


@pytest.mark.parametrize(("resize", "crop", "max_side"), SIZES)
@pytest.mark.parametrize("size", [(50, 75, 3), (301, 100, 3), (90, 70, 4)])
def test_a_resized_image_is_encoded_as_the_same_pixels_are(size, resize, crop, max_side, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    image = Image(pixels[..., :3].copy(), pixels[..., 3].copy() if size[2] == 4 else None)
    write_image(image, tmp_path / "x.png")
    expected = by_hand(pixels, resize, crop, max_side)
    expected = Image(expected[..., :3].copy(), expected[..., 3].copy() if size[2] == 4 else None)
    decoded = made(tmp_path / "x.png", resize=resize, crop=crop, max_side=max_side)
    assert same(encoded(decoded), exact_tokenizer().encode(expected))
    assert decoded.tokens == len(exact_tokenizer().encode(expected).latents)


def test_resizing_averages_and_does_not_alias(tmp_path):
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 254
    write_image(Image(stripes), tmp_path / "x.png")
    assert np.abs(made(tmp_path / "x.png", resize=50).media.pixels.astype(int) - 127).max() <= 1


def test_what_is_smaller_than_the_crop_gets_one_sentence(tmp_path):
    write_image(Image(random_frames(20, 30)), tmp_path / "x.png")
    with pytest.raises(AtokenError, match=r"^x\.png: It is 30x20, smaller than --crop 24; enlarge it with --resize\.$"):
        made(tmp_path / "x.png", crop=24)
    assert made(tmp_path / "x.png", crop=24, resize=24).media.pixels.shape == (24, 24, 3)


def mirrored(value: Image | Video) -> Media:
    if isinstance(value, Image):
        return Image(value.pixels[:, ::-1].copy(), None if value.alpha is None else value.alpha[:, ::-1].copy())
    return Video(value.frames[:, :, ::-1].copy(), value.fps, value.timestamps)


@pytest.mark.parametrize("name", ["ring.png", "odd.jpg", "pan.mp4"])
def test_a_flip_is_the_mirrored_pixels(name):
    read = read_video(EXAMPLES / name) if name.endswith("mp4") else read_image(EXAMPLES / name)
    (_, plain), (flipped, other) = made(EXAMPLES / name).variants(flip=True)
    assert flipped
    for value, expected in ((plain, read), (other, mirrored(read))):
        assert same(exact_tokenizer().encode(value), exact_tokenizer().encode(expected))


TIMES = [{"frames": 5}, {"fps": "10"}, {"fps": "1000/101", "frames": 7}, {"frames": 1000}]


@pytest.mark.parametrize("options", TIMES)
@pytest.mark.parametrize("most", [media.MOST_FRAMES, 1])
def test_frames_of_a_video_are_those_that_read_video_gives_whole_or_as_a_stream(options, most, tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MOST_FRAMES", most)
    path = written(tmp_path / "x.mp4", count=40)
    decoded = made(path, resize=24, **options)
    assert (decoded.tokens is None) == (most == 1)
    rate = {"fps": Fraction(options["fps"])} if "fps" in options else {}
    read = read_video(path, frames=(0, options["frames"]) if "frames" in options else None, **rate)
    sized = Video(np.stack([by_hand(frame, 24, None, None) for frame in read.frames]), read.fps, read.timestamps)
    if most == 1:  # a stream knows only at its end that the rate is constant; its file leaves out the time stamps
        assert torch.equal(encoded(decoded).latents, exact_tokenizer().encode(sized).latents)
        *_, (_, other) = decoded.variants(flip=True)
        pieces = Tokens.join(exact_tokenizer().encode_tiles(other.tiles()))
        assert torch.equal(pieces.latents, exact_tokenizer().encode(mirrored(sized)).latents)
    else:
        assert same(encoded(decoded), exact_tokenizer().encode(sized))


def test_a_video_with_alpha_and_odd_times_keeps_both(tmp_path):
    frames, alpha = random_frames(5, 24, 32), np.random.default_rng(1).integers(0, 256, (5, 24, 32), np.uint8)
    times = np.array([0, 0.04, 0.2, 0.24, 0.5])
    Video(frames, 10, times, alpha).save(tmp_path / "x.webm")
    assert same(encoded(made(tmp_path / "x.webm")), exact_tokenizer().encode(tmp_path / "x.webm"))


def test_an_animated_image_is_a_video_unless_the_data_file_says_image(tmp_path):
    frames = [PIL.Image.fromarray(frame) for frame in random_frames(3, 16, 16)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / "data.toml").write_text("[image.x]\nfolder = '.'\n")
    assert isinstance(made(tmp_path / "x.gif").media, Video)
    assert isinstance(made(tmp_path / "data.toml").media, Image)


def test_captions_and_labels_come_along(tmp_path):
    write_image(Image(random_frames(16, 16)), tmp_path / "1.png")
    (tmp_path / "1.json").write_text(json.dumps({"label": "noise", "captions": ["grains", "sand"]}))
    decoded = made(tmp_path)
    assert (decoded.label, decoded.captions) == ("noise", ("grains", "sand"))


def test_generated_items_are_those_of_the_series_in_the_size_of_the_crop():
    options = Options(items=5, seed=3, crop=48, frames=6)
    image = decode(open_source("procedural:labelled", options)[4], options)
    expected = labelled_image(3, 4, 48, 48)
    assert np.array_equal(image.media.pixels, expected.frames[0])
    assert (image.label, image.captions) == ("a red ring", (expected.caption,))
    video = decode(open_source("procedural:video/labelled", options)[4], options)
    assert np.array_equal(video.media.frames, labelled_video(3, 4, 6, 48, 48).frames)
    asset = decode(open_source("procedural:asset/labelled", options)[0], options)
    assert isinstance(asset.media, VoxelPatches)
    assert "red" in asset.captions[0]
    plain = decode(open_source("procedural", Options(items=1))[0], Options(items=1))
    assert plain.media.pixels.shape == (256, 256, 3)


@pytest.mark.parametrize("coarsen", [False, True])
def test_assets_of_too_many_voxels_are_refused_unless_they_may_be_coarsened(coarsen, monkeypatch):
    asked = []
    monkeypatch.setattr(media, "voxelised", lambda mesh, coarsen, side: asked.append((type(mesh), coarsen, side)))
    decode(entry(EXAMPLES / "tower.glb"), Options(coarsen=coarsen, voxels=32))
    assert asked == [(Mesh, coarsen, 32)]


BROKEN = {
    "empty.jpg": b"",
    "text.png": b"not an image",
    "half.jpg": (EXAMPLES / "odd.jpg").read_bytes()[:700],
    "half.mp4": (EXAMPLES / "pan.mp4").read_bytes()[:2000],
    "half.glb": (EXAMPLES / "tower.glb").read_bytes()[:500],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_item_gets_one_sentence_that_names_it(name, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(BROKEN[name])
    with pytest.raises(AtokenError, match=rf"^[^\n]*a/{name}[^\n]*\.$"):
        made(tmp_path)


def test_the_latents_of_a_stream_are_drawn_by_its_generator():
    video, tokenizer = Video(random_frames(20, 16, 16)), small_tokenizer()
    tiles = [Video(video.frames[:16]), Video(video.frames[16:])]
    drawn = [
        Tokens.join(tokenizer.encode_tiles(tiles, generator=torch.Generator().manual_seed(seed))).latents
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


LIGHT = """
import sys
from atoken.store.layout import Options
from atoken.store.media import decode
from atoken.store.source import Items
print(sorted({"torch", "transformers", "pyarrow"} & {*sys.modules}))
"""


def test_a_process_that_decodes_pixels_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
