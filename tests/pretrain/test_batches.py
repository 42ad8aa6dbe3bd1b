"""Micro-batches: full but never over their budget, every sample once, the same whoever makes them."""

import math
import multiprocessing
import pickle
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atoken.data.synthetic.procedural import make_asset
from atoken.errors import AtokenError
from atoken.pretrain.batches import Batch, MicroBatches, batch, check_shares
from atoken.pretrain.crops import FEW, crop
from atoken.pretrain.curriculum import CURRICULA, NANO_1, NANO_TASKS
from atoken.pretrain.datasets import Datasets, load_datasets, shape
from atoken.pretrain.packing import CROPS, Budget, budgets, samples
from atoken.pretrain.stages import Task
from tests.pretrain.tiny import all_batches, changed, stage_of

SMALL = {
    "image": Task("image", (), tokens=64, micro_batches=2, patches=(4, 16)),
    "video": Task("video", (), tokens=64, micro_batches=4, patches=(4, 9), length=(1, 3)),
    "more": Task("image", (), tokens=48, micro_batches=2, patches=(9, 9)),
}
TINY = changed(NANO_1, tasks=SMALL, mixture={"image": 2, "video": 1}, auxiliary=("more",), steps=6)
DATASETS = load_datasets("procedural", TINY)
FILLED = 0.9  # of the budget, on average, at least


def same(left: Batch, right: Batch) -> bool:
    return (
        replace(left, tokens=None) == replace(right, tokens=None)  # type: ignore[arg-type]
        and left.tokens.lengths == right.tokens.lengths
        and torch.equal(left.tokens.feats, right.tokens.feats)
        and torch.equal(left.tokens.coords, right.tokens.coords)
    )


# Packing


