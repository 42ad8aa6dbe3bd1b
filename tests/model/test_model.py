"""The network: alone = in a batch, tiles, cache, checkpointing, saving, sizes."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel

from atoken.gaussian_decoder import OutputLayer
from atoken.layers import QKNorm
from atoken.model import ATokenConfig, ATokenModel
from atoken.patches import grid_coords
from atoken.presets import PRESETS, preset
from atoken.tokens import SparseTokens
from tests.model.golden import distance
from tests.model.sizes import small_config, small_model
from tests.tolerances import FP32, ROUNDING_MARGIN

SHAPES = [(1, 3, 2), (5, 2, 2), (1, 1, 1), (9, 1, 3)]
FSQ_LEVELS = (4,) * 6


def patches(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coords = [grid_coords(*shape) for shape in shapes]
    feats = torch.rand(sum(map(len, coords)), 3072, generator=generator) * 2 - 1
    return SparseTokens(feats, torch.cat(coords), tuple(map(len, coords)))


@pytest.mark.parametrize("cache_frames", [0, 4])
@pytest.mark.parametrize("levels", [None, FSQ_LEVELS])
def test_alone_equals_in_a_batch(levels, cache_frames):
    model = small_model(fsq_levels=levels, cache_frames=cache_frames)
    batch = patches(*SHAPES)
    with torch.no_grad():
        together = model.encode(batch)
        decoded = model.decode(together.latents)
        means = together.posterior.mean.split(batch.lengths)
        for i, sample in enumerate(batch.unpack()):
            alone = model.encode(sample)
            torch.testing.assert_close(alone.posterior.mean, means[i], atol=FP32, rtol=FP32)
            torch.testing.assert_close(alone.pooled[0], together.pooled[i], atol=FP32, rtol=FP32)
            if levels:
                away = away_from_boundaries(model, alone.posterior.mean)
                one, changed = alone.codes, together.codes.split(batch.lengths)[i]
                assert torch.equal(one[away], changed[away])
            same_latents = sample.with_feats(together.latents.unpack()[i].feats)
            torch.testing.assert_close(
                model.decode(same_latents).feats, decoded.unpack()[i].feats, atol=FP32, rtol=FP32
            )


def away_from_boundaries(model, mean):
    return (distance(model.quantiser, mean) > ROUNDING_MARGIN).unflatten(1, (-1, 6)).all(-1)


def test_twice_is_the_same_and_an_empty_sample_pools_to_zero():
    model, batch = small_model(), patches((2, 2, 2))
    batch = SparseTokens(batch.feats, batch.coords, (0, 8, 0))
    with torch.no_grad():
        first, second = model.encode(batch), model.encode(batch)
    assert torch.equal(first.latents.feats, second.latents.feats)
    assert torch.equal(first.pooled, second.pooled)
    assert not first.pooled[[0, 2]].any()
    assert first.pooled[1].any()


def test_tiles_do_not_see_one_another_but_the_pooled_vector_sees_them_all():
    model, batch = small_model(), patches((6, 2, 2))
    other = SparseTokens(batch.feats.clone(), batch.coords, batch.lengths)
    other.feats[16:] += 0.5
    with torch.no_grad():
        one, changed = model.encode(batch), model.encode(other)
    assert torch.equal(one.latents.feats[:16], changed.latents.feats[:16])
    assert not torch.allclose(one.latents.feats[16:], changed.latents.feats[16:])
    assert not torch.allclose(one.pooled, changed.pooled)


def test_time_is_counted_from_each_samples_first_step():
    model, batch = small_model(), patches((3, 2, 2))
    later = SparseTokens(batch.feats, batch.coords + torch.tensor([7, 0, 0, 0], dtype=torch.int32), batch.lengths)
    with torch.no_grad():
        assert torch.equal(model.encode(batch).latents.feats, model.encode(later).latents.feats)


def test_batch_mates_that_begin_at_different_steps_are_what_they_are_alone():
    model, batch = small_model(), patches((3, 2, 2), (6, 1, 2), (1, 2, 1))
    starts = torch.tensor([7, 0, 4], dtype=torch.int32)[batch.sample_N]
    later = SparseTokens(batch.feats, batch.coords + starts[:, None] * torch.tensor([1, 0, 0, 0]), batch.lengths)
    with torch.no_grad():
        expected, found = model.encode(batch), model.encode(later)
        assert torch.equal(found.latents.feats, expected.latents.feats)
        assert torch.equal(found.pooled, expected.pooled)
        assert torch.equal(model.decode(found.latents).feats, model.decode(expected.latents).feats)


def test_the_order_of_tokens_in_a_sample_does_not_matter():
    model, batch = small_model(), patches((6, 2, 3))
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    mixed = SparseTokens(batch.feats[order], batch.coords[order], batch.lengths)
    with torch.no_grad():
        for run in (
            lambda t: model.encode(t).latents.feats,
            lambda t: model.decode(t.with_feats(t.feats[:, :48])).feats,
        ):
            torch.testing.assert_close(run(mixed), run(batch)[order], atol=FP32, rtol=FP32)


@pytest.mark.parametrize("cache_frames", [4, 8, 24])
def test_decoding_in_pieces_with_the_cache_equals_decoding_at_once(cache_frames):
    model, latents = small_model(cache_frames=cache_frames), patches((11, 2, 2))
    latents = latents.with_feats(latents.feats[:, :48])
    with torch.no_grad():
        whole = model.decode(latents).feats
        cache, pieces = model.tile_cache(), []
        for first, last in ((0, 16), (16, 32), (32, 44)):
            piece = SparseTokens(latents.feats[first:last], latents.coords[first:last], (last - first,))
            pieces.append(model.decode(piece, cache=cache).feats)
    torch.testing.assert_close(torch.cat(pieces), whole, atol=FP32, rtol=FP32)
    with torch.no_grad():
        assert not torch.allclose(model.decode(latents, cache_frames=0).feats, whole)


@pytest.mark.parametrize(("steps", "cached"), [(1, 1), (2, 2), (1, 3), (2, 4), (2, 1)])
def test_the_cache_is_the_last_steps_of_one_longer_attention(steps, cached):
    """One decoder layer: a tile with cached steps computes what the plain decoder computes on both together."""
    model = small_model(decoder_layers=1, position_grid=16)
    latents = patches((6, 2, 2))
    latents = latents.with_feats(latents.feats[:, :48])
    with torch.no_grad():
        in_turn = model.decode(latents, tile_frames=4 * steps, cache_frames=4 * cached).feats
        for tile in range(0, 6, steps):
            seen = slice(4 * max(tile - cached, 0), 4 * (tile + steps))
            part = SparseTokens(latents.feats[seen], latents.coords[seen], (seen.stop - seen.start,))
            together = model.decode(part, tile_frames=24, cache_frames=0).feats
            torch.testing.assert_close(in_turn[4 * tile : seen.stop], together[-4 * steps :], atol=FP32, rtol=FP32)


def test_no_gradient_reaches_an_earlier_tile_through_the_cache():
    """The cache is detached (paper section 3.4), else the graph of a long video would never be freed."""
    model, latents = small_model(cache_frames=4), patches((3, 2, 2))
    latents = latents.with_feats(latents.feats[:, :48].clone().requires_grad_())
    decoded = model.decode(latents, tile_frames=4).feats
    for tile in range(3):
        (gradient,) = torch.autograd.grad(decoded[4 * tile :][:4].sum(), latents.feats, retain_graph=True)
        reached = gradient.abs().sum(1).view(3, 4).ne(0).any(1)
        assert reached.tolist() == [other == tile for other in range(3)]
    cache = model.tile_cache()
    model.decode(latents, tile_frames=4, cache=cache)
    assert not any(kept.requires_grad for layer in cache.layers for kept in (layer.keys, layer.values))


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for switched_on in (False, True):
        model = small_model().train()
        passes = []
        for stack in (model.encoder, model.decoder):
            stack.blocks[0].mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        if switched_on:
            model.gradient_checkpointing_enable()
        encoded, decoded = model(patches((2, 2, 2)))
        (decoded.feats.square().mean() + encoded.posterior.kl().mean()).backward()
        assert len(passes) == (4 if switched_on else 2)  # activations are computed again for the gradient
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=FP32, rtol=FP32)


def test_save_and_load_are_bit_equal_in_weights_and_results(tmp_path):
    model, batch = small_model(), patches((5, 2, 3))
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    with torch.no_grad():
        expected = model(batch)
        for loaded in (ATokenModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
            assert isinstance(loaded, ATokenModel)
            for name, value in model.state_dict().items():
                assert torch.equal(loaded.state_dict()[name], value), name
            encoded, decoded = loaded(batch)
            assert torch.equal(encoded.pooled, expected[0].pooled)
            assert torch.equal(decoded.feats, expected[1].feats)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ATokenConfig)


def test_shards_above_the_limit_and_other_dtypes(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    half = ATokenModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    for name, value in half.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].bfloat16()), name
    with torch.no_grad():
        encoded, _ = half(patches((1, 2, 2)))
    assert encoded.posterior.mean.dtype == torch.float32


def test_so400m_on_the_meta_device_takes_no_memory_and_has_the_published_size():
    with torch.device("meta"):
        model = ATokenModel(preset("so400m-c"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert abs(count / 1e6 - 845.7) < 0.1


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name, tmp_path):
    config = preset(name)
    config.save_pretrained(tmp_path)
    assert ATokenConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_width": 100}, "encoder_width 100"),
        ({"decoder_heads": 5}, "decoder_heads 5"),
        ({"latent_channels": 50, "fsq_levels": FSQ_LEVELS}, "latent_channels 50"),
        ({"tile_frames": 10}, "10 frames"),
    ],
)
def test_impossible_sizes_are_refused_with_both_numbers(changes, words):
    with pytest.raises(ValueError, match=words):
        small_config(**changes)


def test_every_parameter_starts_as_the_table_of_init_weights_says():
    torch.manual_seed(0)
    sizes = {"width": 48, "layers": 2, "heads": 4, "mlp": 64}
    model = ATokenModel(small_config(gaussian_decoder=sizes, logit_scale_init=2.0, logit_bias_init=-3.0))
    expected = {"logit_scale": 2.0, "logit_bias": -3.0}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
            expected[f"{name}.weight"] = 1.0
        if isinstance(module, QKNorm):
            expected[f"{name}.gain_HK"] = 1.0
        if isinstance(module, OutputLayer):
            expected[f"{name}.weight"] = 0.0
    for name, parameter in model.named_parameters():
        if name in expected or name.endswith(".bias"):
            assert (parameter == expected.get(name, 0.0)).all(), name
            continue
        drawn = parameter[:, :768] if name == "encoder.inputs.weight" else parameter
        assert abs(drawn.mean()) < 5 * 0.02 / drawn.numel() ** 0.5, name
        assert abs(drawn.std() / 0.02 - 1) < 5 / (2 * drawn.numel()) ** 0.5, name
    assert not model.encoder.inputs.weight[:, 768:].any()  # frames 1 to 3
