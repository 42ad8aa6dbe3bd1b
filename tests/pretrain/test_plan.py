"""A plan is what the network costs on the micro-batches that ``packing.py`` makes, summed as a step sums them."""

from dataclasses import replace

import pytest

from atoken.errors import AtokenError
from atoken.presets import preset
from atoken.pretrain.cost import Network, grids, reads
from atoken.pretrain.curriculum import ALIGNMENT, CURRICULA, NANO_TASKS, PATCHES
from atoken.pretrain.packing import budgets
from atoken.pretrain.plan import plan
from atoken.pretrain.stages import Stage, Task
from atoken.train.cost import activations, count, parameters
from atoken.train.recipe import Recipe
from tests.pretrain.tiny import tiny_preset  # noqa: F401 - a fixture

TASKS = {
    "image": Task("image", PATCHES, tokens=96, micro_batches=4, patches=(4, 32)),
    "video": Task("video", PATCHES, tokens=128, micro_batches=2, patches=(4, 16), length=(3, 6)),  # over several tiles
    "match": Task("image", ALIGNMENT, tokens=64, micro_batches=2, patches=(16, 16)),
}
TINY = Stage(
    "tiny", "tiny", TASKS, {"image": 2, "video": 1}, auxiliary=("match",), frozen=("encoder.inputs.",),
    recipe=Recipe(steps=90, checkpointing=True, mixed_precision=False),
)  # fmt: skip
SHARES = {"image": 2 / 3, "video": 1 / 3, "match": 1.0}


def test_a_task_costs_what_its_micro_batches_cost_in_the_mean(monkeypatch):
    monkeypatch.setattr("atoken.pretrain.plan.MICRO_BATCHES", 3)
    made, config, kept = plan(TINY), preset("tiny"), []
    for name, task in TASKS.items():
        network, sums = Network(config, TINY.frozen, reads(task)), [0, 0, 0, 0]
        for number in range(3):
            found = budgets(task, 0, name, number)
            values = config.patch_values if task.modality == "video" else config.frame_values
            batch = grids([(budget.length, budget.patches, 1) for budget in found], values)
            forward, backward, recomputed = count(network, batch, network.blocks())
            numbers = len(batch.lengths), len(batch.feats), forward + backward, recomputed
            sums = [total + each for total, each in zip(sums, numbers, strict=True)]
            kept.append(activations(network, batch, network.blocks()))
        means = [task.micro_batches * total / 3 for total in sums]
        assert made.loads[name] == pytest.approx((SHARES[name], task.micro_batches, *means), rel=1e-12)
    assert made.activations == pytest.approx(max(kept), rel=0.1)  # of one of those with the most tokens
    assert (made.trained, made.frozen) == parameters(network)


def test_without_checkpointing_nothing_is_computed_again_and_more_is_kept():
    plain, again = (plan(replace(TINY, recipe=replace(TINY.recipe, checkpointing=on))) for on in (False, True))
    assert (plain.of_step("recomputed"), plain.of_step("flops")) == (0, again.of_step("flops"))
    assert plain.activations > again.activations


def test_a_crop_of_an_asset_is_as_large_as_its_micro_batch_and_its_gaussians_lie_on_a_sheet():
    stage = replace(CURRICULA["nano"]["1"], tasks=NANO_TASKS, mixture={"surface": 1, "crop": 1}, auxiliary=())
    surface, crop = (plan(stage).loads[name] for name in ("surface", "crop"))
    assert (surface.samples, surface.tokens, crop.samples, crop.tokens) == (1, 2048, 1, 1024)
    # Windows of 8 x 8 voxels in the sheet of 32 x 64, and with a shift of 4 some of half the width or height. The stage
    # freezes the Gaussian decoder, so that there is no backward pass.
    pairs = 2 * 32 * 64**2 + 2 * (2 * 4**2 + 3 * 8**2) * (2 * 4**2 + 7 * 8**2)
    weights = 192 * (768 + 5**3 + 4 * (4 * 192 + 2 * 768) + 448)
    assert surface.flops == 2 * 2048 * weights + 4 * 192 * pairs


def test_micro_batches_that_gpus_cannot_share_are_refused():
    with pytest.raises(AtokenError, match="4 micro-batches of the task image cannot be shared out evenly to 3 ranks"):
        plan(TINY, gpus=3)
