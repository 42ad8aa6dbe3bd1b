"""Rotary embedding, position table, pooling and bottlenecks against closed forms."""

import itertools
import math

import pytest
import torch
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from atoken.bottleneck import FSQ, Posterior
from atoken.layers import Block, Linear, PoolingHead, PositionTable, QKNorm
from atoken.rope import rotate, rotation
from atoken.tokens import SparseTokens
from tests.tolerances import BF16_FORWARD, EXACT, FP32


def coords(*rows):
    return torch.tensor(rows, dtype=torch.int32)


def test_rope_depends_only_on_differences_of_position():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 3, 72, generator=generator)
    near = [rotate(x, rotation(coords(point), 72)) for x, point in ((q, [1, 2, 3, 4]), (k, [0, 5, 1, 2]))]
    far = [rotate(x, rotation(coords(point), 72)) for x, point in ((q, [8, 42, 33, 9]), (k, [7, 45, 31, 7]))]
    torch.testing.assert_close((near[0] * near[1]).sum(-1), (far[0] * far[1]).sum(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("axis", "k"), list(itertools.product(range(4), (0, 4, 8))))
def test_rope_rotates_the_pair_of_its_axis_by_position_times_frequency(axis, k):
    point = [0, 0, 0, 0]
    point[axis] = 5
    x = torch.zeros(1, 1, 72)
    pair = 2 * (9 * axis + k)  # axes t, x, y, z in order, 9 frequencies each, adjacent channels
    x[0, 0, pair] = 1.0
    angle = 5 * 10_000 ** (-k / 72)
    expected = torch.zeros(1, 1, 72)
    expected[0, 0, pair : pair + 2] = torch.tensor([math.cos(angle), math.sin(angle)])
    torch.testing.assert_close(rotate(x, rotation(coords(point), 72)), expected, atol=FP32, rtol=0)


def test_rope_at_the_origin_is_the_identity_and_keeps_the_dtype():
    x = torch.randn(1, 2, 48).bfloat16()
    assert torch.equal(rotate(x, rotation(coords([0, 0, 0, 0]), 48)), x)


def table(width=8):
    position = PositionTable(16, width)
    torch.nn.init.normal_(position.weight, generator=torch.Generator().manual_seed(0))
    return position


def triangle(size, new):
    """(new, size) in double: anti-aliased linear interpolation along one axis, written out."""
    scale = size / new
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(size) + 0.5 - centres[:, None]).abs() / max(scale, 1.0)
    weights = (1.0 - distance).clamp_min(0.0)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (3, 2), (16, 16), (17, 15), (64, 48), (88, 2)])
def test_resized_table_equals_its_closed_form(size):
    position = table()
    grid = position.weight.double().unflatten(0, (16, 16))
    expected = torch.einsum("ip,jq,pqd->ijd", triangle(16, size[0]), triangle(16, size[1]), grid).flatten(0, 1)
    torch.testing.assert_close(position.resized(*size), expected.float(), atol=FP32, rtol=FP32)


@pytest.mark.parametrize("rows", [2, 3, 40])
def test_one_column_is_what_siglip2_gets_from_torch_on_this_device(rows):
    position = table()
    siglip2 = Siglip2VisionEmbeddings.resize_positional_embeddings(
        position.weight.detach().unflatten(0, (16, 16)), torch.tensor([[rows, 1]]), rows
    )
    assert torch.equal(position.resized(rows, 1), siglip2[0])


def test_each_sample_gets_the_table_of_its_own_extent():
    position = table()
    positions = torch.cat(
        [coords([0, 0, 0, 0], [0, 1, 2, 0]), coords([0, 0, 0, 0]), coords([1, 1, 2, 0], [0, 0, 1, 0])]
    )
    rows = position(SparseTokens(torch.zeros(5, 1), positions, (2, 1, 2)))
    wide, single = position.resized(2, 3), position.resized(1, 1)
    expected = torch.stack([wide[0], wide[5], single[0], wide[5], wide[1]])
    torch.testing.assert_close(rows, expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 0.0])
def test_norms_are_their_closed_form_also_where_all_is_small(decoder, scale):
    block, x = Block(16, 2, 8, decoder=decoder), torch.randn(5, 16) * scale
    centred = x.double() if decoder else x.double() - x.double().mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    for norm in (block.norm1, block.norm2, *([] if decoder else [PoolingHead(16, 2, 8).norm])):
        torch.testing.assert_close(norm(x).double(), expected, atol=FP32, rtol=FP32)


def test_query_and_key_norm_rounds_once():
    norm, x = QKNorm(2, 24), torch.randn(50, 2, 24)
    torch.nn.init.normal_(norm.gain_HK, mean=1.0, std=0.3)
    expected = x / x.norm(dim=-1, keepdim=True) * 24**0.5 * norm.gain_HK
    torch.testing.assert_close(norm(x), expected, atol=FP32, rtol=FP32)
    half = x.bfloat16()
    assert norm(half).dtype == torch.bfloat16
    assert torch.equal(norm(half), norm(half.float()).bfloat16())


