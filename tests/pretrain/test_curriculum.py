"""The stages: what the paper's table says, and mixtures that hold exactly."""

from dataclasses import replace

import pytest

from atoken import presets
from atoken.pretrain.curriculum import CURRICULA
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
