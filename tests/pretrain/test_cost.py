"""The cost of training: FLOPs against torch's counter, kept bytes against autograd's, ZeRO and pace in closed form."""

from dataclasses import asdict
from math import prod

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from atoken import attention, layers
from atoken.modalities.pixels import grid_coords
from atoken.model import ATokenModel
from atoken.presets import preset
from atoken.pretrain.cost import (
    Parameters,
    activation_bytes,
    gaussian_parts,
    grid_tiles,
    memory,
    model_parts,
    pace,
    parameters,
    tiles,
    training_flops,
)
from atoken.pretrain.curriculum import CODE
from atoken.tokens import SparseTokens
from atoken.train.devices import device_peak, mfu, percent
from tests.model.sizes import small_config, small_model

COUNTER, KEPT, KEPT_ON_CPU = 0.02, 0.08, 0.15  # shares by which a formula may be off what is measured
ODD = {
    f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in [("width", 120), ("heads", 5), ("mlp", 77)]
}
GAUSSIANS = {"gaussian_decoder": {"width": 44, "layers": 3, "heads": 4, "mlp": 60, "neighborhood": 3}}
IMAGES, VIDEOS = [(1, 5, 7), (1, 3, 2), (1, 8, 8)], [(9, 4, 5), (6, 3, 6)]  # time steps, rows, columns


def grids(config, shapes):
    samples = [
        SparseTokens(torch.randn(prod(shape), config.patch_values), grid_coords(*shape), (prod(shape),))
        for shape in shapes
    ]
    return SparseTokens.pack(samples)


