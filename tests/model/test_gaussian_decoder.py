"""The Gaussian decoder: windows against a plain twin, what its outputs mean, batches, saving, published files."""

import json
import re
from itertools import pairwise, product

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from atoken import attention, gaussian_decoder
from atoken.checkpoint import fingerprint, load_folder, load_official
from atoken.errors import CheckpointError
from atoken.gaussian_decoder import (
    LAYOUT,
    SOFTCAP,
    WindowAttention,
    Windows,
    by_name,
    occupancy,
    positions,
    spread,
    to_gaussians,
)
from atoken.model import ATokenConfig, ATokenModel
from atoken.presets import GAUSSIAN_DECODER
from atoken.tokens import SparseTokens
from tests.model.golden import GOLDEN
from tests.model.sizes import small_config, small_model
from tests.tolerances import BF16_FORWARD, BF16_GRADIENT, EXACT, FP32

SIZES = {"width": 48, "layers": 3, "heads": 2, "mlp": 64}
SMALL = SIZES | {"neighborhood": 3}
FIELDS = ("means", "scales", "quats", "opacities", "colors")
OFFICIAL = GOLDEN / "soc-tiny.weights.safetensors", json.loads((GOLDEN / "soc-tiny.config.json").read_text())
ARCH = json.loads((GOLDEN / "gs-tiny.config.json").read_text())