def pooling(width=48):
    torch.manual_seed(0)
    head = PoolingHead(width, 2, 64)
    torch.nn.init.normal_(head.probe)
    return head.eval()


def pool(head, parts):
    state = head.start(len(parts[0].lengths))
    for part in parts:
        state = head.update(state, part)
    return head.finish(state)


def test_pooling_equals_multi_head_attention():
    head, x = pooling(), torch.randn(11, 48)
    twin = torch.nn.MultiheadAttention(48, 2, batch_first=True).eval()
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat([head.q.weight, head.kv.weight]))
        twin.in_proj_bias.copy_(torch.cat([head.q.bias, head.kv.bias]))
        twin.out_proj.load_state_dict(head.out.state_dict())
        attended = twin(head.probe[None, None], x[None], x[None])[0][0]
        expected = attended + head.mlp(head.norm(attended))
        pooled = pool(head, [SparseTokens(x, torch.zeros(11, 4, dtype=torch.int32), (11,))])
    torch.testing.assert_close(pooled, expected, atol=FP32, rtol=0)


def test_pooling_tile_by_tile_equals_pooling_at_once_and_an_empty_sample_is_zero():
    head, x = pooling(), torch.randn(12, 48) * 5
    zeros = torch.zeros(12, 4, dtype=torch.int32)
    whole = SparseTokens(x, zeros, (8, 0, 4))
    first = SparseTokens(x[[0, 1, 2, 8]], zeros[:4], (3, 0, 1))
    second = SparseTokens(x[[3, 4, 5, 6, 7, 9, 10, 11]], zeros[:8], (5, 0, 3))
    with torch.no_grad():
        at_once, in_tiles = pool(head, [whole]), pool(head, [first, second])
    torch.testing.assert_close(at_once, in_tiles, atol=FP32, rtol=FP32)
    assert not at_once[1].any()


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5])
def test_pooling_of_large_logits_is_that_in_double_precision(scale):
    """exp(89) is infinite in fp32: the largest logit must be subtracted, that of all tiles seen so far."""
    head, x = pooling(), torch.randn(12, 48)
    head.kv.weight.data[:48] *= scale
    with torch.no_grad():
        q_HK, key_HKD = head.q(head.probe).unflatten(0, (2, -1)), head.kv.weight[:48].unflatten(0, (2, -1))
        logits_HL = torch.einsum("hk,hkd,ld->hl", q_HK.double(), key_HKD.double(), x.double()) / 24**0.5
        value_HKD = head.kv.weight[48:].double().unflatten(0, (2, -1))
        values = torch.einsum("hl,ld,hkd->hk", logits_HL.softmax(1), x.double(), value_HKD).flatten()
        attended = head.out((values + head.kv.bias[48:].double()).float())
        expected = attended + head.mlp(head.norm(attended))
        assert scale == 1 or logits_HL.abs().max() > 100
        for order in (logits_HL[0].argsort(), logits_HL[0].argsort(descending=True)):
            sample = SparseTokens(x[order], torch.zeros(12, 4, dtype=torch.int32), (12,))
            tiles = [SparseTokens(sample.feats[at : at + 4], sample.coords[:4], (4,)) for at in (0, 4, 8)]
            for parts in ([sample], tiles):
                torch.testing.assert_close(pool(head, parts)[0], expected, atol=10 * FP32, rtol=10 * FP32)


def test_kl_of_the_unit_gaussian_is_zero_and_of_another_its_closed_form():
    zero = torch.zeros(2, 48)
    assert not Posterior(zero, zero).kl().any()
    mean, logvar = torch.full((1, 3), 2.0), torch.full((1, 3), math.log(4.0))
    expected = 3 * 0.5 * (4 + 4 - 1 - math.log(4.0))
    torch.testing.assert_close(Posterior(mean, logvar).kl(), torch.tensor([expected]), atol=FP32, rtol=FP32)


def test_sampling_follows_its_generator_and_its_moments():
    posterior = Posterior(torch.full((20_000, 1), 3.0), torch.full((20_000, 1), math.log(0.25)))
    draw, again = (posterior.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(draw, again)
    assert abs(draw.mean() - 3.0) < 0.02
    assert abs(draw.std() - 0.5) < 0.02


FSQ_LEVELS = (4,) * 6


def test_fsq_codes_round_trip_over_all_codes():
    fsq = FSQ(FSQ_LEVELS)
    codes = torch.arange(4096)[:, None]
    values = fsq.from_codes(codes)
    assert values.shape == (4096, 6)
    assert set(values.unique().tolist()) == {-1.0, -0.5, 0.0, 0.5}
    assert torch.equal(fsq.to_codes(values), codes)
    assert torch.equal(fsq.from_codes(torch.tensor([1 + 4 * 2 + 16 * 3]))[:3], torch.tensor([-0.5, 0.0, 0.5]))


def test_fsq_rounds_the_bound_and_passes_its_gradient():
    fsq = FSQ(FSQ_LEVELS)
    z = torch.linspace(-4, 4, 48).requires_grad_()
    quantised = fsq.quantise(z)
    half = 3 * (1 + 1e-3) / 2
    bounded = torch.tanh(z + math.atanh(0.5 / half)) * half - 0.5
    torch.testing.assert_close(quantised, bounded.round() / 2, atol=FP32, rtol=0)
    gradient = torch.autograd.grad(quantised.sum(), z)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad((bounded / 2).sum(), z)[0], atol=FP32, rtol=FP32)
    assert torch.equal(fsq.from_codes(fsq.to_codes(quantised)), quantised.detach())


