"""AToken and PCA as models: what they give back, at which size, for how many bytes."""

import functools
import hashlib

import numpy as np
import pytest
import torch

from atoken.cameras import Cameras
from atoken.data.synthetic.procedural import make_asset, make_image, make_video
from atoken.errors import AtokenError
from atoken.io import Image, Video
from atoken.io.token_file import Tokens
from atoken.media.views import Views
from atoken.modalities.views import render_views
from atoken.tokenizer import Tokenizer
from eval.assets import mask_of
from eval.contract import Item
from eval.models.features import Features
from eval.models.pca import OF_EACH, PCA, joined, patches
from eval.models.pixels import cut, padded, rounded
from eval.models.tokenizer import AToken
from eval.prepare import Preparation
from eval.sources.entry import Entry, Prepared
from tests.eval.media import greatest_difference, pixels, synthetic_image, synthetic_video
from tests.eval.plain_network import PlainNetwork
from tests.model.sizes import small_model
from tests.tokenizer.small import small_tokenizer
from tests.tolerances import FP32, PIXEL, SAMPLED

SIZES = [(48, 64), (1, 1), (17, 33), (15, 50)]


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 16, 16), (5, 17, 3), (9, 32, 31)])
@pytest.mark.parametrize("first_alone", [False, True])
def test_what_is_padded_is_whole_blocks_of_the_same_edge_and_is_cut_again(shape, first_alone):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    whole = padded(frames, (4, 16, 16), first_alone=first_alone)
    before, after = np.array(shape), np.array(whole.shape[:3])
    assert not ((after - [first_alone, 0, 0]) % (4, 16, 16)).any()
    assert (after - before < (4, 16, 16)).all()
    places = [np.minimum(np.arange(size), last) for size, last in zip(after, before - 1, strict=True)]
    assert np.array_equal(whole, frames[np.ix_(*places)])
    assert np.array_equal(cut(whole, frames, "it"), frames)


def test_a_model_that_gives_less_back_is_an_error():
    with pytest.raises(AtokenError, match=r"1 frames of 4x3 back for 1 of 4x4; "):
        cut(np.zeros((1, 3, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), "it")


def test_stored_floats_are_rounded_and_counted():
    latents = torch.linspace(-3, 3, 10)
    same, size = rounded(latents, "float32")
    assert torch.equal(same, latents)
    assert size == 40
    half, size = rounded(latents, "float16")
    assert torch.equal(half, latents.half().float())
    assert size == 20
    with pytest.raises(AtokenError, match="not finite as float16"):
        rounded(torch.tensor([1e6]), "float16")


# ------------------------------------------------------------------------------------------------------------ AToken


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_image_comes_back_as_the_tokenizer_has_it_for_the_bytes_of_its_file(kind, height, width, tmp_path):
    item, tokenizer = synthetic_image(height, width), small_tokenizer(kind)
    [sample] = AToken(tokenizer).reconstruct([item])
    tokens = tokenizer.encode(item.media)
    tokens.save(tmp_path / "one.atok")
    assert sample.size == (tmp_path / "one.atok").stat().st_size
    assert np.array_equal(sample.target[0], item.media.pixels)
    assert np.array_equal(sample.prediction[0], tokenizer.decode(tokens).pixels)
    assert sample.codes is None if kind == "continuous" else np.array_equal(sample.codes, tokens.codes.numpy())


def test_items_of_all_sizes_come_back_in_order_as_alone():
    items = [synthetic_image(*size, number=n) for n, size in enumerate(SIZES)]
    items[2:2] = [synthetic_video(5, 17, 33), synthetic_video(1, 16, 16)]
    model = AToken(small_tokenizer())
    for item, sample in zip(items, model.reconstruct(items), strict=True):
        [alone] = model.reconstruct([item])
        assert sample.item is item
        assert sample.prediction.shape == sample.target.shape == pixels(item).shape
        assert greatest_difference(sample.prediction, alone.prediction) <= PIXEL


def test_alpha_takes_no_bytes():
    with_alpha = Image(synthetic_image().media.pixels, np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8))
    model = AToken(small_tokenizer())
    sizes = [sample.size for sample in model.reconstruct([synthetic_image(), Item("alpha", with_alpha)])]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kind", ["continuous", "cached"])
def test_a_video_of_several_tiles_is_streamed_and_is_the_whole(kind, tmp_path):
    item, tokenizer = synthetic_video(21, 17, 20), small_tokenizer(kind)
    [sample] = AToken(tokenizer).reconstruct([item])
    tokens = tokenizer.encode(item.media)
    tokens.save(tmp_path / "whole.atok")
    assert abs(sample.size - (tmp_path / "whole.atok").stat().st_size) < 64  # mantissas of fp32 pack a little otherwise
    assert greatest_difference(sample.prediction, tokenizer.decode(tokens).frames) <= PIXEL


