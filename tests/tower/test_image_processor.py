"""Images in, pixels or padded patches out: sides in whole patches, aspect and limits kept, nothing cropped."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage
from transformers import AutoImageProcessor

from atoken import ATokenImageProcessor
from atoken.presets import BUNDLED
from tests.model.sizes import small_model
from tests.tokenizer.small import random_frames, small_tokenizer
from tests.tolerances import EXACT, FP32

PROCESSOR = ATokenImageProcessor()


@given(
    st.integers(1, 20_000),
    st.integers(1, 20_000),
    st.sampled_from([16, 32]),
    st.integers(1, 1 << 20),
    st.integers(1024, 1 << 22),
)
def test_sides_are_whole_patches_within_the_limits(height, width, side, least, most):
    limits = {"patch_size": side, "min_pixels": min(least, most // 2), "max_pixels": most}
    rows, columns = PROCESSOR.target_size(height, width, **limits)
    assert (rows % side, columns % side) == (0, 0)
    assert side * side <= rows * columns <= most
    if min(rows, columns) > side * 8:  # of larger grids the area is exact within a row of patches
        assert rows * columns >= limits["min_pixels"] * (1 - 1 / 8)
        assert abs(rows / columns / (height / width) - 1) <= 1 / 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((256, 256), (256, 256)),
        ((250, 333), (256, 336)),
        ((20, 20), (64, 64)),
        ((4000, 3000), (1760, 1328)),
        ((1, 100_000), (16, 100_000)),
        ((1, 200_000), (16, 147_456)),
    ],
)
def test_sizes_of_the_defaults(size, expected):
    assert PROCESSOR.target_size(*size) == expected


def test_an_image_of_whole_patches_gives_the_tokenizers_pixels():
    image = random_frames(64, 80)
    x = PROCESSOR(PilImage.fromarray(image), return_tensors="pt")["pixel_values"]
    assert (x.shape, x.dtype) == ((1, 3, 64, 80), torch.float32)
    tok = small_tokenizer()
    with torch.no_grad():
        latents = tok.model.encode_pixels(x).latents.feats
    assert (latents - tok.encode(image).latents).abs().max() <= FP32


def test_every_form_of_an_image_gives_the_same_pixels(tmp_path):
    image = random_frames(70, 90)
    PilImage.fromarray(image).save(tmp_path / "image.png")
    forms = [
        image,
        image.transpose(2, 0, 1),
        torch.tensor(image),
        PilImage.fromarray(image),
        str(tmp_path / "image.png"),
    ]
    forms += [np.dstack([image, image[..., 0]]), PilImage.fromarray(np.dstack([image, image[..., 0]]))]
    expected, *others = [PROCESSOR(form, return_tensors="np")["pixel_values"] for form in forms]
    assert expected.shape == (1, 3, 64, 96)
    assert (expected.min(), expected.max()) == (-1, 1)
    assert all(np.array_equal(other, expected) for other in others)


def test_nothing_is_cropped_and_orientation_is_kept():
    """A bright border stays on all four sides; a photograph taken sideways comes upright."""
    image = np.zeros((100, 300, 3), np.uint8)
    image[:10], image[-10:], image[:, :10], image[:, -10:] = 255, 255, 255, 255
    x = PROCESSOR(PilImage.fromarray(image), return_tensors="pt", max_pixels=64 * 192)["pixel_values"][0]
    assert x.shape == (3, 64, 192)
    assert min(x[:, 0].min(), x[:, -1].min(), x[:, :, 0].min(), x[:, :, -1].min()) > 0.9
    assert x[:, 20:-20, 20:-20].max() < -0.9
    sideways = PilImage.fromarray(image)
    sideways.getexif()[0x0112] = 6
    assert PROCESSOR(sideways, return_tensors="pt")["pixel_values"].shape == (1, 3, 304, 96)


def test_images_of_several_sizes_give_padded_patches_or_a_list():
    images = [random_frames(64, 96), random_frames(96, 80)]
    batch = PROCESSOR(images, return_tensors="pt")
    assert batch["spatial_shapes"].tolist() == [[4, 6], [6, 5]]
    assert batch["pixel_attention_mask"].sum(1).tolist() == [24, 30]
    assert batch["pixel_values"].shape == (2, 30, 768)
    patch = torch.tensor(images[0][16:32, 32:48]).flatten() / 127.5 - 1  # row 1, column 2
    torch.testing.assert_close(batch["pixel_values"][0, 1 * 6 + 2], patch, atol=FP32, rtol=0)
    assert not batch["pixel_values"][0, 24:].any()
    assert [one.shape for one in PROCESSOR(images)["pixel_values"]] == [(3, 64, 96), (3, 96, 80)]
    assert PROCESSOR([images[0]] * 2, return_tensors="pt")["pixel_values"].shape == (2, 3, 64, 96)


def test_an_array_of_one_pixel_is_read_in_the_order_row_column_channel():
    x = PROCESSOR(np.array([[[255, 0, 0]]], np.uint8), return_tensors="np")["pixel_values"]
    assert x.shape == (1, 3, 64, 64)
    assert x.mean((0, 2, 3)).tolist() == [1, -1, -1]


def test_without_resizing_images_of_several_sizes_must_be_whole_patches():
    images = [random_frames(33, 50), random_frames(32, 32)]
    assert PROCESSOR(images[0], do_resize=False, return_tensors="np")["pixel_values"].shape == (1, 3, 33, 50)
    with pytest.raises(ValueError, match=r"multiples of 16, got \(33, 50\)"):
        PROCESSOR(images, do_resize=False, return_tensors="np")


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="at least min_pixels"):
        ATokenImageProcessor(min_pixels=4096, max_pixels=1024)(random_frames(32, 32))
    with pytest.raises(ValueError, match="one patch"):
        PROCESSOR(random_frames(32, 32), min_pixels=1, max_pixels=100)


def test_it_saves_and_loads(tmp_path):
    processor = ATokenImageProcessor(max_pixels=64 * 64, patch_size=32)
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is ATokenImageProcessor
    assert again.to_dict() == processor.to_dict()
    image = random_frames(300, 200)
    actual, expected = (one(image, return_tensors="np")["pixel_values"] for one in (again, processor))
    assert actual.shape == (1, 3, 64, 32)
    assert np.abs(actual - expected).max() <= EXACT


@pytest.mark.parametrize("name", ["nano", "nano-d"])
def test_bundled_folders_hold_the_processor(name):
    stored = json.loads((BUNDLED / name / "preprocessor_config.json").read_text())
    assert stored == json.loads(PROCESSOR.to_json_string())
    assert AutoImageProcessor.from_pretrained(BUNDLED / name).to_dict() == PROCESSOR.to_dict()


def test_folders_that_a_model_writes_hold_the_processor_unless_they_have_one(tmp_path):
    own = ATokenImageProcessor(max_pixels=1 << 18)
    own.save_pretrained(tmp_path / "own")
    for folder, expected in (("new", PROCESSOR), ("own", own)):
        small_model().save_pretrained(tmp_path / folder)
        assert AutoImageProcessor.from_pretrained(tmp_path / folder).to_dict() == expected.to_dict()