def test_odd_levels_are_bounded_without_a_shift_and_even_ones_by_half_a_step():
    """Channel by channel in closed form: tanh times half the width, which odd levels reach on either side of 0."""
    levels, z = (3, 5, 4, 2), torch.linspace(-6, 6, 101)
    bounded = FSQ(levels).bound(z[:, None].expand(-1, 4))
    for channel, level in enumerate(levels):
        half = (level - 1) * 1.001 / 2
        shift = 0.0 if level % 2 else 0.5
        expected = torch.tanh(z.double() + math.atanh(shift / half)) * half - shift
        torch.testing.assert_close(bounded[:, channel].double(), expected, atol=FP32, rtol=0)
        found = bounded[:, channel].round().unique().tolist()
        assert found == list(range(-(level // 2), (level + 1) // 2))
    assert FSQ(levels).bound(torch.zeros(4))[:2].tolist() == [0, 0]


@pytest.mark.parametrize("levels", [(3,), (5,), (3, 5), (5, 3, 4), (4, 7)])
def test_codes_of_any_levels_round_trip_and_are_the_mixed_radix_of_their_digits(levels):
    fsq = FSQ(levels)
    codes = torch.arange(math.prod(levels))[:, None]
    values = fsq.from_codes(codes)
    assert torch.equal(fsq.to_codes(values), codes)
    for noise in (-0.1, 0.1):  # of a step: the code is that of the nearest level
        assert torch.equal(fsq.to_codes(values + noise / max(levels)), codes)
    digits = list(itertools.product(*map(range, reversed(levels))))  # the first channel is the lowest digit
    expected = [[(d - level // 2) / (level // 2) for d, level in zip(row[::-1], levels, strict=True)] for row in digits]
    torch.testing.assert_close(values, torch.tensor(expected), atol=FP32, rtol=0)
    z = torch.randn(5000, 2 * len(levels), generator=torch.Generator().manual_seed(0))
    quantised = fsq.quantise(z)
    torch.testing.assert_close(fsq.from_codes(fsq.to_codes(quantised)), quantised, atol=FP32, rtol=0)
    assert len(fsq.to_codes(quantised).unique()) == len(codes)


def test_fsq_refuses_codes_and_widths_it_does_not_have():
    fsq = FSQ(FSQ_LEVELS)
    for code in (4096, -1):
        with pytest.raises(ValueError, match=rf"\[0, 4096\), got {code} to {code}"):
            fsq.from_codes(torch.tensor([code]))
    for levels in ((), (4, 1), (4, 0)):
        with pytest.raises(ValueError, match="2 or more"):
            FSQ(levels)
    with pytest.raises(ValueError, match="groups of 6"):
        fsq.quantise(torch.zeros(50))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FP32), (torch.bfloat16, BF16_FORWARD)])
@pytest.mark.parametrize("shape", [(7, 40), (2, 3, 40), (1, 40), (0, 40)])
@pytest.mark.parametrize("gelu", [None, "tanh", "none"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_the_same_with_and_without_gradients(dtype, tolerance, shape, gelu, bias):
    torch.manual_seed(0)
    layer, x = Linear(40, 24, bias=bias, gelu=gelu).to(dtype), torch.randn(shape).to(dtype)
    expected = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    expected = torch.nn.functional.gelu(expected, approximate=gelu) if gelu else expected
    with_gradients = layer(x)
    with torch.no_grad():
        without = layer(x)
        strided = layer(x.mT.contiguous().mT)
    for result in (with_gradients, without, strided):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


def test_linear_under_autocast_is_that_of_torch_without_gradients_too():
    layer, x = Linear(40, 24), torch.randn(7, 40)
    with torch.autocast("cpu", torch.bfloat16):
        with_gradients = layer(x)
        with torch.no_grad():
            without = layer(x)
    assert with_gradients.dtype == without.dtype == torch.bfloat16
    assert torch.equal(with_gradients, without)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 40), (2, 3, 40), (40,), (0, 40)])
def test_gradients_of_linear_are_those_of_torch_for_slices_too(shape, bias):
    torch.manual_seed(0)
    layer, wide = Linear(40, 24, bias=bias), torch.randn(*shape[:-1], 96)
    found = []
    for product in (layer, lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias)):
        x = wide.clone().requires_grad_()
        product(x[..., 10:50])[..., 4:].square().sum().backward()
        found.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
        layer.zero_grad()
    torch.testing.assert_close(*found, atol=FP32, rtol=FP32)
