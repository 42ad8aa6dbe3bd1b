"""What a run was started with: recorded whole, and compared where it matters when it resumes."""

import importlib.metadata
import json
import platform
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from atoken.errors import AtokenWarning, CheckpointError
from atoken.train.recipe import Recipe
from atoken.train.record import Started, git_state


@dataclass(frozen=True)
class Size:
    width: int = 3


def some_loss():
    pass


BASE = Started(
    {"model": {"size": Size(), "loss": some_loss}, "data": {"seed": 0, "tables": {"image": {"mine": "a"}}},
     "mixture": {"image": 3}},
    fixed=("data.",), complete=("mixture", "data.tables."), launch={"device": "cpu"},
)  # fmt: skip


def started(**changes):
    return replace(BASE, values={**BASE.values, **changes})


SAME = Recipe(), Recipe()


def check(there, here, recipes=SAME, step=1):
    before, now = (json.loads(json.dumps(one.record(step, of))) for one, of in zip((there, here), recipes, strict=True))
    here.check_resumable(before, now, Path("folder"))


def test_a_record_holds_values_packages_and_checkout():
    found = json.loads(json.dumps(replace(BASE, start=Path("a")).record(5, Recipe(steps=7))))
    assert (found["step"], found["recipe"]["steps"], found["recipe"]["betas"]) == (5, 7, [0.9, 0.95])
    assert found["model"] == {"size": {"width": 3}, "loss": "some_loss"}
    assert found["start"] == str(Path("a").resolve())
    assert found["launch"] == {"device": "cpu"}
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["versions"]["python"] == platform.python_version()
    assert found["machine"]["cores"] >= 1
    assert found["git"] is None or re.fullmatch("[0-9a-f]{40}", found["git"]["commit"])


def test_the_same_run_longer_or_elsewhere_resumes_in_silence(recwarn):
    check(BASE, BASE)
    check(BASE, replace(BASE, launch={"device": "cuda"}), (Recipe(), Recipe(steps=9)))
    check(replace(BASE, start=Path("a")), BASE)  # a run that resumes need not name its start again
    check(BASE, started(data={"seed": 0, "tables": BASE.values["data"]["tables"] | {"video": {}}}))
    check(started(model={"size": Size()}), BASE)  # an earlier version recorded less
    assert not recwarn.list


@pytest.mark.parametrize(
    ("here", "recipe", "said"),
    [
        (started(model={"size": Size(4), "loss": some_loss}), Recipe(), r"model\.size\.width: 3, now 4"),
        (started(mixture={"image": 3, "video": 1}), Recipe(), r"mixture\.video: None, now 1"),
        (started(mixture={}), Recipe(), r"mixture\.image: 3, now None"),
        (BASE, Recipe(lr=1.0), r"recipe\.lr: 0\.0005, now 1\.0"),
    ],
)
def test_what_may_change_is_said_unless_the_run_is_finished(here, recipe, said):
    with pytest.warns(AtokenWarning, match=rf"^The run in folder continues with other settings \({said}\)\.$"):
        check(BASE, here, (Recipe(), recipe))
    with pytest.raises(CheckpointError, match=rf"^folder holds a finished run \({said}\); name another folder"):
        check(BASE, here, (Recipe(), recipe), step=recipe.steps)


@pytest.mark.parametrize(
    ("here", "recipe", "said"),
    [
        (BASE, Recipe(seed=4), r"recipe\.seed: 0, now 4"),
        (replace(BASE, start=Path("b")), Recipe(), r"start: None, now .*b"),
        (started(data={"seed": 1, "tables": {}}), Recipe(), r"data\.seed: 0, now 1"),
        (started(data={"tables": {"image": {"mine": "a", "b": 1}}}), Recipe(), r"data\.tables\.image\.b: None, now 1"),
        (started(data={"tables": {"image": {}}}), Recipe(), r"data\.tables\.image\.mine: a, now None"),
    ],
)  # fmt: skip
def test_what_may_not_change_is_refused(here, recipe, said):
    with pytest.raises(CheckpointError, match=rf"^folder holds another run \({said}\); name another folder"):
        check(BASE, here, (Recipe(), recipe))


def test_the_state_of_a_checkout_names_its_commit_and_what_was_changed(tmp_path):
    assert git_state(tmp_path) is None
    for words in (("init", "-q"), ("add", "."), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")):
        (tmp_path / "a.txt").touch()
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    clean = git_state(tmp_path)
    assert clean["changed"] == []
    (tmp_path / "a.txt").write_text("changed")
    assert git_state(tmp_path) == {"commit": clean["commit"], "changed": ["a.txt"]}