def test_stored_halves_are_those_of_the_file(tmp_path):
    item, tokenizer = synthetic_image(), small_tokenizer()
    model = AToken(tokenizer, stored="float16")
    [sample] = model.reconstruct([item])
    tokenizer.encode(item.media).save(tmp_path / "half.atok", dtype="float16")
    assert sample.size == (tmp_path / "half.atok").stat().st_size
    assert np.array_equal(sample.prediction[0], tokenizer.decode(Tokens.load(tmp_path / "half.atok")).pixels)
    assert model.name == "small-continuous, float16"


def test_draws_belong_to_seed_and_key():
    items = [synthetic_image(32, 32, n) for n in range(3)] + [synthetic_video(18, 16, 16)]
    drawn = {seed: AToken(small_tokenizer(), sample=seed).reconstruct(items) for seed in (0, 1)}
    again = AToken(small_tokenizer(), sample=0).reconstruct(items[::-1])[::-1]
    mean = AToken(small_tokenizer()).reconstruct(items)
    for first, second, other, plain in zip(drawn[0], again, drawn[1], mean, strict=True):
        assert np.array_equal(first.prediction, second.prediction)
        assert not np.array_equal(first.prediction, other.prediction)
        assert not np.array_equal(first.prediction, plain.prediction)
    assert AToken(small_tokenizer(), sample=1).record["seed"] == "1"
    with pytest.raises(AtokenError, match="no posterior"):
        AToken(small_tokenizer("discrete"), sample=0)


def test_the_record_says_who_made_the_numbers_and_how():
    record = AToken(small_tokenizer("discrete")).record
    assert record["fingerprint"] == small_tokenizer("discrete").fingerprint
    assert {name: record[name] for name in ("dtype", "latents", "seed")} == {
        "dtype": "float32",
        "latents": "mean",
        "seed": "none",
    }


def test_vectors_are_those_of_the_tokenizer():
    tokenizer = small_tokenizer()
    items = [synthetic_image(), synthetic_image(17, 33), synthetic_video(5, 17, 20), synthetic_video(18, 16, 32)]
    whole, frames = AToken(tokenizer).embed(items), AToken(tokenizer, pool="frames").embed(items)
    for item, sample, of_frames in zip(items, whole, frames, strict=True):
        assert sample.vector.dtype == np.float32
        assert np.linalg.norm(sample.vector) == pytest.approx(1, abs=FP32)
        assert np.abs(sample.vector - tokenizer.embed(item.media).numpy()).max() < FP32
        expected = tokenizer.embed_frames(item.media) if isinstance(item.media, Video) else tokenizer.embed(item.media)
        assert np.abs(of_frames.vector - expected.numpy()).max() < FP32
    with pytest.raises(AtokenError, match="no text side"):
        AToken(tokenizer).embed_texts(["a cat"])


# ------------------------------------------------------------------------------------------------------------ assets


@functools.cache
def solid_tokenizer():
    """With a Gaussian decoder whose output layer is not zero."""
    model = small_model(gaussian_decoder={"width": 48, "layers": 2, "heads": 4, "mlp": 64})
    with torch.no_grad():
        for parameter in model.gaussian_decoder.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return Tokenizer(model, "solid")


@functools.cache
def seen():
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    return Item("asset", render_views(make_asset(0, 4).mesh, 6, 48))


def rendered(gaussians, cameras):
    with torch.inference_mode():
        values = gaussians.render(cameras, 48)
    return values.mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def test_an_asset_is_drawn_from_the_cameras_of_its_views_with_their_mask():
    views, tokenizer = seen().media, solid_tokenizer()
    [sample] = AToken(tokenizer).reconstruct([seen()])
    assert np.array_equal(sample.target, views.rgb)
    assert np.array_equal(sample.mask, views.mask)
    expected = rendered(tokenizer.decode(tokenizer.encode(views)), views.cameras)
    assert greatest_difference(sample.prediction, expected) <= PIXEL
    assert sample.size > 0


@pytest.mark.parametrize(("height", "offset"), [(4, 0.5), (4, 0.0), (8, 0.5), (12, 0.5), (2, 0.5)])
def test_a_mask_has_the_size_of_the_images(height, offset):
    depth = np.where(np.arange(height)[:, None] < height / 2, 1.0, -1.0).astype(np.float32)
    views = Views(
        np.zeros((1, 4, 4, 3), np.uint8), np.broadcast_to(depth, (1, height, height)).copy(), Cameras.sphere(1), offset
    )
    assert np.array_equal(mask_of(views)[0], np.arange(4)[:, None].repeat(4, 1) < 2)


def test_an_asset_without_a_gaussian_decoder_is_one_sentence():
    with pytest.raises(AtokenError, match="no Gaussian decoder"):
        AToken(small_tokenizer()).reconstruct([seen()])
    with pytest.raises(AtokenError, match="cannot take asset"):
        PCA([make_image(0, 0, 64, 64).frames], "one image", components=2).reconstruct([seen()])


