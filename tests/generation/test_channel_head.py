"""The head that gives the tokens of a position: it samples as it was trained, with tables of its own or shared ones."""

import pytest
import torch

from generation.channel_head import ChannelHead
from generation.dit import DiT
from generation.masked_ar import MaskedAR
from generation.presets import sizes
from tests.tolerances import FP32

MOST = 10 << 20  # bytes of a bundled generator
CLASSES = 108  # of scripts/generators.toml


def head(shared):
    torch.manual_seed(0)
    made = ChannelHead(12, 16, 2, 2, tokens=5, levels=7, shared=shared)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return made.eval()


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_it_samples_by_the_logits_that_it_is_trained_by(shared):
    made, features_MF, seen = head(shared), torch.randn(3, 12, generator=torch.Generator().manual_seed(1)), []

    def choose(number, logits_MK):
        seen.append(logits_MK)
        return (logits_MK.argmax(-1) + number) % 7

    tokens_MV = made.sampled(features_MF, choose)
    torch.testing.assert_close(torch.stack(seen, 1), made(features_MF, tokens_MV), rtol=0, atol=10 * FP32)
    assert len(tokens_MV.unique()) > 2


def test_shared_tables_are_one_for_each_side():
    own, shared = (dict(head(shared).named_parameters()) for shared in (False, True))
    assert sum(7 in weight.shape for weight in own.values()) == 4 + 2 * 5  # tables; classifiers with their biases
    assert sum(7 in weight.shape for weight in shared.values()) == 1 + 2
    assert {name for name in own if "blocks" in name} == {name for name in shared if "blocks" in name}


def test_nano_fits_into_what_is_bundled():
    with torch.device("meta"):
        flow = DiT(side=8, classes=CLASSES, **sizes("dit", "nano"))
        masked = MaskedAR(side=8, classes=CLASSES, **sizes("tokenbridge", "nano"))
    for model in (flow, masked):
        assert 0.9 * MOST < 2 * sum(weight.numel() for weight in model.state_dict().values()) < 0.99 * MOST