def curriculum_tasks() -> dict[str, Task]:
    stages = [stage for name in ("nano", "base") for stage in CURRICULA[name].values()]
    return {f"{stage.name} {name}": task for stage in stages for name, task in stage.used.items()}


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    low, shortest, micro_batches = draw(st.integers(1, 300)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    high, longest = low * draw(st.integers(1, 64)) + draw(st.integers(0, 5)), shortest + draw(st.integers(0, 12))
    tokens = draw(st.integers(longest, 20_000))
    modality = draw(st.sampled_from(["image", "video"]))
    return Task(
        modality, (), tokens=tokens, micro_batches=micro_batches, patches=(low, high), length=(shortest, longest)
    )


def check_micro_batch(task: Task, found: list[Budget]) -> None:
    low, high = task.patches
    assert sum(budget.length * budget.patches for budget in found) <= task.tokens
    for budget in found:
        assert task.length[0] <= budget.length <= task.length[1]
        assert min(low, task.tokens // budget.length) <= budget.patches <= high
    # Full but for what whole patches leave over, unless no sample may be larger.
    rest = task.tokens - sum(budget.length * budget.patches for budget in found)
    assert rest <= sum(budget.length for budget in found) or all(budget.patches >= high - 1 for budget in found)


@settings(max_examples=200, deadline=None)
@given(tasks(), st.integers(0, 2**32), st.integers(0, 10**9))
def test_a_micro_batch_is_full_and_never_over_its_budget(task: Task, seed: int, number: int) -> None:
    found = budgets(task, seed, "any", number)
    assert found == budgets(task, seed, "any", number)
    check_micro_batch(task, found)
    first = number - number % task.micro_batches  # of the step
    lengths = [[budget.length for budget in budgets(task, seed, "any", first + k)] for k in range(task.micro_batches)]
    assert lengths == [[budget.length for budget in found]] * task.micro_batches


@pytest.mark.parametrize("name", curriculum_tasks())
def test_every_sample_is_in_one_micro_batch(name: str) -> None:
    task, micro_batches = curriculum_tasks()[name], 200
    found = [budget for number in range(micro_batches) for budget in budgets(task, 0, "any", number)]
    assert [budget.index for budget in found] == list(range(micro_batches * samples(task)))
    assert len({budget.key for budget in found}) == len(found)
    assert not {budget.key for budget in found} & {
        budget.key for budget in budgets(replace(task, stream="another"), 0, "any", 0)
    }


@pytest.mark.parametrize(
    "name", [name for name, task in curriculum_tasks().items() if task.modality in ("image", "video")]
)
def test_generated_samples_fill_the_micro_batches_of_the_curricula(name: str) -> None:
    task, filled, sizes = curriculum_tasks()[name], [], []
    for step in range(150):
        found = budgets(task, 0, "any", step * task.micro_batches)
        check_micro_batch(task, found)
        sizes += [budget.patches for budget in found]
        filled.append(sum(budget.length * math.prod(shape(task, budget)) for budget in found) / task.tokens)
        assert filled[-1] <= 1
    assert np.mean(filled) >= FILLED
    low, high = task.patches
    assert low == high or (min(sizes) < 1.5 * low and max(sizes) > 0.6 * high)  # of all sizes


def test_areas_keep_their_proportions_where_none_is_cut_off() -> None:
    """The closed form: all are moved from the least one by the same factor."""
    task, looked_at = Task("image", (), patches=(100, 100_000)), 0
    mean = (100_000 - 100) / math.log(1000)
    sizes = [round(5.3 * mean), round(4.7 * mean)]  # five samples either way
    factor = (sizes[0] - 500) / (sizes[1] - 500)
    for number in range(20):
        larger, smaller = (
            [budget.patches for budget in budgets(replace(task, tokens=t), 0, "any", number)] for t in sizes
        )
        if max(larger) < 100_000:
            assert all(abs(x - 100 - factor * (y - 100)) <= 2 for x, y in zip(larger, smaller, strict=True))  # floors
            looked_at += 1
    assert looked_at > 5


def test_assets_have_budgets_as_images_and_crops_their_whole_budget() -> None:
    whole = Task("asset", (), tokens=1000, patches=(300, 300))
    assert [(budget.index, budget.length, budget.patches) for budget in budgets(whole, 0, "any", 2)] == [
        (6, 1, 300), (7, 1, 300), (8, 1, 300),
    ]  # fmt: skip
    assert [budget.patches for budget in budgets(replace(whole, tokens=200), 0, "any", 0)] == [200]
    drawn = Task("image", (), tokens=10_240, patches=(512, 4096))
    assert budgets(replace(drawn, modality="asset"), 3, "any", 4) == budgets(drawn, 3, "any", 4)
    for modality in CROPS:
        (budget,) = budgets(Task(modality, (), tokens=777), 0, "any", 5)
        assert (budget.index, budget.length, budget.patches) == (5, 1, 777)


def test_fewer_tokens_than_time_steps_are_refused() -> None:
    with pytest.raises(AtokenError, match="too small for 5 time steps"):
        samples(Task("video", (), tokens=4, patches=(1, 1), length=(1, 5)))


# Batches


@pytest.mark.parametrize("mixture", [{"image": 3, "video": 1}, {"image": 1, "video": 1}, {"image": 2, "video": 5}])
def test_every_cycle_holds_the_mixture_exactly_and_every_micro_batch_comes_once(mixture: dict[str, int]) -> None:
    stage, cycle = replace(TINY, mixture=mixture), sum(mixture.values())
    found: dict[str, list[int]] = {"image": [], "video": [], "more": []}
    for step in range(8 * cycle):
        (name, before), *beside = stage.tasks_of(step)
        found[name].append(before)
        assert beside == [("more", step)]
        found["more"].append(step)
        if step % cycle == cycle - 1:
            assert {name: len(found[name]) for name in mixture} == {
                n: x * (step // cycle + 1) for n, x in mixture.items()
            }
    assert all(befores == list(range(len(befores))) for befores in found.values())


def steps(first: int = 0, workers: int = 0, rank: int = 0, world: int = 1) -> list[list[Batch]]:
    return list(all_batches(TINY, first, workers, rank, world, DATASETS))


@pytest.fixture(scope="module")
def alone() -> list[list[Batch]]:
    return steps()


def equal(left: list[list[Batch]], right: list[list[Batch]]) -> bool:
    return [len(step) for step in left] == [len(step) for step in right] and all(
        same(*pair) for step in zip(left, right, strict=True) for pair in zip(*step, strict=True)
    )


def test_a_step_has_its_tasks_micro_batches_in_order(alone: list[list[Batch]]) -> None:
    assert len(alone) == TINY.recipe.steps
    for step, made in enumerate(alone):
        wanted = [
            (name, before * SMALL[name].micro_batches + k)
            for name, before in TINY.tasks_of(step)
            for k in range(SMALL[name].micro_batches)
        ]
        assert [one.task for one in made] == [name for name, _ in wanted]
        assert equal([made], [[batch(TINY, DATASETS, *key) for key in wanted]])
    flat = [one for made in alone for one in made]
    assert not any(same(flat[0], other) for other in flat[1:])
    assert not same(
        flat[0], batch(changed(TINY, seed=1), load_datasets("procedural", changed(TINY, seed=1)), "image", 0)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_a_later_start_change_nothing(workers: int, alone: list[list[Batch]]) -> None:
    assert equal(steps(first=3, workers=workers), alone[3:])


def test_a_process_that_is_sending_ends_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1024, 1024)).save(tmp_path / "large.png")
    task = Task("image", (), tokens=8192, patches=(4096, 4096))  # 100 MB: it is nearly always sending
    stage = changed(TINY, tasks={"image": task}, mixture={"image": 1}, auxiliary=(), steps=100)
    for _ in range(2):
        with closing(all_batches(stage, workers=1, datasets=load_datasets(tmp_path, stage))) as made:
            next(made)
    assert not multiprocessing.active_children()
    assert not "".join(capfd.readouterr())


def test_ranks_share_the_micro_batches_of_every_step(alone: list[list[Batch]]) -> None:
    ranks = [steps(rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        for task in {one.task for one in whole}:
            micro_batches, shares = (
                [one for one in whole if one.task == task],
                [[x for x in p if x.task == task] for p in parts],
            )
            assert equal(shares, [micro_batches[0::2], micro_batches[1::2]])


def test_videos_of_a_step_have_equally_many_tiles_on_all_ranks(alone: list[list[Batch]]) -> None:
    """As ZeRO-3 needs it: the lengths of the samples are those of every micro-batch."""
    for made in alone:
        lengths = [(one.task, (one.tokens.reduce_coords("amax")[:, 0] + 1).tolist()) for one in made]
        for task in SMALL:
            of_micro_batches = [found for name, found in lengths if name == task]
            assert of_micro_batches == of_micro_batches[:1] * len(of_micro_batches)


def test_a_batch_keeps_to_its_budget_its_task_and_its_sizes(alone: list[list[Batch]]) -> None:
    for made in (one for step in alone for one in step):
        task = SMALL[made.task]
        assert len(made.tokens.feats) <= task.tokens
        assert made.samples == len(made.tokens.lengths) == len(made.captions) == samples(task)
        assert made.broken == ()
        assert all(made.captions)
        for one in made.tokens.unpack():
            length, rows, columns = (int(one.coords[:, axis].max()) + 1 for axis in range(3))
            assert length * rows * columns == len(one.feats)
            assert task.length[0] <= length <= task.length[1]
            assert rows * columns <= task.patches[1]
        assert made.tokens.feats.shape[1] == (3072 if task.modality == "video" else 768)
        assert made.tokens.feats.is_contiguous()  # a view would be handed over with all that it is a view of
        assert made.tokens.feats.abs().max() <= 1


def test_micro_batches_that_ranks_cannot_share_evenly_are_refused() -> None:
    with pytest.raises(
        AtokenError, match=r"The 2 micro-batches of the task image .* 4 ranks.* --set tasks\.image\.micro_batches=4\.$"
    ):
        check_shares(TINY, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_is_said_in_one_sentence_whoever_meets_it(workers: int, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"nonsense")
    (tmp_path / "data.toml").write_text("[image.photos]\nfolder = 'photos'\n[video.made]\nprocedural = 'mixed'\n")
    made = all_batches(TINY, workers=workers, datasets=load_datasets(tmp_path / "data.toml", TINY))
    with pytest.raises(AtokenError, match=r"^100 samples of photos in a row are broken[^\n]*\.$"):
        next(made)


def test_broken_samples_are_counted_in_their_batch(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(6):
        path = tmp_path / "photos" / f"{n}.png"
        Image.fromarray(np.full((64, 64, 3), 40 * n, np.uint8)).save(path)
        if n % 3 == 0:
            path.write_bytes(path.read_bytes()[:50])
    (tmp_path / "data.toml").write_text("[image.photos]\nfolder = 'photos'\n")
    stage = replace(TINY, mixture={"image": 1}, auxiliary=())
    datasets = load_datasets(tmp_path / "data.toml", stage)
    made = [one for step in all_batches(stage, datasets=datasets) for one in step]
    broken = [entry for one in made for entry in one.broken]
    assert sum(one.samples for one in made) == len(made) * samples(SMALL["image"])
    assert {entry.key for entry in broken} == {"0.png", "3.png"}
    assert all(entry.source == "photos" and "\n" not in entry.reason for entry in broken)
    for n, one in enumerate(made):
        assert {entry.at // samples(SMALL["image"]) for entry in one.broken} <= {n}
        shades = {round(float(sample.feats.mean() * 127.5 + 127.5)) for sample in one.tokens.unpack()}
        assert shades <= {40, 80, 160, 200}


@pytest.mark.parametrize("modality", CROPS)
def test_crops_are_of_the_assets_by_seed_and_number(modality: str) -> None:
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    pytest.importorskip("scipy", reason="the extra train is not installed")
    task = replace(NANO_TASKS[modality], tokens=300)
    stage = stage_of({"some": task}, steps=1, seed=4)
    ((made,),) = all_batches(stage, datasets={})
    expected = crop(4, 0, 300, FEW) if modality == "crop" else crop(4, 0, 300)
    assert torch.equal(made.tokens.feats, expected.tokens.feats[:, :768])
    assert made.tokens.feats.is_contiguous()
    assert (made.task, made.captions, made.samples) == ("some", ("",), 1)
    assert (made.targets is None) == (modality == "crop")


def test_whole_assets_are_generated_with_their_captions() -> None:
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    task = Task("asset", (), tokens=1200, patches=(600, 600))
    stage = stage_of({"some": task}, steps=1)
    datasets = load_datasets("procedural", stage)
    ((made,),) = all_batches(stage, datasets=datasets)
    assert made.tokens.feats.shape[1] == 768
    assert len(made.tokens.lengths) == 2
    assert all(0 < length <= 600 for length in made.tokens.lengths)
    assert set(made.captions) == {make_asset(datasets["some"].seed, number).caption for number in range(2)}


def test_samples_of_one_length_are_neighbours_in_a_batch() -> None:
    task = Task("video", (), tokens=400, patches=(4, 16), length=(1, 3))
    stage = stage_of({"some": task}, steps=1)
    ((made,),) = all_batches(stage)
    steps = (made.tokens.reduce_coords("amax")[:, 0] + 1).tolist()
    shapes = list(zip(steps, made.tokens.lengths, strict=True))
    assert shapes == sorted(shapes)
    assert len(set(steps)) == 3


def test_datasets_travel_light() -> None:
    assert len(pickle.dumps(MicroBatches(TINY, DATASETS))) < 10_000
    assert isinstance(DATASETS, Datasets)
    assert list(islice(DATASETS, 3)) == ["image", "video", "more"]