# --------------------------------------------------------------------------------------------------------------- PCA


@functools.cache
def images():
    return [make_image(3, number, 64, 48).frames for number in range(4)]


def plainly(fitted, item, components):
    """Patch by patch, with the singular vectors of all patches of what is fitted on."""

    def cut_up(frames):
        rows, columns = (range(0, size, 16) for size in frames.shape[1:3])
        return [frames[0, r : r + 16, c : c + 16].reshape(-1).astype(float) for r in rows for c in columns]

    values = np.array([patch for frames in fitted for patch in cut_up(frames)])
    mean = values.mean(0)
    basis = np.linalg.svd(values - mean, full_matrices=False)[2][:components]
    target = item.media.pixels
    height, width = target.shape[:2]
    whole = np.pad(target, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    prediction = np.empty(whole.shape)
    for r in range(0, len(whole), 16):
        for c in range(0, whole.shape[1], 16):
            patch = whole[r : r + 16, c : c + 16].reshape(-1) - mean
            prediction[r : r + 16, c : c + 16] = (basis.T @ (basis @ patch) + mean).reshape(16, 16, 3)
    return prediction[:height, :width]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pca_is_the_svd(height, width):
    item = synthetic_image(height, width)
    [sample] = PCA(images(), "four images", components=12).reconstruct([item])
    expected = plainly(images(), item, 12).clip(0, 255)
    assert np.abs(sample.prediction[0] - expected).max() <= 0.5 + SAMPLED
    assert sample.size == -(-height // 16) * -(-width // 16) * 12 * 4


def test_pca_with_all_components_gives_all_back():
    frames = make_video(3, 0, 5, 10, 7).frames
    block = (2, 2, 3)
    pca = PCA(
        [np.random.default_rng(0).integers(0, 256, (8, 32, 33, 3), np.uint8)], "noise", components=36, block=block
    )
    [sample] = pca.reconstruct([Item("video", Video(frames))])
    assert np.array_equal(sample.prediction, frames)
    assert sample.size == 3 * 5 * 3 * 36 * 4


def test_patches_join_to_what_they_are_of():
    frames = np.random.default_rng(0).integers(0, 256, (4, 6, 10, 3), np.uint8)
    assert np.array_equal(patches(frames, (2, 3, 5))[3], frames[:2, 3:6, 5:].reshape(-1))
    assert np.array_equal(joined(patches(frames, (2, 3, 5)), frames.shape, (2, 3, 5)), frames)


def test_pca_with_other_floats_has_the_same_components_and_says_so():
    pca = PCA(images(), "four images", components=12)
    half = pca.stored_as("float16")
    [one], [other] = pca.reconstruct([synthetic_image()]), half.reconstruct([synthetic_image()])
    assert other.size * 2 == one.size
    assert greatest_difference(one.prediction, other.prediction) <= 2  # numbers of some 1000, with 11 bits
    assert (pca.stored, half.name) == ("float32", "PCA, 12 numbers a patch, float16")
    digest = hashlib.sha256()
    for frames in images():
        digest.update(str(frames.shape).encode() + frames.tobytes())
    assert pca.record["fingerprint"] == half.record["fingerprint"]
    assert digest.hexdigest() in pca.record["fingerprint"]


def test_pca_of_the_items_of_a_task_has_patches_of_each():
    entries = [Entry(f"{n}", lambda n=n: Image(make_image(5, n, 40, 50).frames[0])) for n in range(3)]
    pca = PCA.of_items(Prepared(entries, Preparation()), "kodak", 12)
    assert pca.name == "PCA of kodak, 12 numbers a patch"
    assert f"{OF_EACH} patches of each image of kodak: {3 * OF_EACH:,} patches" in pca.record["fingerprint"]


def test_features_of_a_network_are_unit_vectors_and_nothing_else():
    network, items = PlainNetwork(), [synthetic_image(), synthetic_image(20, 30)]
    rows = network.features([pixels(item) for item in items])["pooled"]
    model = Features(network)
    for output, row in zip(model.embed(items), rows, strict=True):
        np.testing.assert_allclose(output.vector, row / np.linalg.norm(row), atol=FP32)
    with pytest.raises(AtokenError, match="makes no images"):
        model.reconstruct(items)
    with pytest.raises(AtokenError, match="reads no texts"):
        model.embed_texts(["a cat"])


def test_pca_needs_as_many_patches_as_components():
    with pytest.raises(AtokenError, match="13 components need as many patches"):
        PCA(images()[:1], "one image", components=13)
    with pytest.raises(AtokenError, match="no vectors"):
        PCA(images(), "four images", components=2).embed([synthetic_image()])
