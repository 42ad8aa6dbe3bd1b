"""What an image is to a generator of assets: cut out, in the middle, and as features."""

import warnings

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import atoken
from atoken.errors import AtokenError, AtokenWarning, CheckpointError
from atoken.io import Image
from generation.vision import framed, image_encoder_of, load_image_encoder
from tests.tolerances import FP32


def thing(background=0):
    """A red block of 20 x 30 pixels, with a hole, in an image of one colour."""
    pixels = np.full((50, 80, 3), background, np.uint8)
    pixels[10:30, 40:70] = 250, 10, 10
    pixels[15:25, 50:60] = background
    return pixels


def test_alpha_says_what_the_thing_is():
    alpha = np.zeros((50, 80), np.uint8)
    alpha[10:30, 40:70] = 255
    found = framed(Image(thing(90), alpha), 36)
    assert found.shape == (3, 36, 36)
    opaque = (found[0] > 0.1).nonzero()
    assert opaque.min(0).values.tolist() == [8, 3]  # 36 pixels a side, of which the thing has 30 x 20
    assert opaque.max(0).values.tolist() == [27, 32]
    assert not found[:, :7].any()


@pytest.mark.parametrize("background", [0, 128, 255])
def test_a_plain_background_is_taken_away_but_not_what_it_encloses(background):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = framed(Image(thing(background)), 36)
    alpha = np.zeros((50, 80), np.uint8)
    alpha[10:30, 40:70] = 255
    torch.testing.assert_close(found, framed(Image(thing(background), alpha), 36), rtol=0, atol=FP32)


def test_where_nothing_says_what_the_thing_is_that_is_said():
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    with pytest.warns(AtokenWarning, match="neither alpha nor a plain background"):
        found = framed(Image(pixels), 24)
    assert (found[:, 6:18, 6:18].mean(0) > 0).all()
    for nothing in (Image(np.zeros((9, 9, 3), np.uint8)), Image(pixels, np.zeros((20, 20), np.uint8))):
        with pytest.raises(AtokenError, match="shows nothing"):
            framed(nothing, 24)


def test_a_thing_at_the_edge_is_in_the_middle_all_the_same():
    alpha = np.zeros((30, 30), np.uint8)
    alpha[:10, :10] = 255
    found = framed(Image(np.full((30, 30, 3), 200, np.uint8), alpha), 12)
    assert (found[0] > 0.1).nonzero().float().mean(0).tolist() == pytest.approx([5.5, 5.5], abs=0.1)


def test_features_of_the_tower_and_of_dinov2_are_normalised_and_of_each_image_alone(tmp_path):
    torch.manual_seed(0)
    network = Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28))
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "BitImageProcessor", "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}'
    )
    images = torch.rand(2, 3, 64, 64)
    for encoder, length in ((image_encoder_of(atoken.load("nano"), 64), 16), (load_image_encoder(tmp_path), 5)):
        seen = images[:, :, : encoder.side, : encoder.side]
        found = encoder(seen)
        assert found.shape == (2, length, encoder.width)
        torch.testing.assert_close(found.mean(-1), torch.zeros(2, length), rtol=0, atol=1e-4)
        torch.testing.assert_close(found[1:], encoder(seen[1:]), rtol=0, atol=1e-4)
    with torch.no_grad():
        scaled = (seen - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
        before_norm = network(scaled, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found, torch.nn.functional.layer_norm(before_norm, (24,)), rtol=0, atol=1e-4)
    with pytest.raises(CheckpointError, match="no image encoder"):
        load_image_encoder(tmp_path / "none")
