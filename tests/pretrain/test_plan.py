"""A plan is what ``cost.py`` says of the micro-batches that ``packing.py`` makes, summed as a step sums them."""

from dataclasses import asdict, replace

import pytest
import torch

from atoken.errors import AtokenError
from atoken.model import ATokenModel
from atoken.presets import preset
from atoken.pretrain import cost
from atoken.pretrain.curriculum import ALIGNMENT, CURRICULA, NANO_TASKS, PATCHES, UNUSED
from atoken.pretrain.packing import budgets
from atoken.pretrain.plan import MICRO_BATCHES, plan
from atoken.pretrain.stages import Stage, Task
from atoken.tokens import SparseTokens
from atoken.train.recipe import Recipe

TASKS = {
    "image": Task("image", PATCHES, tokens=96, micro_batches=4, patches=(4, 32)),
    "video": Task(
        "video", PATCHES, tokens=128, micro_batches=2, patches=(4, 16), length=(3, 6)
    ),  # over tiles of 4 time steps
    "match": Task("image", ALIGNMENT, tokens=64, micro_batches=2, patches=(16, 16)),
}
TINY = Stage(
    "tiny",
    "nano",
    TASKS,
    {"image": 2, "video": 1},
    auxiliary=("match",),
    frozen=("gaussian_decoder.",),
    recipe=Recipe(steps=90),
)
EVERY = [(name, stage) for name, stages in CURRICULA.items() for stage in stages.values()]


def planned(stage=TINY, gpus=1, gpu="H100", mfu=0.45):
    return plan(stage, gpus=gpus, gpu=gpu, mfu=mfu)


def micro_batches_of(name, stage=TINY):
    """Parts of the first micro-batches of a task; an image is one tile, a video is cut after 4 time steps."""
    config = preset(stage.preset)
    dtype = torch.bfloat16 if stage.recipe.mixed_precision else torch.float32
    for number in range(MICRO_BATCHES):
        found = budgets(stage.tasks[name], stage.recipe.seed, name, number)
        lengths = [(min(budget.length, 4), max(budget.length - 4, 0)) for budget in found]
        sizes = [
            tuple(steps * budget.patches for steps in two if steps) for two, budget in zip(lengths, found, strict=True)
        ]
        yield sizes, cost.model_parts(config, sizes, dtype, decode=name != "match")


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_task_costs_what_its_micro_batches_cost_in_the_mean(name, checkpointing):
    load = planned(replace(TINY, recipe=Recipe(checkpointing=checkpointing))).loads[name]
    sizes, parts = zip(*micro_batches_of(name), strict=True)
    flops = [cost.training_flops(of_micro_batch, TINY.frozen, checkpointing=checkpointing) for of_micro_batch in parts]
    kept = [cost.activation_bytes(of_micro_batch, TINY.frozen, checkpointing=checkpointing) for of_micro_batch in parts]
    assert load.samples * MICRO_BATCHES == sum(map(len, sizes))
    assert load.tokens * MICRO_BATCHES == sum(sum(map(sum, of_micro_batch)) for of_micro_batch in sizes)
    assert load.flops == pytest.approx(sum(each.counted for each in flops) / MICRO_BATCHES, rel=1e-12)
    assert load.recomputed == pytest.approx(sum(each.recomputed for each in flops) / MICRO_BATCHES, rel=1e-12)
    assert (load.recomputed > 0) == checkpointing
    assert load.activations == max(kept)


def test_a_step_is_its_task_of_the_cycle_and_those_beside():
    made = planned()
    image, video, match = (made.loads[name] for name in TASKS)
    for column in ("samples", "tokens", "flops", "recomputed", "activations"):
        of_cycle = sum(
            made.loads[name].task.micro_batches * getattr(made.loads[name], column)
            for step in range(3)
            for name, _ in TINY.tasks_of(step)
        )
        assert made.of_step(column) == pytest.approx(of_cycle / 3, rel=1e-12)
    assert (image.share, video.share, match.share) == (2 / 3, 1 / 3, 1.0)