def voxels(*counts, side=40, seed=0, width=768):
    """Random voxels in cubes of ``side`` at the origin."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(side**3, generator=generator)[:count] for count in counts]
    cells = torch.cat(drawn)
    columns = [torch.zeros_like(cells), cells // side**2, cells // side % side, cells % side]
    feats = torch.rand(len(cells), width, generator=generator) * 2 - 1
    return SparseTokens(feats, torch.stack(columns, dim=1).int(), counts)


def decoder(seed=0, **changes):
    return small_model(seed, gaussian_decoder=SIZES | changes).gaussian_decoder


both_kinds = pytest.mark.parametrize("sizes", [SIZES, SMALL], ids=["published", "with a neighborhood"])


def near(one, other):
    for field in FIELDS:
        torch.testing.assert_close(getattr(one, field), getattr(other, field), atol=FP32, rtol=FP32)


def plain_windows(layer, x_ND, tokens, shift):
    """Windowed attention once more, as its definition: loop over samples and windows, all logits of each."""
    k = x_ND.shape[1] // layer.heads
    out = torch.zeros_like(x_ND)
    q, k_, v = (layer.qkv.weight @ x_ND.T).T.unflatten(1, (3, layer.heads, k)).unbind(1)
    for sample, x, y, z in product(range(len(tokens.lengths)), *[range(10)] * 3):
        cell = torch.tensor([x, y, z])
        inside = ((tokens.coords[:, 1:] + shift).div(8, rounding_mode="floor") == cell).all(1)
        rows = (inside & (tokens.sample_N == sample)).nonzero()[:, 0]
        if len(rows):
            logits = torch.einsum("qhk,nhk->hqn", q[rows], k_[rows]) / k**0.5
            weights = (SOFTCAP * (logits / SOFTCAP).tanh()).softmax(-1)
            out = out.index_add(0, rows, torch.einsum("hqn,nhk->qhk", weights, v[rows]).flatten(1))
    return (layer.out.weight @ out.T).T


@pytest.mark.parametrize("logits", [attention.CAPPED_LOGITS, 200])
@pytest.mark.parametrize("shift", [0, 4])
def test_windowed_attention_equals_the_plain_twin_forward_and_gradient(shift, logits, monkeypatch):
    monkeypatch.setattr(attention, "CAPPED_LOGITS", logits)
    tokens, results = voxels(200, 0, 90, side=20, width=48), []
    torch.manual_seed(0)
    layer = WindowAttention(48, 2)
    for attend in (lambda x: layer(x, Windows.of(tokens, shift)), lambda x: plain_windows(layer, x, tokens, shift)):
        x_ND = (tokens.feats * 8).requires_grad_()  # large enough for the cap to bite
        layer.zero_grad()
        out = attend(x_ND)
        out.square().mean().backward()
        results.append([out, x_ND.grad, layer.qkv.weight.grad.clone(), layer.out.weight.grad.clone()])
    for one, twin in zip(*results, strict=True):
        torch.testing.assert_close(one, twin, atol=FP32, rtol=FP32)


def test_batches_of_windows_hold_every_window_once_and_keep_to_the_bound(monkeypatch):
    monkeypatch.setattr(attention, "CAPPED_LOGITS", 5000)
    bounds = Windows.of(voxels(3000, 500, side=30), 4).bounds
    batches = list(attention._padded_batches(bounds, bounds, heads=2))
    assert len(batches) > 10
    assert sorted(span for queries, _ in batches for span in queries) == list(pairwise(bounds))
    for queries, keys in batches:
        longest = max(end - start for start, end in queries)
        assert queries == keys
        assert len(queries) == 1 or len(queries) * longest**2 * 2 <= 5000


def test_no_logits_are_kept_for_the_gradient():
    q_NHK = torch.randn(1024, 2, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attention.varlen_attention(q_NHK, q_NHK, q_NHK, (0, 512, 1024), softcap=SOFTCAP).sum().backward()
    assert 0 < max(kept) <= q_NHK.numel()  # there are 2 x 2 x 512 x 512 logits


def test_windows_are_cubes_of_8_of_one_sample_and_the_order_is_undone():
    tokens = voxels(300, 200, side=60)
    for shift in (0, 4):
        windows = Windows.of(tokens, shift)
        assert torch.equal(windows.order[windows.back], torch.arange(500))
        cells = torch.cat([tokens.sample_N[:, None], (tokens.coords[:, 1:] + shift) // 8], dim=1)[windows.order]
        groups = [cells[start:end] for start, end in pairwise(windows.bounds)]
        assert all((group == group[0]).all() for group in groups)
        assert len({tuple(group[0].tolist()) for group in groups}) == len(groups)


@both_kinds
def test_alone_equals_in_a_batch_and_twice_is_the_same(sizes):
    model, batch = decoder(**sizes), voxels(300, 1, 0, 120)
    with torch.no_grad():
        together, again = model(batch), model(batch)
        for sample, one, same in zip(batch.unpack(), together, again, strict=True):
            near(model(sample)[0], one)
            assert all(torch.equal(getattr(one, field), getattr(same, field)) for field in FIELDS)
            assert len(one.means) == 32 * len(sample.feats)


@both_kinds
def test_the_order_of_voxels_does_not_matter(sizes):
    model, sample = decoder(**sizes), voxels(150)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        shuffled = model.outputs(SparseTokens(sample.feats[order], sample.coords[order], (150,)))
        torch.testing.assert_close(shuffled, model.outputs(sample)[order], atol=FP32, rtol=FP32)


@both_kinds
def test_moving_by_a_window_changes_the_outputs_only_through_the_positions(sizes, monkeypatch):
    model, sample = decoder(**sizes), voxels(300, side=30)
    with torch.no_grad():
        original = model.outputs(sample)
        for distance, same in ((8, True), (4, False)):
            moved = sample.coords + torch.tensor([0, distance, 2 * distance, 0], dtype=torch.int32)
            moved = SparseTokens(sample.feats, moved, sample.lengths)
            assert not torch.allclose(model.outputs(moved), original, atol=1e-3)
            with monkeypatch.context() as patch:
                patch.setattr(gaussian_decoder, "positions", lambda _, width: positions(sample.coords[:, 1:], width))
                assert torch.equal(model.outputs(moved), original) == same


def test_occupancy_is_who_else_of_the_sample_is_in_the_cube():
    batch = voxels(300, 0, 200, side=8)
    batch = SparseTokens(batch.feats, batch.coords + torch.tensor([0, 56, 0, 30], dtype=torch.int32), batch.lengths)
    for side in (1, 3, 5):
        found = occupancy(batch, side)
        assert found.shape == (500, side**3)
        assert found[:, side**3 // 2].all()  # the voxel itself
        for sample, one in zip(batch.unpack(), found.split(batch.lengths), strict=True):
            there = {tuple(cell) for cell in sample.coords[:, 1:].tolist()}
            steps = list(product(range(-(side // 2), side // 2 + 1), repeat=3))
            for cell, row in zip(sample.coords[:, 1:].tolist(), one.tolist(), strict=True):
                assert row == [(cell[0] + x, cell[1] + y, cell[2] + z) in there for x, y, z in steps]


def test_a_voxel_reads_its_neighbors_across_the_borders_of_windows():
    first, second = torch.tensor([[0, 7, 3, 3], [0, 8, 3, 3]], dtype=torch.int32).split(1)
    far = second + torch.tensor([0, 24, 0, 0], dtype=torch.int32)
    feats, same = torch.zeros(2, 768), {}
    for name, sizes in {"published": SIZES, "neighborhood": SMALL}.items():
        model = decoder(**sizes | {"layers": 1})
        with torch.no_grad():
            near_one, far_one = (
                model.outputs(SparseTokens(feats, torch.cat([first, other]), (2,)))[0] for other in (second, far)
            )
        same[name] = torch.equal(near_one, far_one)
    assert same == {"published": True, "neighborhood": False}


def test_positions_are_sines_and_cosines_of_each_axis():
    coords = torch.tensor([[0, 5, 63], [7, 0, 1]])
    table = positions(coords, 26)
    assert table.shape == (2, 26)
    assert not table[:, 24:].any()
    for axis, k in product(range(3), range(4)):
        angle = coords[:, axis].double() * 10_000.0 ** (-k / 4)
        torch.testing.assert_close(table[:, 8 * axis + k].double(), angle.sin(), atol=FP32, rtol=0)
        torch.testing.assert_close(table[:, 8 * axis + 4 + k].double(), angle.cos(), atol=FP32, rtol=0)


@both_kinds
def test_a_batch_without_voxels_gives_gaussians_without_members(sizes):
    for lengths in ((0, 0), (0,)):
        for gaussians in decoder(**sizes)(
            SparseTokens(torch.zeros(0, 768), torch.zeros(0, 4, dtype=torch.int32), lengths)
        ):
            assert [len(getattr(gaussians, field)) for field in FIELDS] == [0] * 5
            assert gaussians.quats.shape == (0, 4)


def test_a_voxel_outside_the_grid_is_refused():
    for x in (-1, 64):
        sample = SparseTokens(torch.zeros(1, 768), torch.tensor([[0, 3, x, 3]], dtype=torch.int32), (1,))
        with pytest.raises(ValueError, match=r"\[0, 64\)"):
            decoder()(sample)


def test_a_new_decoder_starts_with_small_gaussians_spread_over_the_voxel():
    torch.manual_seed(0)
    model = AutoModel.from_config(small_config(gaussian_decoder=SIZES)).gaussian_decoder
    sample = voxels(20)
    with torch.no_grad():
        (gaussians,) = model(sample)
    centres = (sample.coords[:, None, 1:].expand(-1, 32, -1).flatten(0, 1) + 0.5) / 64 - 0.5
    points = torch.tensor(spread()).tanh() * 1.5  # of the voxel, in [-1, 1]
    torch.testing.assert_close(points[:4, 1], torch.tensor([-1.0, 0.0, -0.5, 0.5]), atol=FP32, rtol=0)  # base 2
    torch.testing.assert_close(gaussians.means - centres, points.repeat(20, 1) / 128, atol=FP32, rtol=0)
    assert gaussians.scales.sub((4e-3**2 + 9e-4**2) ** 0.5).abs().max() <= FP32
    assert gaussians.opacities.sub(0.1).abs().max() <= FP32
    assert torch.equal(gaussians.quats, torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(640, 4))
    assert torch.equal(gaussians.colors, torch.full((640, 3), 0.5))


def test_gaussians_of_any_outputs_keep_to_their_ranges():
    generator = torch.Generator().manual_seed(0)
    outputs, coords = torch.randn(50, 448, generator=generator) * 20, voxels(50, side=64).coords[:, 1:]
    gaussians = to_gaussians(outputs, coords)
    centres = ((coords + 0.5) / 64 - 0.5)[:, None].expand(-1, 32, -1).flatten(0, 1)
    assert (gaussians.means - centres).abs().max() <= 0.75 / 64 + FP32
    assert gaussians.scales.min() >= 9e-4 - FP32
    assert ((gaussians.opacities >= 0) & (gaussians.opacities <= 1)).all()
    torch.testing.assert_close(gaussians.quats.norm(dim=1), torch.ones(1600), atol=FP32, rtol=0)
    named = by_name(outputs)
    assert {name: part.shape[2] for name, part in named.items()} == LAYOUT
    assert torch.equal(torch.cat([part.flatten(1) for part in named.values()], dim=1), outputs)


def test_bf16_stays_near_fp32():
    sample, results = voxels(300, side=24), []
    for dtype in (torch.float32, torch.bfloat16):
        model = decoder().to(dtype)
        outputs = model.outputs(sample)
        outputs.square().mean().backward()
        results.append((outputs, torch.cat([p.grad.float().flatten() for p in model.parameters()])))
    (exact, exact_gradient), (outputs, gradient) = results
    assert outputs.dtype == torch.float32
    assert (outputs - exact).norm() / exact.norm() <= BF16_FORWARD
    assert (gradient - exact_gradient).norm() / exact_gradient.norm() <= BF16_GRADIENT


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = small_model(gaussian_decoder=SIZES).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.gaussian_decoder.outputs(voxels(100, 40)).square().mean().backward()
        gradients.append([p.grad for p in model.gaussian_decoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=EXACT, rtol=0)


def test_saving_and_loading_gives_the_same_model_bit_for_bit(tmp_path):
    model, sample = small_model(gaussian_decoder=SMALL), voxels(60)
    model.save_pretrained(tmp_path)
    for loaded in (load_folder(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert loaded.config.gaussian_decoder == SMALL
        assert fingerprint(loaded) == fingerprint(model)
        with torch.no_grad():
            assert torch.equal(loaded.gaussian_decoder.outputs(sample), model.gaussian_decoder.outputs(sample))
            one, other = loaded.gaussian_decoder(sample)[0], model.gaussian_decoder(sample)[0]
        assert all(torch.equal(getattr(one, field), getattr(other, field)) for field in FIELDS)


def test_a_trained_model_can_be_given_a_decoder_and_keeps_its_weights(tmp_path):
    model, sample = small_model(), voxels(10)
    model.save_pretrained(tmp_path)
    grown = ATokenModel.from_pretrained(tmp_path, gaussian_decoder=SIZES)
    assert all(torch.equal(value, grown.state_dict()[key]) for key, value in model.state_dict().items())
    assert not grown.gaussian_decoder.outputs(sample).any()
    assert grown.gaussian_decoder.inputs.weight.std() > 0


def test_the_gaussian_decoder_counts_for_the_fingerprint_and_is_off_by_default():
    model = small_model(gaussian_decoder=SIZES)
    assert small_model().gaussian_decoder is None
    assert fingerprint(small_model()) != fingerprint(model)
    before = fingerprint(model)
    model.gaussian_decoder.out.bias.data[7] += 0.1
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"width": 48},
        SIZES | {"heads": 5},
        SIZES | {"heads": 0},
        SIZES | {"odd": 1},
        SIZES | {"neighborhood": 4},
        SIZES | {"neighborhood": -1},
    ],
)
def test_wrong_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="width \\(a multiple of heads\\), layers, heads, mlp"):
        ATokenConfig(gaussian_decoder=sizes)


def published(**changes):
    return load_file(GOLDEN / "gs-tiny.weights.safetensors") | changes


def test_published_files_load_without_the_training_loss(tmp_path):
    save_file(published(**{"lpips_loss.net.slice1.0.weight": torch.zeros(3)}), tmp_path / "gs.safetensors")
    block = {"class_name": "models.pretrained.SLatGaussianDecoderTrain", **ARCH}
    (tmp_path / "gs.yaml").write_text(yaml.safe_dump({"model": block}))
    from_files = load_official(*OFFICIAL, tmp_path / "gs.safetensors")  # and the YAML next to it
    assert fingerprint(load_official(*OFFICIAL, published(), tmp_path / "gs.yaml")) == fingerprint(from_files)
    from_memory = load_official(*OFFICIAL, published(), ARCH)
    assert from_files.config.gaussian_decoder == {"width": 48, "layers": 2, "heads": 1, "mlp": 64}
    assert fingerprint(from_files) == fingerprint(from_memory)
    assert load_official(*OFFICIAL).gaussian_decoder is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"odd.weight": torch.zeros(1)}, r"unexpected gaussian_decoder\.odd\.weight"),
        ({"out_layer.bias": torch.zeros(3)}, r"gaussian_decoder\.out\.bias is \(3,\), not \(448,\)"),
        ({"offset_perturbation": torch.zeros(32, 3)}, "offset_perturbation"),
    ],
)
def test_published_weights_that_do_not_fit_are_refused_by_name(changes, words):
    with pytest.raises(CheckpointError, match=words):
        load_official(*OFFICIAL, published(**changes), ARCH)
    missing = published()
    del missing["blocks.1.attn.to_qkv.weight"]
    with pytest.raises(CheckpointError, match=r"missing gaussian_decoder\.blocks\.1\.attention\.qkv\.weight"):
        load_official(*OFFICIAL, missing, ARCH)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ARCH | {"window_size": 16}, "window_size"),
        (ARCH | {"representation_config": ARCH["representation_config"] | {"voxel_size": 1.0}}, "voxel_size"),
        (ARCH | {"num_heads": 5}, "multiple of heads"),
        ({}, "lacks 'model_channels'"),
        (None, "need their configuration"),
    ],
)
def test_a_published_configuration_we_cannot_honour_is_refused(config, words):
    with pytest.raises(CheckpointError, match=words):
        load_official(*OFFICIAL, published(), config)
    with pytest.raises(CheckpointError, match="but no weights"):
        load_official(*OFFICIAL, None, ARCH)


def test_published_keys_at_full_size_map_onto_the_released_sizes():
    width, layers, heads, mlp = GAUSSIAN_DECODER.values()
    full = {48: width, 144: 3 * width, 64: mlp, 768: 768, 448: 448}  # of each size in the small file
    state = {}
    for key, value in published().items():
        kept = key == "offset_perturbation"
        large = value if kept else torch.empty([full[size] for size in value.shape], device="meta")
        state |= {re.sub(r"blocks\.0", f"blocks.{i}", key): large for i in range(layers)}
    sizes = {"model_channels": width, "num_blocks": layers, "num_heads": heads, "mlp_channels": mlp}
    model = load_official(*OFFICIAL, state, ARCH | sizes)
    assert model.config.gaussian_decoder == GAUSSIAN_DECODER
    assert model.gaussian_decoder.blocks[11].mlp.up.weight.shape == (3072, 768)


def test_the_last_norm_has_no_gain_and_epsilon_1e_5(monkeypatch):
    monkeypatch.setattr(gaussian_decoder, "positions", lambda coords, width: torch.zeros(len(coords), width))
    model, sample = decoder(), voxels(5)
    model.blocks = torch.nn.ModuleList()
    with torch.no_grad():
        model.inputs.weight *= 1e-3  # so small that epsilon counts
        x_ND = sample.feats @ model.inputs.weight.T
        unit_ND = (x_ND - x_ND.mean(1, keepdim=True)) / (x_ND.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        expected = unit_ND @ model.out.weight.T + model.out.bias
        torch.testing.assert_close(model.outputs(sample), expected, atol=FP32, rtol=FP32)
