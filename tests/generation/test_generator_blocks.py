"""Faster ways give what the plain ones do: without gradients, for some positions only, key after key."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from generation.blocks import Cache, SelfAttention, SwiGLU
from generation.dit import DiT
from generation.masked_ar import MaskedAR
from tests.tolerances import BF16_FORWARD, FP32


def drawn(module):
    torch.manual_seed(0)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return module.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FP32), (torch.bfloat16, BF16_FORWARD)])
def test_swiglu_is_its_formula_with_and_without_gradients(dtype, tolerance):
    mlp, x = drawn(SwiGLU(24, 40)).to(dtype), torch.randn(2, 5, 24).to(dtype)
    gates, values = mlp.gate_value.weight.double().chunk(2)
    gate, value = (x.double() @ part.T for part in (gates, values))
    shift, offset = mlp.gate_value.bias.double().chunk(2)
    hidden = F.silu(gate + shift) * (value + offset)
    expected = F.linear(hidden, mlp.out.weight.double(), mlp.out.bias.double())
    with torch.no_grad():
        without = mlp(x)
    for found in (mlp(x), without):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def test_features_of_some_positions_are_those_of_all():
    model = drawn(MaskedAR(
        side=3, encoder_size=(32, 2, 2), decoder_size=(24, 2, 2), head_size=(16, 1, 2), buffer=2, classes=3
    ))  # fmt: skip
    tokens = torch.randint(4096, (2, 9, 8), generator=torch.Generator().manual_seed(1))
    masked = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 0, 1], [0, 1, 1, 1, 0, 1, 0, 1, 0]]).bool()
    wanted = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 1, 0]]).bool()
    labels = torch.tensor([1, 3])
    whole = model.features(tokens, masked, labels, torch.ones_like(masked))
    assert whole.shape == (2, 9, 24)
    some = model.features(tokens, masked, labels, wanted)
    torch.testing.assert_close(some.flatten(0, 1), whole[wanted], atol=FP32, rtol=FP32)


def test_a_cache_gives_what_causal_attention_does():
    attention, x = drawn(SelfAttention(16, 2)), torch.randn(3, 5, 16)
    cache = Cache(5)
    steps = torch.cat([attention.causal(x[:, at : at + 1], cache) for at in range(5)], 1)
    torch.testing.assert_close(steps, attention.causal(x), atol=FP32, rtol=FP32)


@pytest.mark.parametrize("rms_norm", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_a_velocity_is_the_same_without_gradients(rms_norm, shift):
    model = drawn(DiT(side=4, channels=8, width=48, depth=2, heads=2, classes=3, rms_norm=rms_norm, shift=shift))
    given = torch.randn(2, 8, 4, 4), torch.tensor([0.2, 0.7]), torch.tensor([0, 3])
    with_gradients = model(*given)
    with torch.no_grad():
        without = model(*given)
    torch.testing.assert_close(without, with_gradients, atol=FP32 * float(with_gradients.abs().max()), rtol=0)
