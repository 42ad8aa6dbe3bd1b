"""The stages: what the paper's table says, and mixtures that hold exactly."""

from dataclasses import replace

import pytest

from atoken import presets
from atoken.pretrain import losses
from atoken.pretrain.curriculum import CURRICULA
from atoken.pretrain.packing import samples
from tests.pretrain.tiny import TASKS, TINY


@pytest.mark.parametrize("stages", CURRICULA.values(), ids=list(CURRICULA))
def test_stages_name_presets_and_stages_that_exist(stages):
    for name, stage in stages.items():
        assert name == stage.name
        assert presets.preset(stage.preset)
        assert stage.start_from is None or stage.start_from in stages
        assert stage.used.keys() <= stage.tasks.keys()


def test_the_paper_s_stages_show_what_its_table_says():
    """Table 2: ninths of each task, steps, latent channels; FSQ in the fourth alone."""
    stages = CURRICULA["so400m-c"].values()
    assert [tuple(stage.mixture.values()) for stage in stages] == [(1,), (2, 1, 6), (2, 1, 4, 1, 1), (2, 1, 4, 1, 1)]
    assert [stage.recipe.steps for stage in stages] == [200_000, 200_000, 50_000, 100_000]
    configs = [presets.preset(stage.preset) for stage in stages]
    assert [config.latent_channels for config in configs] == [32, 48, 48, 48]
    assert [bool(config.fsq_levels) for config in configs] == [False, False, False, True]
    assert all(stage.auxiliary == ("image-text",) for stage in stages)


PAPER = list(CURRICULA["so400m-c"].values())
RECONSTRUCTION = {"l1": 0.2, "kl": 1e-8}  # lambda_rec x lambda_1, lambda_KL
WEIGHTS = {  # section 3.3: 0.2 x (L1 + 10 LPIPS + 1000 Gram + CLIP) + 1e-8 KL, and 1 x semantics
    "image": RECONSTRUCTION | {"lpips": 2.0, "gram": 200.0, "clip": 0.2},
    "image-text": {"semantics": 1.0},
    "video": RECONSTRUCTION,
    "video-text": {"alignment": 1.0},
    "asset": RECONSTRUCTION,
    "asset-text": {"alignment": 1.0},
}


@pytest.mark.parametrize("stage", PAPER, ids=lambda stage: stage.name)
def test_the_paper_s_optimisation_and_loss_weights_hold_in_every_stage(stage):
    """Sections 3.3 and 3.5."""
    recipe = stage.recipe
    assert (recipe.warmup, recipe.lr, recipe.final_lr, stage.encoder_lr) == (2000, 3e-4, 3e-5, 0.1)
    assert (recipe.betas, recipe.weight_decay, recipe.ema, recipe.muon) == ((0.9, 0.95), 0.1, 0.9999, 0)
    for name, task in stage.tasks.items():
        assert {term.fn.__name__: term.weight for term in task.terms} == pytest.approx(WEIGHTS[name])
    assert losses.TEMPERATURE == 2.0


def test_the_paper_s_sizes_of_images_videos_and_assets():
    """Table 2: pixels a side from 64 up; section 3.4: 16 to 32 frames in strides, or 1 a second up to 64 of them."""
    sides = [(512, None), (1024, 512), (2048, 1024), (2048, 1024)]
    for stage, (image, video) in zip(PAPER, sides, strict=True):
        assert stage.tasks["image"].patches == ((64 // 16) ** 2, (image // 16) ** 2)
        if video is not None:
            clip, shown = stage.tasks["video"], stage.tasks["video-text"]
            assert clip.patches == ((64 // 16) ** 2, (video // 16) ** 2)
            assert (clip.length, clip.strides, clip.fps) == ((16 // 4, 32 // 4), ((1, 3), (4, 12)), None)
            assert (shown.length[1], shown.fps) == (64 // 4, 1.0)
    assert [stage.tasks.keys() & {"asset", "asset-text"} for stage in PAPER[:2]] == [set(), set()]


BATCHES = {"image-text": (8192, 8192), "image": (1024, 4096), "video": (512, 1024), "asset": (256, 512)}


@pytest.mark.parametrize("stage", PAPER, ids=lambda stage: stage.name)
def test_the_paper_s_global_batches_hold_within_a_tenth(stage):
    """Section 3.5: samples of a step over all GPUs; it says nothing of videos and assets with texts."""
    for name in stage.tasks.keys() & BATCHES.keys():
        low, high = BATCHES[name]
        assert 0.9 * low <= samples(stage.tasks[name]) * stage.tasks[name].micro_batches <= 1.1 * high


def test_without_teachers_a_stage_has_no_term_of_theirs_and_keeps_what_nothing_reads():
    first, second = (CURRICULA["so400m-c"][name].without_teachers() for name in ("1", "2"))
    assert first.auxiliary == second.auxiliary == ()
    assert [term.fn.__name__ for term in first.tasks["image"].terms] == ["l1", "kl"]
    assert not first.teachers | second.teachers
    assert "pool." in first.frozen
    assert "pool." not in second.frozen  # videos are still matched with their captions


@pytest.mark.parametrize("mixture", [{"image": 3, "video": 1}, {"image": 1, "video": 1}, {"image": 2, "video": 5}])
def test_every_cycle_holds_the_mixture_exactly_and_counts_on(mixture):
    stage, cycle = replace(TINY, mixture=mixture, auxiliary=("crop",)), sum(mixture.values())
    met = dict.fromkeys(TASKS, 0)
    for step in range(8 * cycle):
        for name, before in stage.tasks_of(step):
            assert before == met[name]
            met[name] += 1
    assert {name: met[name] for name in (*mixture, "crop")} == {n: 8 * k for n, k in mixture.items()} | {
        "crop": 8 * cycle
    }
