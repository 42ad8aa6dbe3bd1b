"""Changes of a stage: every field can be set and is set as Python has it, and nothing wrong gets in."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoken.errors import AtokenError
from atoken.pretrain.config import KINDS, LIMITS, STAGE, TASK, overridden
from atoken.pretrain.curriculum import CURRICULA
from atoken.pretrain.stages import Stage, Task

STAGES = [stage for stages in CURRICULA.values() for stage in stages.values()]
THIRD = CURRICULA["so400m-c"]["3"]


def written(value):
    """A value as TOML, which for these types is JSON."""
    return "none" if value is None else json.dumps(value)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: f"{stage.preset} {stage.name}")
def test_no_change_is_the_same_stage_and_every_stage_that_comes_along_is_sound(stage):
    assert overridden(stage, []) is stage


def test_every_field_is_of_a_known_kind_and_every_number_has_limits():
    assert set(STAGE) | {"name", "preset", "tasks", "mixture", "start_from"} == {field.name for field in fields(Stage)}
    assert set(TASK) | {"modality", "terms", "stream"} == {field.name for field in fields(Task)}
    assert set(STAGE.values()) | set(TASK.values()) == set(KINDS)
    words = (bool, tuple[str, ...])
    assert {name for name, kind in (STAGE | TASK).items() if kind not in words} == set(LIMITS)


@pytest.mark.parametrize("name", STAGE)
def test_a_field_written_out_and_read_back_is_the_field(name):
    donor = replace(CURRICULA["nano"]["4"], auxiliary=(), betas=(0.8, 0.99), checkpointing=True)
    changed = overridden(CURRICULA["nano"]["1"], [f"{name}={written(getattr(donor, name))}"])
    assert changed == replace(CURRICULA["nano"]["1"], **{name: getattr(donor, name)})
    assert type(getattr(changed, name)) is type(getattr(donor, name))


@pytest.mark.parametrize("name", TASK)
@pytest.mark.parametrize("donor", ["video", "video-text", "asset"])
def test_a_field_of_a_task_written_out_and_read_back_is_the_field(name, donor):
    task = replace(THIRD.tasks["image"], tokens=16384)
    wanted = replace(task, **{name: getattr(THIRD.tasks[donor], name)})
    changed = overridden(THIRD, [f"tasks.image.{name}={written(getattr(wanted, name))}"])
    assert changed.tasks["image"] == wanted
    assert {n: t for n, t in changed.tasks.items() if n != "image"} == {
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
    assert overridden(THIRD, changes) == replace(THIRD, **wanted)


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
    changed = getattr(overridden(THIRD, [words]), name)
    assert changed == value
    assert type(changed) is type(value)


def test_a_term_changes_its_weight_alone():
    task = overridden(THIRD, ["tasks.image.terms.l1=5"]).tasks["image"]
    before = THIRD.tasks["image"].terms
    assert [term.weight for term in task.terms] == [5.0, *(term.weight for term in before[1:])]
    assert [replace(term, weight=0.0) for term in task.terms] == [replace(term, weight=0.0) for term in before]


def test_the_mixture_takes_tasks_in_and_out():
    changed = overridden(THIRD, ["mixture.video=0", "mixture.image=5", "auxiliary=[]", "mixture.image-text=2"])
    assert changed.mixture == {"image": 5, "video-text": 1, "asset-text": 1, "asset": 1, "image-text": 2}
    assert changed.tasks is THIRD.tasks


def test_later_changes_see_earlier_ones():
    assert overridden(THIRD, ["steps=3", "steps=4"]).steps == 4


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
        ("steps=ten", "steps is a whole number, not ten"),
        ("steps=1.5", "steps is a whole number, not 1.5"),
        ("steps=true", "steps is a whole number, not True"),
        ("lr=none", "lr is a number, not None"),
        ("lr=fast", "lr is a number, not fast"),
        ("checkpointing=1", "checkpointing is true or false, not 1"),
        ("betas=0.9", "betas is a pair of numbers"),
        ("betas=[0.9, 0.99, 0.999]", "betas is a pair of numbers"),
        ("tasks.video.strides=[1, 3]", "strides is a list of pairs"),
        ("tasks.video.strides=3", "strides is a list of pairs"),
        ("tasks.video.fps=fast", "fps is a number, or none"),
        ("frozen=[1]", "frozen is a list of words"),
        ("frozen=decodr.", "begins no parameter's name; those begin with encoder"),
        ("frozen=['']", "begins no parameter's name"),
        ("seed=9223372036854775808", "seed must be a number from 0"),
        ("lr=[1", r"lr='\[1': the value is none of TOML"),
        ("lr=1\nsteps=2", "none of TOML"),
        ("steps=0", "steps must be a number from 1 on, not 0"),
        ("lr=nan", "lr must be a number from 0 on, not nan"),
        ("lr=inf", "lr must be a number from 0 on, not inf"),
        ("ema=1", "ema must be a number from 0 on and below 1"),
        ("betas=0.9,1", "betas must be a number from 0 on and below 1"),
        ("tasks.video.fps=0", "fps must be a number from 0.001 on"),
        ("tasks.image.patches=9,4", r"tasks.image.patches must be the least and the most, in this order, not \[9, 4\]"),
        ("tasks.video.strides=[[1, 3], [5, 4]]", r"in this order, not \[5, 4\]"),
        ("tasks.video.strides=[]", "must name at least one range"),
        ("tasks.video.tokens=100", "tasks.video.tokens is 100, .* 128"),
        ("tasks.image.terms.l1=-1", "tasks.image.terms.l1 must be a number from 0 on"),
        ("mixture.video=-1", "mixture.video must be a whole number from 1 on, or 0"),
        ("mixture.video=0.5", "mixture.video is a whole number, not 0.5"),
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
