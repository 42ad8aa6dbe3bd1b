"""Tensors in, tensors out: patches and grids are bijections, gradients pass, and files give the same numbers."""

import numpy as np
import pytest
import torch

from atoken import from_grid, to_grid
from atoken.errors import TensorError
from atoken.patches import pack_pixels, sizes_of, unpack_pixels
from atoken.tokens import SparseTokens
from tests.model.sizes import small_model
from tests.tolerances import FP32

SHAPES = [(2, 3, 32, 48), (1, 3, 17, 5), (3, 3, 1, 16, 16), (2, 3, 5, 20, 33), (1, 3, 20, 16, 16)]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pixels_come_back_from_patches(shape, dtype):
    x = noise(*shape).to(dtype)
    packed = pack_pixels(x)
    back = unpack_pixels(packed, sizes_of(packed, x.shape[2:]))
    assert back.dtype == dtype
    assert torch.equal(back, x)


def test_a_list_of_mixed_sizes_is_the_samples_one_by_one():
    x = [noise(3, 17, 5), noise(3, 6, 16, 32), noise(3, 32, 16)]
    packed = pack_pixels(x)
    assert packed.lengths == (2, 4, 2)
    assert torch.equal(packed.feats, torch.cat([pack_pixels(one[None]).feats for one in x]))
    back = unpack_pixels(packed, sizes_of(packed, [one.shape[1:] for one in x]))
    assert all(torch.equal(one, other) for one, other in zip(back, x, strict=True))


def test_the_gradient_of_patches_goes_to_every_pixel_and_counts_repeated_edges():
    x = noise(1, 3, 17, 16).requires_grad_()
    pack_pixels(x).feats.sum().backward()
    assert torch.equal(x.grad[:, :, :16], torch.ones(1, 3, 16, 16))
    assert torch.equal(x.grad[:, :, 16], torch.full((1, 3, 16), 16.0))


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 6, 1, 3, 4), (1, 6, 5, 2, 2)])
def test_a_grid_is_undone_by_packing(shape):
    z = noise(*shape)
    assert torch.equal(to_grid(from_grid(z)), z.reshape(*shape[:2], -1, *shape[-2:]))


def test_grids_do_not_depend_on_the_order_or_the_first_step_of_tokens():
    z = noise(1, 6, 5, 2, 3)
    packed = from_grid(z)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    later = packed.coords[order] + torch.tensor([7, 0, 0, 0], dtype=torch.int32)
    assert torch.equal(to_grid(SparseTokens(packed.feats[order], later, (30,))), z)


def test_mixed_grids_are_a_list():
    z = [noise(6, 2, 3), noise(6, 4, 2, 1)]
    grids = to_grid(from_grid(z))
    assert torch.equal(grids[0], z[0][:, None])
    assert torch.equal(grids[1], z[1])


