"""Changes of a stage: every field can be set and is set as Python has it, and nothing wrong gets in."""

import json
from dataclasses import replace
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoken.errors import AtokenError
from atoken.pretrain.config import FIXED, overridden
from atoken.pretrain.curriculum import CURRICULA
from atoken.pretrain.stages import Stage, Task
from atoken.train.overrides import settable, typed
from atoken.train.recipe import Recipe
from tests.pretrain.tiny import changed

STAGES = [stage for stages in CURRICULA.values() for stage in stages.values()]
THIRD = CURRICULA["so400m-c"]["3"]


def written(value):
    """A value as TOML, which for these types is JSON."""
    return "none" if value is None else json.dumps(value)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: f"{stage.preset} {stage.name}")
def test_no_change_is_the_same_stage_and_every_stage_that_comes_along_is_sound(stage):
    assert overridden(stage, []) is stage


STAGE, TASK = settable(THIRD, FIXED), settable(THIRD.tasks["image"], FIXED)


def value_of(stage, name):
    return getattr(stage, name) if hasattr(stage, name) else getattr(stage.recipe, name)


def test_the_keys_are_the_fields_of_stage_recipe_and_task():
    assert {*STAGE, "name", "preset", "tasks", "mixture", "start_from", "recipe"} == {
        *Stage.__dataclass_fields__, *Recipe.__dataclass_fields__
    }  # fmt: skip
    assert {*TASK, "modality", "terms", "stream"} == set(Task.__dataclass_fields__)


@pytest.mark.parametrize("of", [Stage, Recipe, Task], ids=lambda of: of.__name__)
def test_what_comes_along_is_within_the_limits_and_every_number_has_limits(of):
    hints = get_type_hints(of, include_extras=True)
    tasks = [task for stage in STAGES for task in stage.tasks.values()]
    for name in {**STAGE, **TASK}.keys() & hints.keys():
        for one in {Stage: STAGES, Recipe: [stage.recipe for stage in STAGES], Task: tasks}[of]:
            assert typed(plain(getattr(one, name)), hints[name], name) == getattr(one, name)
        assert "Meta" in repr(hints[name]) or hints[name] in (bool, tuple[str, ...])


def plain(value):
    return [plain(part) for part in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", STAGE)
def test_a_field_written_out_and_read_back_is_the_field(name):
    donor = changed(CURRICULA["nano"]["4"], auxiliary=(), betas=(0.8, 0.99), checkpointing=True)
    found = overridden(CURRICULA["nano"]["1"], [f"{name}={written(value_of(donor, name))}"])
    assert found == changed(CURRICULA["nano"]["1"], **{name: value_of(donor, name)})
    assert type(value_of(found, name)) is type(value_of(donor, name))


@pytest.mark.parametrize("name", TASK)
@pytest.mark.parametrize("donor", ["video", "video-text", "asset"])
def test_a_field_of_a_task_written_out_and_read_back_is_the_field(name, donor):
    task = replace(THIRD.tasks["image"], tokens=16384)
    wanted = replace(task, **{name: getattr(THIRD.tasks[donor], name)})
    found = overridden(THIRD, [f"tasks.image.{name}={written(getattr(wanted, name))}"])
    assert found.tasks["image"] == wanted
    assert {n: t for n, t in found.tasks.items() if n != "image"} == {
        n: t for n, t in THIRD.tasks.items() if n != "image"
    }


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"])).map("encoder.{}".format)


@given(
    steps=st.integers(1, 10**9), lr=st.floats(0, 1e3), betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    checkpointing=st.booleans(), frozen=st.lists(NAMES, max_size=3),
)  # fmt: skip
def test_any_values_come_through(steps, lr, betas, checkpointing, frozen):
    wanted = {"steps": steps, "lr": lr, "betas": betas, "checkpointing": checkpointing, "frozen": tuple(frozen)}
    changes = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in wanted.items()]
    assert overridden(THIRD, changes) == changed(THIRD, **wanted)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("betas=0.9,0.99", "betas", (0.9, 0.99)),
        ("betas = [0.9, 0.99]", "betas", (0.9, 0.99)),
        ("lr=1", "lr", 1.0),
        ("lr=1e-3", "lr", 1e-3),
        ("steps=1_000", "steps", 1000),
        ("auxiliary=[]", "auxiliary", ()),
        ("frozen=encoder.,pool.", "frozen", ("encoder.", "pool.")),
        ("auxiliary=image-text", "auxiliary", ("image-text",)),
        ('frozen="pool.a, b"', "frozen", ("pool.a, b",)),
        ("checkpointing=false", "checkpointing", False),
    ],
)
def test_values_may_be_written_as_people_write_them(words, name, value):
    found = value_of(overridden(THIRD, [words]), name)
    assert found == value
    assert type(found) is type(value)