def test_time_is_work_over_speed_and_more_gpus_do_not_change_the_work():
    one, two = planned(), planned(gpus=2, gpu="A100", mfu=0.3)
    assert one.pace.hours * 3600 == pytest.approx(90 * one.of_step("flops") / (0.45 * 989e12), rel=1e-12)
    assert two.pace.seconds_per_step == pytest.approx(one.of_step("flops") / (2 * 0.3 * 312e12), rel=1e-12)
    assert one.pace.tokens_per_second * one.pace.seconds_per_step == pytest.approx(one.of_step("tokens"), abs=0.5)


@pytest.mark.parametrize("gpus", [1, 2])
def test_memory_is_that_of_all_parameters_and_of_the_largest_micro_batch(gpus):
    made = planned(gpus=gpus)
    numbers = {name: p.numel() for name, p in ATokenModel(preset("nano")).named_parameters()}
    frozen = sum(count for name, count in numbers.items() if name.startswith("gaussian_decoder."))
    assert asdict(made.parameters) == {"trained": sum(numbers.values()) - frozen, "frozen": frozen}
    largest = max(load.activations for load in made.loads.values())
    for zero in range(4):
        wanted = cost.memory(made.parameters, stage=zero, ranks=gpus, activations=largest, dtype=torch.float32)
        assert made.memory(zero) == wanted
    assert made.memory(0).weights == 4 * sum(numbers.values())


def test_a_crop_of_an_asset_is_as_large_as_its_micro_batch_and_its_gaussians_lie_on_a_sheet():
    stage = replace(CURRICULA["nano"]["1"], tasks=NANO_TASKS, mixture={"surface": 1, "crop": 1}, auxiliary=())
    surface, crop = (planned(stage).loads[name] for name in ("surface", "crop"))
    assert (surface.samples, surface.tokens, crop.samples, crop.tokens) == (1, 2048, 1, 1024)
    place_N = torch.arange(2048)
    coords_N4 = torch.stack([torch.zeros_like(place_N), place_N // 64, place_N % 64, torch.zeros_like(place_N)], 1)
    parts = cost.gaussian_parts(preset("nano"), SparseTokens(torch.zeros(2048, 0), coords_N4, (2048,)))
    assert surface.flops == cost.training_flops(parts, stage.frozen).counted


def test_what_is_frozen_costs_less():
    assert planned(replace(TINY, frozen=(*UNUSED, "encoder."))).of_step("flops") < planned().of_step("flops")
    without = replace(TINY, frozen=("encoder.", *TINY.frozen))
    assert planned(without).parameters.trained < planned().parameters.trained


def text_of(made):
    return "\n".join("  ".join(row) for table in made.tables() for row in table)


@pytest.mark.parametrize(("name", "stage"), EVERY, ids=[f"{name} {stage.name}" for name, stage in EVERY])
def test_the_text_names_every_task_term_and_teacher(name, stage):
    text = text_of(planned(stage))
    for task_name, task in stage.used.items():
        assert f"loss of {task_name}: " in text
        for term in task.terms:
            assert f"{term.weight:g} {term.fn.__name__}" in text
    for words in (
        stage.name,
        stage.preset,
        f"{stage.recipe.steps:,}",
        *stage.teachers,
        "ZeRO 3",
        "not counted",
        "H100",
    ):
        assert words in text
    assert ("none" in text) == (not stage.teachers)


def test_rows_of_a_table_are_equally_long_and_add_up():
    tables = planned().tables()
    assert all(len({len(row) for row in table}) == 1 for table in tables)
    memory = tables[3]
    for row in memory[1:]:
        *parts, total = map(float, row[1:])
        assert sum(parts) == pytest.approx(total, abs=0.005 * len(row))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": "RTX"}, "The peak of RTX is not known; known are B200, H200, "),
        ({"gpus": 0}, "one GPU or more"),
        (
            {"gpus": 3},
            "Task image has 4 micro-batches in a step, which 3 GPUs cannot share evenly; set a multiple of 3",
        ),
        ({"mfu": 0.0}, "MFU above 0"),
        ({"mfu": float("nan")}, "MFU above 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_sentence(change, words):
    with pytest.raises(AtokenError, match=words):
        planned(**change)