def test_tokens_that_do_not_fill_a_grid_are_refused():
    packed = from_grid(noise(1, 6, 2, 2))
    with pytest.raises(TensorError, match="3 tokens do not fill a grid"):
        to_grid(SparseTokens(packed.feats[:3], packed.coords[:3], (3,)))
    coords = torch.arange(4, dtype=torch.int32)[:, None] * torch.tensor([0, 0, 0, 1], dtype=torch.int32)
    with pytest.raises(TensorError, match="4 layers"):
        to_grid(SparseTokens(packed.feats, coords, (4,)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [{}, {"fsq_levels": (4,) * 6}, {"cache_frames": 4}])
def test_pixels_go_through_the_model_and_back_to_their_shape_with_gradients(shape, kind):
    model, x = small_model(**kind), noise(*shape).requires_grad_()
    encoded = model.encode_pixels(x)
    again = model.decode_latents(encoded.latents, sizes=x.shape[2:])
    assert again.shape == x.shape
    again.square().mean().backward()
    assert x.grad.abs().amax() > 0
    assert torch.isfinite(x.grad).all()
    dense = model.decode_latents(to_grid(encoded.latents), sizes=x.shape[2:])
    assert torch.equal(dense, again)


def test_a_list_through_the_model_is_each_alone():
    model, x = small_model(), [noise(3, 17, 5), noise(3, 6, 16, 32)]
    encoded = model.encode_pixels(x)
    both = model.decode_latents(encoded.latents, sizes=[one.shape[1:] for one in x])
    for one, again in zip(x, both, strict=True):
        alone = model.decode_latents(model.encode_pixels(one[None]).latents, sizes=one.shape[1:])[0]
        assert again.shape == one.shape
        assert (again - alone).abs().amax() <= FP32


def test_sizes_that_are_left_out_are_whole_patches():
    model = small_model()
    assert model.decode_latents(noise(2, 48, 3, 4)).shape == (2, 3, 48, 64)
    assert model.decode_latents(noise(2, 48, 1, 3, 4)).shape == (2, 3, 4, 48, 64)
    assert model.decode_latents(model.encode_pixels(noise(2, 3, 30, 40)).latents).shape == (2, 3, 32, 48)
    assert model.decode_latents([noise(48, 1, 2), noise(48, 2, 1, 2)])[1].shape == (3, 8, 16, 32)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(3, 16, 16), r"\(B, 3, H, W\).*got \(3, 16, 16\)"),
        (torch.zeros(1, 4, 16, 16), r"got \(1, 4, 16, 16\)"),
        (torch.zeros(1, 3, 0, 16), "none of them 0"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floating point, got torch.uint8; of values from 0 to 255"),
        (torch.full((1, 3, 16, 16), 255.0), "values of 255; of values from 0 to 255"),
        (torch.full((1, 3, 16, 16), torch.nan), "values of nan"),
        ([], "at least one tensor"),
        (np.zeros((1, 3, 16, 16), np.float32), "a list of at least one tensor, got ndarray"),
        ([torch.zeros(3, 16, 16), torch.zeros(3, 16, 16).double()], "one dtype"),
    ],
)
def test_wrong_pixels_get_a_sentence(x, sentence):
    with pytest.raises(TensorError, match=sentence):
        small_model().encode_pixels(x)


@pytest.mark.parametrize(
    ("latents", "sizes", "sentence"),
    [
        (torch.zeros(1, 47, 2, 2), None, "48 values a token are needed, got 47"),
        (torch.zeros(48, 2), None, r"got \(48, 2\)"),
        (torch.zeros(1, 48, 2, 2, dtype=torch.int64), None, "Latents must be floating point"),
        (torch.zeros(1, 48, 2, 2), (33, 32), r"size \(33, 32\) does not fit"),
        (torch.zeros(1, 48, 2, 2), (5, 32, 32), "does not fit"),
        (torch.zeros(2, 48, 2, 2), [(32, 32)], "1 sizes for 2 samples"),
        (torch.zeros(1, 48, 2, 2), (32,), "does not fit"),
        (torch.zeros(1, 48, 2, 2), (), "does not fit"),
        (torch.zeros(1, 48, 2, 2), 32, "or a list of these, got 32"),
        (torch.zeros(1, 48, 2, 2), (32.0, 32), "or a list of these, got"),
        (torch.zeros(1, 48, 2, 2), [], "0 sizes for 1 samples"),
        ("latents", None, "at least one tensor, got str"),
    ],
)
def test_wrong_latents_get_a_sentence(latents, sizes, sentence):
    with pytest.raises(TensorError, match=sentence):
        small_model().decode_latents(latents, sizes=sizes)


def test_what_is_not_packed_tokens_of_this_model_gets_a_sentence():
    model, pixels = small_model(), noise(1, 3, 16, 16)
    with pytest.raises(TensorError, match="3072 or 768 values a token are needed, got a Tensor; see encode_pixels"):
        model.encode(pixels)
    with pytest.raises(TensorError, match="48 values a token are needed, got 3072; see decode_latents"):
        model.decode(pack_pixels(pixels))
    with pytest.raises(TensorError, match="got a Tensor"):
        to_grid(pixels)