def voxels(values, *counts):
    generator = torch.Generator().manual_seed(0)
    cells = [torch.randperm(10**3, generator=generator)[:count] for count in counts]
    xyz = torch.cat([torch.stack([cell // 100, cell // 10 % 10, cell % 10], dim=1) for cell in cells]).int()
    return SparseTokens(torch.randn(len(xyz), values), F.pad(xyz, (1, 0)), counts)


def parts_of(config, tokens, dtype=torch.float32):
    return model_parts(config, tiles(tokens, config.steps(config.tile_frames)), dtype)


# Every output takes part, so that every part of the model has a backward pass.
def run_model(model, tokens):
    encoded, patches = model(tokens)
    return encoded.pooled.sum() + patches.feats.sum()


def run_gaussians(model, tokens):
    return model.gaussian_decoder.outputs(tokens).sum()


def counted(forward):
    """FLOPs forward and backward, by torch's counter of matrix products.

    The kernel that SDPA takes on a CPU is not known to it, so SDPA is spelt out in products.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = forward()
        first = counter.get_total_flops()
        loss.backward()
    return first, counter.get_total_flops() - first


CASES = {
    "images of mixed sizes": ({}, lambda config: grids(config, IMAGES)),
    "videos over several tiles": ({}, lambda config: grids(config, VIDEOS)),
    "videos with a decoder cache": ({"cache_frames": 8}, lambda config: grids(config, VIDEOS)),
    "voxels": ({}, lambda config: voxels(config.patch_values, 150, 90)),
    "odd widths": (ODD, lambda config: grids(config, [(5, 3, 7), (1, 11, 1)])),
}


def made(case):
    """A small model, and tokens for it."""
    if case == "gaussians":
        model = small_model(**GAUSSIANS)
        return model, voxels(model.config.frame_values, 300, 0, 120)
    changes, make = CASES[case]
    model = small_model(**changes)
    return model, make(model.config)


@pytest.mark.parametrize("case", CASES)
def test_flops_of_a_step_are_those_that_torch_counts(case):
    model, tokens = made(case)
    forward, backward = counted(lambda: run_model(model, tokens))
    ours = training_flops(parts_of(model.config, tokens))
    assert ours.forward == pytest.approx(forward, rel=COUNTER)
    assert ours.backward == pytest.approx(backward, rel=COUNTER)


def test_flops_of_the_gaussian_decoder_are_those_that_torch_counts(monkeypatch):
    monkeypatch.setattr(attention, "CAPPED_LOGITS", 1)  # windows one by one: padding is work, but no progress
    model, tokens = made("gaussians")
    forward, backward = counted(lambda: run_gaussians(model, tokens))
    parts = gaussian_parts(model.config, tokens)
    ours, logits = training_flops(parts), sum(part.attention for part in parts) // 2  # made again for the gradient
    assert ours.forward == pytest.approx(forward, rel=COUNTER)
    assert ours.backward + logits == pytest.approx(backward, rel=COUNTER)


@pytest.mark.parametrize(
    "frozen", [("decoder.", "to_patch."), ("encoder.",), ("encoder.inputs.", "encoder.blocks.0."), CODE], ids=str
)
def test_what_is_frozen_has_no_gradient_but_passes_on_the_one_of_what_is_before_it(frozen):
    model, tokens = made("images of mixed sizes")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    _, backward = counted(lambda: run_model(model, tokens))
    parts = parts_of(model.config, tokens)
    assert training_flops(parts, frozen).backward == pytest.approx(backward, rel=COUNTER)
    assert backward < training_flops(parts).backward * (1 - COUNTER)


def test_checkpointing_runs_every_block_forward_once_more_and_mfu_does_not_count_it():
    model, tokens = made("images of mixed sizes")
    model.train().gradient_checkpointing_enable()
    with set_checkpoint_early_stop(False):
        _, backward = counted(lambda: run_model(model, tokens))
    plain, again = (training_flops(parts_of(model.config, tokens), checkpointing=on) for on in (False, True))
    assert again.backward + again.recomputed == pytest.approx(backward, rel=COUNTER)
    assert again.counted == plain.counted == plain.forward + plain.backward


def test_what_only_embeds_runs_no_decoder():
    model, tokens = made("images of mixed sizes")
    forward, _ = counted(lambda: model.encode(tokens).pooled.sum())
    parts = model_parts(model.config, [(n,) for n in tokens.lengths], decode=False)
    assert training_flops(parts).forward == pytest.approx(forward, rel=COUNTER)


def test_samples_without_tokens_cost_nothing():
    config = small_config(cache_frames=8)
    assert model_parts(config, [(64, 32), (), (0, 0), (9,)]) == model_parts(config, [(64, 32), (9,)])


def test_a_sample_cut_in_half_needs_half_the_attention_and_as_much_of_the_rest():
    config = small_config()
    whole, halves, tiled = (model_parts(config, samples) for samples in ([(64,)], [(32,), (32,)], [(32, 32)]))
    for parts in (halves, tiled):
        assert sum(part.attention for part in parts) * 2 == sum(part.attention for part in whole) > 0
        assert [part.linear for part in parts[:-1]] == [part.linear for part in whole[:-1]]


@pytest.mark.parametrize("shape", [(1, 5, 7), (4, 3, 2), (9, 4, 5)])
def test_tiles_of_a_grid_are_those_of_its_tokens(shape):
    config = small_config()
    assert tiles(grids(config, [shape]), 4) == [grid_tiles(shape, 4)]
    assert sum(grid_tiles(shape, 4)) == prod(shape)


def kept_by_autograd(model, run):
    """Bytes of all storage that the backward pass holds, but for the model's own."""
    own, kept = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def one_kernel(self, x):
    """What RMSNorm keeps on a GPU, where it is one kernel: its input and a number for each token, as LayerNorm."""
    return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), None, self.eps)


@pytest.mark.parametrize("case", [*CASES, "gaussians"])
@pytest.mark.parametrize(
    ("dtype", "norm", "share"),
    [
        (torch.float32, layers.RMSNorm.forward, KEPT_ON_CPU),
        (torch.float32, one_kernel, KEPT),
        (torch.bfloat16, one_kernel, KEPT),
    ],
    ids=["fp32 on a CPU", "fp32", "bf16"],
)
def test_activations_are_what_autograd_keeps(monkeypatch, case, dtype, norm, share):
    monkeypatch.setattr(layers.RMSNorm, "forward", norm)
    model, tokens = made(case)
    model.to(dtype).train()
    run, make = (run_gaussians, gaussian_parts) if case == "gaussians" else (run_model, parts_of)
    parts = make(model.config, tokens, dtype)
    kept = kept_by_autograd(model, lambda: run(model, tokens))
    assert activation_bytes(parts) == pytest.approx(kept, rel=share)
    model.gradient_checkpointing_enable()
    entries = kept_by_autograd(model, lambda: run(model, tokens))
    largest = max(part.kept for part in parts if part.entry)
    assert activation_bytes(parts, checkpointing=True) - largest == pytest.approx(entries, rel=share)


def test_nothing_is_kept_before_the_first_part_that_is_trained():
    parts = model_parts(small_config(), [(64,)])
    trained = [part.kept for part in parts if not part.name.startswith("encoder.")]
    assert activation_bytes(parts, ("encoder.",)) == sum(trained)
    assert activation_bytes(parts, ("",)) == activation_bytes(parts, ("",), checkpointing=True) == 0


def test_so400m_has_the_parameters_of_its_layers():
    with torch.device("meta"):
        model = ATokenModel(preset("so400m-c"))
    width, hidden, values, latents, table = 1152, 4304, 3072, 48, 256
    matrices = 4 * width * width + 2 * width * hidden
    biases, norms, gains = 5 * width + hidden, 4 * width, 2 * width
    encoder = values * width + width + table * width + 27 * (matrices + biases + norms) + 2 * width
    decoder = latents * width + table * width + 27 * (matrices + 2 * width + gains) + width
    pool = width + matrices + biases + 2 * width
    ends = 2 * latents * width + values * width + 2
    found = parameters(model, ("encoder.",))
    assert found == Parameters(trained=decoder + pool + ends, frozen=encoder)
    assert found.trained + found.frozen == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stage", range(4))
def test_zero_splits_the_states_then_gradients_then_weights(stage, dtype):
    counts, ranks = Parameters(trained=6400, frozen=1600), 8
    whole, split = (asdict(memory(counts, stage=n, ranks=ranks, activations=77, dtype=dtype)) for n in (0, stage))
    size, master = (2, 4) if dtype == torch.bfloat16 else (4, 0)
    assert list(whole.values()) == [8000 * size, 6400 * size, 6400 * master, 6400 * 8, 6400 * 4, 77]
    shards = ("master", "moments", "average", "gradients", "weights")[: (0, 3, 4, 5)[stage]]
    assert split == {name: value // ranks if name in shards else value for name, value in whole.items()}


def test_a_shard_is_rounded_up_and_one_rank_holds_all():
    counts = Parameters(trained=1001, frozen=0)
    assert memory(counts, stage=3, ranks=1) == memory(counts, stage=0, ranks=1)
    assert memory(counts, stage=3, ranks=4).moments == 251 * 8
    assert memory(counts, stage=3, ranks=4).total == 251 * (2 + 2 + 4 + 8 + 4)


def test_zero_has_no_fourth_stage():
    with pytest.raises(ValueError, match="0 to 3, got 4"):
        memory(Parameters(1, 0), stage=4, ranks=1)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA H20", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_is_known_by_its_name_or_not_at_all(name, rate):
    assert device_peak(name) == rate


def test_mfu_and_pace_undo_each_other():
    going = pace(6e15, 80_000, 1800, peak=1e15, mfu=0.5, devices=4)
    assert (going.seconds_per_step, going.tokens_per_second, going.hours) == pytest.approx((3.0, 80_000 / 3, 1.5))
    assert mfu(6e15, going.seconds_per_step, 1e15, devices=4) == pytest.approx(0.5)
    assert percent(mfu(6e15, 3.0, None)) == "not available"
    assert percent(0.4567) == "45.7%"


def test_a_model_without_a_gaussian_decoder_has_no_parts_of_one():
    with pytest.raises(ValueError, match="no Gaussian decoder"):
        gaussian_parts(small_config(), voxels(768, 5))
