"""What torch compiles and exports gives the numbers of the model as it is."""

import shutil

import pytest
import torch

from atoken.export import ImageDecoder, ImageEncoder
from tests.model.sizes import small_model
from tests.model.test_patches import noise
from tests.tolerances import FP32


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_encoder_is_the_encoder(backend):
    model, x = small_model(), noise(2, 3, 20, 32)
    torch.compiler.reset()
    with torch.no_grad():
        expected = model.encode_pixels(x)
        actual = torch.compile(model.encode_pixels, backend=backend)(x)
    torch.testing.assert_close(actual.latents.feats, expected.latents.feats, atol=FP32, rtol=FP32)
    torch.testing.assert_close(actual.pooled, expected.pooled, atol=FP32, rtol=FP32)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
def test_a_compiled_layer_is_the_layer():
    """With inductor, which takes minutes for a whole model; ``Linear`` must leave oneDNN's operator alone."""
    mlp, x = small_model().encoder.blocks[0].mlp, noise(8, 96)
    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(mlp)(x), mlp(x), atol=FP32, rtol=FP32)


@pytest.mark.parametrize(
    ("kind", "size"), [({}, (20, 33)), ({"fsq_levels": (4,) * 6}, (32, 48)), ({"rope": False}, (16, 32))]
)
def test_images_of_one_size_are_exported_with_any_number_of_them(kind, size):
    model = small_model(**kind)
    both = ImageEncoder(model, *size).eval(), ImageDecoder(model, *size).eval()
    batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        x = noise(2, 3, *size)
        encoder = torch.export.export(both[0], (x,), dynamic_shapes=batch).module()
        decoder = torch.export.export(both[1], (both[0](x)[0],), dynamic_shapes=batch).module()
        for count in (1, 3):
            x = noise(count, 3, *size, seed=count)
            latents, pooled = encoder(x)
            expected = model.encode_pixels(x)
            cells = latents.shape[2:]
            feats = expected.latents.feats.unflatten(0, (count, *cells)).movedim(-1, 1)
            torch.testing.assert_close(latents, feats, atol=FP32, rtol=FP32)
            torch.testing.assert_close(pooled, expected.pooled, atol=FP32, rtol=FP32)
            pixels = model.decode_latents(latents, sizes=size)
            torch.testing.assert_close(decoder(latents), pixels, atol=FP32, rtol=FP32)