def test_a_term_changes_its_weight_alone():
    task = overridden(THIRD, ["tasks.image.terms.l1=5"]).tasks["image"]
    before = THIRD.tasks["image"].terms
    assert [term.weight for term in task.terms] == [5.0, *(term.weight for term in before[1:])]
    assert [replace(term, weight=0.0) for term in task.terms] == [replace(term, weight=0.0) for term in before]


def test_the_mixture_takes_tasks_in_and_out():
    found = overridden(THIRD, ["mixture.video=0", "mixture.image=5", "auxiliary=[]", "mixture.image-text=2"])
    assert found.mixture == {"image": 5, "video-text": 1, "asset-text": 1, "asset": 1, "image-text": 2}
    assert found.tasks is THIRD.tasks


def test_later_changes_see_earlier_ones():
    assert overridden(THIRD, ["steps=3", "steps=4"]).recipe.steps == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("steps", "steps sets nothing; write key=value"),
        ("step=3", r"no field 'step' \(did you mean steps\?\); there are .*tasks.TASK.terms.TERM"),
        ("preset=nano", "no field 'preset'"),
        ("tasks.image.bin=8", r"no field 'bin'; there are tokens, micro_batches, "),
        ("tasks.image.modality=video", "no field 'modality'"),
        ("tasks.image=8", "tasks.image: there is no field"),
        ("tasks.clap.micro_batches=8", r"no task 'clap'"),
        ("tasks.image.terms.l2=1", r"no term 'l2'; there are l1, kl, lpips, gram, clip"),
        ("mixture.images=1", "no task 'images'"),
        ("auxiliary=images", "stage 3: there is no task 'images'"),
        ("steps=ten", "steps cannot be ten: expected a whole number, got text"),
        ("steps=1.5", "steps cannot be 1.5: expected a whole number, got a number"),
        ("steps=true", "steps cannot be True: expected a whole number, got true or false"),
        ("lr=none", "lr cannot be None: expected a number, got none"),
        ("lr=fast", "lr cannot be fast: expected a number, got text"),
        ("checkpointing=1", "checkpointing cannot be 1: expected true or false"),
        ("betas=0.9", "betas cannot be 0.9: expected a list, got a number"),
        ("betas=[0.9, 0.99, 0.999]", "expected a list of length 2, got 3"),
        ("tasks.video.strides=[1, 3]", r"strides cannot be \[1, 3\]: expected a list, got a whole number"),
        ("tasks.video.strides=3", "strides cannot be 3: expected a list"),
        ("tasks.video.fps=fast", r"fps cannot be fast: expected a number or none, got text"),
        ("frozen=[1]", "expected text, got a whole number"),
        ("frozen=decodr.", "no parameter's name begins with 'decodr.'; names begin with encoder"),
        ("frozen=['']", "no parameter's name begins with ''"),
        ("seed=9223372036854775808", "seed cannot be 9223372036854775808: expected a whole number <= "),
        ("lr=[1", r"lr='\[1' is not a TOML value"),
        ("lr=1\nsteps=2", "is not a TOML value"),
        ("steps=0", "steps cannot be 0: expected a whole number >= 1"),
        ("lr=nan", "lr cannot be nan: expected a number >= 0"),
        ("lr=inf", "lr cannot be inf: expected a number <= "),
        ("ema=1", "ema cannot be 1: expected a number < 1"),
        ("betas=0.9,1", r"betas cannot be \[0.9, 1\]: expected a number < 1"),
        ("tasks.video.fps=0", "fps cannot be 0: expected a number >= 0.001"),
        ("tasks.image.patches=9,4", r"tasks.image.patches must be the least and the most, in this order, not \[9, 4\]"),
        ("tasks.video.strides=[[1, 3], [5, 4]]", r"in this order, not \[5, 4\]"),
        ("tasks.video.strides=[]", "expected a list of length >= 1"),
        ("tasks.video.tokens=100", "tasks.video.tokens is 100, .* 128"),
        ("tasks.image.terms.l1=-1", "tasks.image.terms.l1 cannot be -1: expected a number >= 0"),
        ("mixture.video=-1", "mixture.video cannot be -1: expected a whole number >= 0"),
        ("mixture.video=0.5", "mixture.video cannot be 0.5: expected a whole number"),
        ("mixture.image-text=1", "image-text is in every step already"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(change, words):
    with pytest.raises(AtokenError, match=words) as caught:
        overridden(THIRD, [change])
    assert str(caught.value).endswith(".")


def test_a_stage_without_anything_to_do_is_refused():
    with pytest.raises(AtokenError, match="its mixture names no task"):
        overridden(THIRD, [f"mixture.{name}=0" for name in THIRD.mixture])
