"""FLOPs of generators against sums over their matrices, and what is trained of them."""

from dataclasses import replace

import torch

from atoken.store.batches import StoreBatch
from generation.dit import DiT
from generation.masked_ar import MaskedAR
from generation.objectives import FlowObjective, MaskedObjective, masked_count

BATCH = StoreBatch(
    torch.zeros(3, 48, 4, 4), torch.zeros(3, 16, 8, dtype=torch.int64), torch.tensor([0, 1, -1]), (), (0, 1, 2), 5
)  # fmt: skip


def products(model, rows_of):
    """FLOPs of one sample in all linear layers, by the rows that each is given."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return sum(2 * rows_of(name) * module.weight.numel() for name, module in layers)


def test_a_flow_is_its_matrices_and_its_attention():
    model = DiT(side=4, channels=48, width=32, depth=3, heads=2, classes=5)
    found = FlowObjective(model).counted(BATCH)
    linear = products(model, lambda name: 1 if "time." in name or "modulation" in name else 16)
    assert found.forward == 3 * (linear + 3 * 4 * 16**2 * 32)
    inputs = 3 * 2 * (16 * model.patchify.weight.numel() + model.time.up.weight.numel())  # which have no gradient
    assert found.backward == 2 * found.forward - inputs
    blocks = products(model.blocks, lambda name: 1 if "modulation" in name else 16)
    assert found.recomputed == 3 * (blocks + 3 * 4 * 16**2 * 32)


def test_a_masked_model_is_its_matrices_and_its_attention_for_every_number_of_masked_positions():
    sizes = {"encoder_size": (32, 2, 2), "decoder_size": (64, 3, 2), "head_size": (16, 2, 2), "buffer": 2}
    model, seen = MaskedAR(side=4, classes=5, **sizes), set()
    objective = MaskedObjective(model)
    for noise in range(12):
        masked = masked_count(16, torch.Generator().manual_seed(noise))
        rows = {"encoder": 18 - masked, "decoder": 18, "bridge": 18 - masked, "embed": 16}

        def rows_of(name, rows=rows, masked=masked):
            part = name.split(".")[0]
            if name.startswith("decoder.blocks.2.") and not name.endswith("qkv"):
                return masked  # the last block gives what is wanted alone
            each = masked if "classifiers" in name or "condition" in name else 8 * masked
            return each if part == "channels" else rows[part]

        decoder = rows["decoder"] * (2 * rows["decoder"] + masked) * 64
        attention = 4 * (2 * rows["encoder"] ** 2 * 32 + decoder + 2 * masked * 8**2 * 16)
        assert objective.counted(replace(BATCH, noise=noise)).forward == 3 * (products(model, rows_of) + attention)
        seen.add(masked)
    assert len(seen) > 2


def test_what_is_counted_takes_no_memory_and_leaves_the_model_as_it_is():
    objective = FlowObjective(DiT(side=4, width=32, depth=1, heads=2, classes=5))
    before = {name: weight.clone() for name, weight in objective.state_dict().items()}
    twin, batch = objective.on_meta(BATCH)
    assert {weight.device.type for weight in twin.state_dict().values()} == {batch.latents.device.type} == {"meta"}
    assert objective.flops(BATCH) > 0
    assert all(torch.equal(weight, before[name]) for name, weight in objective.state_dict().items())


def test_all_is_trained_but_fixed_positions():
    flow = FlowObjective(DiT(side=4, width=32, depth=1, heads=2, classes=5))
    assert list(flow.frozen()) == ["model.positions"]
    masked = MaskedObjective(MaskedAR(side=4, encoder_size=(32, 1, 2), decoder_size=(32, 1, 2), head_size=(16, 1, 2)))
    assert not masked.frozen()
