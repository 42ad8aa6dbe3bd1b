"""The two-stream transformer: samples of a batch are independent, grids and texts of any size, images as videos."""

import pytest
import torch

from atoken.tokens import SparseTokens
from generation.mmdit import MMDiT, axes_rotation, packed
from generation.presets import MMDIT
from generation.text import TextFeatures
from tests.tolerances import FP32, RELEASED

TEXTS = (6, 10)  # widths of two encoders, the second without pooled vectors


def random_model(**changes):
    torch.manual_seed(0)
    sizes = {"channels": 4, "width": 64, "depth": 2, "heads": 2, "text_widths": TEXTS, "pooled_widths": (5, 0)}
    model = MMDiT(**sizes | changes)
    for weight in model.parameters():  # a fresh model gives zeros
        torch.nn.init.normal_(weight, std=0.1)
    return model


def texts(*lengths, seed=1):
    """Of so many tokens by both encoders."""
    draws = torch.Generator().manual_seed(seed)
    return tuple(
        TextFeatures(
            torch.randn(sum(lengths), width, generator=draws), lengths,
            torch.randn(len(lengths), pooled, generator=draws),
        )
        for width, pooled in zip(TEXTS, (5, 0), strict=True)
    )  # fmt: skip


def one_of(features, number):
    """One text of several."""
    return TextFeatures(
        features.tokens.split(features.lengths)[number], features.lengths[number : number + 1],
        features.pooled[number : number + 1],
    )  # fmt: skip


@torch.no_grad()
def test_a_sample_does_not_depend_on_those_beside_it():
    model, asked = random_model(), texts(3, 0, 7)
    grids = [(1, 2, 3), (2, 4, 2), (4, 1, 1)]
    samples = [packed(torch.randn(1, 4, *grid)) for grid in grids]
    sigma_B = torch.tensor([0.2, 0.5, 0.9])
    together = model(SparseTokens.pack(samples), sigma_B, asked).split([6, 16, 4])
    for number, sample in enumerate(samples):
        alone = model(sample, sigma_B[number, None], tuple(one_of(one, number) for one in asked))
        torch.testing.assert_close(alone, together[number], rtol=RELEASED, atol=FP32)


@torch.no_grad()
def test_texts_times_and_places_count():
    model, tokens, sigma_B = random_model(), packed(torch.randn(1, 4, 2, 3, 3)), torch.tensor([0.5])
    asked = texts(4)
    plain = model(tokens, sigma_B, asked)
    moved = SparseTokens(tokens.feats, tokens.coords * torch.tensor([2, 1, 1, 1]), tokens.lengths)
    for changed in (
        model(tokens, torch.tensor([0.6]), asked),
        model(tokens, sigma_B, texts(4, seed=2)),
        model(tokens, sigma_B, tuple(one.kept([False]) for one in asked)),
        model(tokens, sigma_B, (asked[0], asked[1].kept([False]))),
        model(moved, sigma_B, asked),
    ):
        assert (changed - plain).abs().max() > 1e-3
    far = SparseTokens(tokens.feats, tokens.coords + torch.tensor([3, 5, 7, 0]), tokens.lengths)
    nothing = tuple(one.kept([False]) for one in asked)  # texts stay where they are
    torch.testing.assert_close(model(far, sigma_B, nothing), model(tokens, sigma_B, nothing), rtol=RELEASED, atol=FP32)


@torch.no_grad()
def test_dense_samples_come_back_in_their_places():
    model, x_BCTHW, sigma_B, asked = random_model(patch=2), torch.randn(2, 4, 3, 4, 6), torch.rand(2), texts(2, 5)
    found = model.dense(x_BCTHW, sigma_B, asked)
    assert found.shape == x_BCTHW.shape
    tokens = packed(x_BCTHW, 2)
    assert tokens.coords[7].tolist() == [1, 0, 1, 0]
    torch.testing.assert_close(tokens.feats[7], x_BCTHW[0, :, 1, :2, 2:4].permute(1, 2, 0).flatten())
    velocity = model(tokens, sigma_B, asked)
    torch.testing.assert_close(found[0, :, 1, :2, 2:4].permute(1, 2, 0).flatten(), velocity[7])


def test_a_fresh_model_gives_zeros_and_trains_all_its_weights():
    torch.manual_seed(0)
    sizes = {"channels": 4, "width": 32, "depth": 2, "heads": 2, "text_widths": TEXTS, "pooled_widths": (5, 0)}
    tokens = packed(torch.randn(2, 4, 1, 2, 2))
    assert not MMDiT(**sizes)(tokens, torch.rand(2), texts(1, 0)).any()
    model, again = random_model(), random_model()
    again.enable_gradient_checkpointing()
    for one in (model, again):
        one(tokens, torch.tensor([0.1, 0.7]), texts(1, 0)).square().sum().backward()
    for (name, weight), twin in zip(model.named_parameters(), again.parameters(), strict=True):
        assert weight.grad is not None, name
        torch.testing.assert_close(weight.grad, twin.grad)
    assert random_model()(tokens, torch.rand(2), texts(0, 0)).isfinite().all()


def test_an_encoder_may_have_no_pooled_vectors():
    model = random_model(text_widths=TEXTS[1:], pooled_widths=(0,))
    tokens, asked = packed(torch.randn(2, 4, 1, 2, 2)), texts(3, 1)[1:]
    model(tokens, torch.rand(2), asked).square().sum().backward()
    assert all(weight.numel() and weight.grad is not None for weight in model.parameters())


def test_presets_have_the_sizes_that_they_say():
    with torch.device("meta"):
        found = {
            name: MMDiT(**sizes, text_widths=(4096, 1152), pooled_widths=(0, 1152)) for name, sizes in MMDIT.items()
        }
    millions = {name: sum(weight.numel() for weight in model.parameters()) / 1e6 for name, model in found.items()}
    assert 125 < millions["S"] < 138
    assert 950 < millions["1B"] < 1050
    with torch.device("meta"):
        nano = MMDiT(**MMDIT["nano"])
    assert sum(2 * weight.numel() for weight in nano.parameters()) < 12 << 20


def test_rotation_is_of_time_row_and_column():
    coords = torch.tensor([[0, 0, 0, 0], [5, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0]])
    cosines = axes_rotation(coords, 32)[0, :, 0]
    assert [(row != 1).nonzero().flatten().tolist() for row in cosines] == [
        [], [0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="multiple of 16"):
        axes_rotation(coords, 24)
