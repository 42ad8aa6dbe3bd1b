"""Where stages start: near a linear code, and from models that are narrower, continuous, or the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from atoken import presets
from atoken.checkpoint import load_folder
from atoken.errors import CheckpointError
from atoken.metrics.pixels import psnr_of
from atoken.model import ATokenConfig
from atoken.pretrain.curriculum import NANO_TASKS
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.start.begin import begin, continued
from atoken.pretrain.start.discrete_start import discrete_start
from atoken.pretrain.start.linear_start import NEIGHBOUR_BLOCKS, NEIGHBOURS, linear_start
from atoken.rope import rotate, rotation
from tests.model.sizes import small_config, small_model
from tests.pretrain.tiny import (
    ONE_LAYER_MORE,
    TINY,
    batch,
    tiny_preset,  # noqa: F401 - a fixture for all tests here
    tiny_run,
)
from tests.tokenizer.texts import small_texts_model
from tests.tolerances import FP32


def one_layer(**changes):
    return ATokenConfig(**(presets.PRESETS["nano"] | {"encoder_layers": 1, "decoder_layers": 1} | changes))


def test_linear_start_is_near_the_best_linear_code():
    task = replace(NANO_TASKS["image"], tokens=512, patches=(16, 64))
    stage = replace(TINY, tasks={"image": task}, mixture={"image": 1})
    *seen, held_out = [batch(stage, step).tokens for step in range(7)]
    config = one_layer()
    model = linear_start(config, seen)
    with torch.no_grad():
        found = model(held_out)[1].feats[:, :768]
    values, wanted = (torch.cat([part.feats[:, :768] for part in parts]).double() for parts in (seen, [held_out]))
    mean = values.mean(0)
    basis = torch.linalg.svd(values - mean, full_matrices=False).Vh[: config.latent_channels]
    best = (wanted - mean) @ basis.T @ basis + mean
    decibels = [psnr_of(float((255 / 2) ** 2 * (result - wanted).square().mean())) for result in (found, best)]
    assert decibels[1] - decibels[0] < 0.6
    assert decibels[1] > psnr_of(float((255 / 2) ** 2 * (mean - wanted).square().mean())) + 3  # PCA says something


def test_linear_start_shows_a_still_video():
    model = linear_start(one_layer(), [batch(TINY, step).tokens for step in (0, 1, 3, 4, 5, 7, 8)])
    with torch.no_grad():
        frames = model(batch(TINY, 2).tokens)[1].feats.unflatten(1, (4, 768))
    for later in frames.unbind(1)[1:]:
        torch.testing.assert_close(later, frames[:, 0], atol=FP32, rtol=0)


def test_heads_begin_by_attending_to_one_neighbour_each():
    """By position alone: of 7 x 7 patches, each inner one attends most to the one at the step of the head."""
    config = ATokenConfig(**presets.PRESETS["nano"])
    model = linear_start(config, [batch(TINY, step).tokens for step in (0, 1)])
    coords = torch.cartesian_prod(torch.tensor([2]), torch.arange(7), torch.arange(7), torch.tensor([0]))
    turn = rotation(coords, config.encoder_width // config.encoder_heads, config.rope_base)
    inner = ((coords[:, 1:3] > 0) & (coords[:, 1:3] < 6)).all(1)
    for number, block in enumerate(model.encoder.blocks[:NEIGHBOUR_BLOCKS]):
        q_HK, k_HK, _ = block.attention.qkv.bias.detach().unflatten(0, (3, block.attention.heads, -1))
        q_NHK, k_NHK = (rotate(bias.expand(len(coords), -1, -1), turn) for bias in (q_HK, k_HK))
        seen_HN = torch.einsum("nhk,mhk->hnm", q_NHK, k_NHK).argmax(2)
        steps_HN2 = coords[seen_HN][..., 1:3] - coords[:, 1:3]
        for head, step in enumerate(NEIGHBOURS[number % 2]):
            assert (steps_HN2[head][inner] == torch.tensor(step)).all()


def test_discrete_start_reads_the_latents_off_its_codes():
    tokens = [batch(TINY, step).tokens for step in range(8)]
    with torch.no_grad():
        model = linear_start(one_layer(), tokens)
        discrete = discrete_start(model, one_layer(**ONE_LAYER_MORE, fsq_levels=presets.FSQ_LEVELS), tokens)
        error = signal = 0.0
        for part in tokens:
            result, expected = discrete(part)[1].feats[:, :768], model(part)[1].feats[:, :768]
            error += float((result - expected).square().sum())
            signal += float((expected - expected.mean(0)).square().sum())
    # 48 digits of two bits for some 48 coefficients: plain two bits each would be 9.3 dB for Gaussians.
    assert 10 * np.log10(signal / error) > 15


def test_a_start_needs_an_mlp_that_is_wide_enough():
    tokens = [batch(TINY, step).tokens for step in range(2)]
    model = linear_start(small_config(), tokens)
    config = small_config(encoder_layers=3, decoder_layers=3, fsq_levels=presets.FSQ_LEVELS)
    with pytest.raises(ValueError, match="MLP of 128"):
        discrete_start(model, config, tokens)


@pytest.mark.parametrize("frozen", [(), ("encoder.", "to_latent.")])
def test_frozen_parameters_stay_and_come_back(frozen, tmp_path):
    stage = replace(TINY, frozen=frozen)
    model = load_folder(tiny_run(stage, tmp_path))
    torch.manual_seed(TINY.recipe.seed)
    start, texts = begin(stage, None, load_datasets("procedural", stage))
    assert texts is None
    for name, parameter in start.state_dict().items():
        if frozen and name.startswith(frozen):
            torch.testing.assert_close(model.state_dict()[name], parameter.bfloat16(), atol=0, rtol=0)
    assert not torch.equal(model.to_patch.weight.float(), start.to_patch.weight.bfloat16().float())
    assert bool(frozen) == torch.equal(model.to_latent.weight.float(), start.to_latent.weight.bfloat16().float())


def test_a_start_with_more_channels_or_a_quantiser_does_what_the_model_before_it_did():
    narrow, tokens = small_model(latent_channels=32), batch(TINY, 0).tokens
    wide = continued(narrow, small_config(latent_channels=48), ())
    with torch.no_grad():
        (result, result_out), (expected, expected_out) = wide(tokens), narrow(tokens)
    assert torch.equal(result.latents.feats[:, :32], expected.latents.feats)
    assert result.latents.feats[:, 32:].any()
    torch.testing.assert_close(result_out.feats, expected_out.feats, atol=FP32, rtol=0)
    discrete = continued(wide, small_config(fsq_levels=presets.FSQ_LEVELS), ())
    assert torch.equal(discrete.encode(tokens).posterior.mean, wide.encode(tokens).posterior.mean)
    with pytest.raises(CheckpointError, match="do not fit"):
        continued(wide, small_config(latent_channels=32), ())


def test_a_model_keeps_its_words_where_the_preset_has_room_for_more():
    model = small_texts_model()
    more = small_config(text=model.config.text | {"vocab_size": 2 * model.config.text["vocab_size"]})
    kept = continued(model, more, ())
    assert kept.config.text == model.config.text
    for name, weight in model.text_tower.state_dict().items():
        assert torch.equal(kept.text_tower.state_dict()[name], weight)
