"""A training run: what it writes, and that it can be interrupted at any step and goes on."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from atoken import presets
from atoken.checkpoint import load_folder
from atoken.errors import AtokenWarning, CheckpointError
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.run import _started, run
from atoken.pretrain.teachers import NO_TEACHERS
from atoken.train import record
from atoken.train.engine import PlainEngine
from atoken.train.run_folder import RunFolder
from tests.pretrain.tiny import (
    ONE_LAYER_MORE,
    SIZES,
    TINY,
    changed,
    tiny_preset,  # noqa: F401 - a fixture for all tests here
    tiny_run,
)


def exported(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", SIZES)
        return tiny_run(TINY, tmp_path_factory.mktemp("run"))


class Killed(BaseException):
    """No handler of the program may catch this, as none catches SIGKILL."""


@contextmanager
def killed_before(step):
    train = PlainEngine.train

    def dies(engine, made):
        if engine.step == step:
            raise Killed
        return train(engine, made)

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(PlainEngine, "train", dies)
        yield
        pytest.fail("the run came to its end")


@pytest.mark.parametrize("save_every", [1, 2, 250], ids=["saved at once", "a step ago", "never"])
def test_a_resumed_run_equals_an_uninterrupted_one(save_every, uninterrupted, tmp_path):
    with killed_before(3):
        tiny_run(TINY, tmp_path, save_every=save_every)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "modal')  # killed while it wrote
    (tmp_path / ".step-000003.part").mkdir()
    torch.manual_seed(99)
    model = tiny_run(TINY, tmp_path, save_every=save_every)
    ours, theirs = exported(model), exported(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rows = [[json.loads(line) for line in (folder / "log.jsonl").open()] for folder in (tmp_path, uninterrupted.parent)]
    for row in rows[0] + rows[1]:
        for measured in ("seconds", "data", "memory"):
            assert row.pop(measured) >= 0
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(TINY.recipe.steps))


def run_asked_to_end(step, folder, monkeypatch):
    """SIGTERM comes in this step."""
    train = PlainEngine.train

    def is_asked_to_end(engine, made):
        if engine.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(engine, made)

    with monkeypatch.context() as patch:
        patch.setattr(PlainEngine, "train", is_asked_to_end)
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            tiny_run(TINY, folder)


def test_sigterm_saves_the_step_that_ran_and_the_run_goes_on_from_there(uninterrupted, tmp_path, monkeypatch):
    run_asked_to_end(2, tmp_path, monkeypatch)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [folder.name for folder in RunFolder(tmp_path).checkpoints()] == ["step-000003"]
    ours, theirs = exported(tiny_run(TINY, tmp_path)), exported(uninterrupted)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    starts = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("start-*.json")}
    assert sorted(starts) == ["start-000000.json", "start-000003.json"]
    assert starts["start-000003.json"] == starts["start-000000.json"] | {"step": 3}


def test_sigterm_in_the_last_step_is_heard_too(tmp_path, monkeypatch):
    run_asked_to_end(TINY.recipe.steps - 1, tmp_path, monkeypatch)
    assert load_folder(tmp_path / "model")


def test_a_folder_that_holds_another_run_is_refused(uninterrupted, tmp_path):
    folder = uninterrupted.parent
    for change, said in (({"lr": 0.1}, "recipe.lr: 0.0005, now 0.1"), ({"seed": 7}, "recipe.seed: 0, now 7")):
        with pytest.raises(CheckpointError, match=rf"holds a finished run \({said}\); name another folder with -o"):
            tiny_run(changed(TINY, **change), folder)
    longer = changed(TINY, steps=TINY.recipe.steps + 1)
    with pytest.raises(CheckpointError, match=r"another run \(stage.preset: tiny, now tiny-2\)"):
        tiny_run(replace(longer, preset="tiny-2"), folder)
    (tmp_path / "data.toml").write_text('[image.mine]\nprocedural = "labelled"\n[video.mine]\nprocedural = "mixed"\n')
    with pytest.raises(CheckpointError, match=r"another run \(data.procedural: True, now False"):
        run(longer, folder, start=None, datasets=load_datasets(tmp_path / "data.toml", longer), device="cpu", workers=0)


def noted(stage, tmp_path, data="", step=1):
    """The record of a start, as its file gives it back."""
    (tmp_path / "data.toml").write_text(data or '[image.made]\nprocedural = "mixed"\n')
    datasets = load_datasets(tmp_path / "data.toml", stage)
    started = _started(stage, None, datasets.data, NO_TEACHERS)
    return started, json.loads(json.dumps(started.record(step, stage.recipe)))


def check(before, now, folder):
    now[0].check_resumable(before[1], now[1], folder)


def test_what_makes_a_run_another_one(tmp_path, monkeypatch):
    images = changed(TINY, mixture={"image": 1})
    made, more = '[image.made]\nprocedural = "mixed"\n', '[video.made]\nprocedural = "mixed"\n'
    both = made + '[image.too]\nprocedural = "labelled"\n'
    before = noted(images, tmp_path, made)
    check(before, noted(images, tmp_path, made + more), tmp_path)  # of a stage to come
    monkeypatch.chdir(tmp_path)
    check(before, noted(images, tmp_path, made), tmp_path)
    check(
        (None, {"stage": before[1]["stage"], "start": None}), noted(images, tmp_path, both), tmp_path
    )  # an earlier version's
    for there, here in ((made, both), (both, made), (made, "seed = 5\n" + made)):
        with pytest.raises(CheckpointError, match=r"another run \(data\."):
            check(noted(images, tmp_path, there), noted(images, tmp_path, here), tmp_path)
    for there, here in ((images, TINY), (TINY, images)):
        with pytest.warns(AtokenWarning, match=r"stage\.mixture\.video"):
            check(noted(there, tmp_path, made + more), noted(here, tmp_path, made + more), tmp_path)


def test_a_run_that_begins_anew_forgets_how_it_was_started(tmp_path):
    for steps in (2, 3):
        tiny_run(changed(TINY, steps=steps), tmp_path)
    for checkpoint in RunFolder(tmp_path).checkpoints():
        shutil.rmtree(checkpoint)
    for _ in range(2):
        tiny_run(changed(TINY, steps=2, seed=9), tmp_path)


def test_a_run_that_goes_on_at_another_rate_says_so(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted.parent, folder)
    with pytest.warns(AtokenWarning, match=r"continues with other settings \(recipe.lr: 0.0005, now 0.1\)"):
        tiny_run(changed(TINY, steps=TINY.recipe.steps + 1, lr=0.1), folder)


def test_a_run_records_its_stage_its_packages_and_its_checkout(uninterrupted):
    noted = json.loads((uninterrupted.parent / "start-000000.json").read_text())
    assert (noted["step"], noted["recipe"]["steps"], noted["stage"]["preset"]) == (0, TINY.recipe.steps, "tiny")
    terms = noted["stage"]["tasks"]["image"]["terms"]
    assert [(term["fn"], term["weight"]) for term in terms] == [("l1", 0.2), ("kl", 1e-8)]
    assert noted["launch"]["teachers"] == {}
    assert (noted["data"]["procedural"], noted["start"]) == (True, None)
    assert noted["launch"] == {
        "data": "procedural", "teachers": {}, "device": "cpu", "ranks": 1, "workers": 0, "zero": None,
    }  # fmt: skip
    assert noted["versions"]["torch"] == importlib.metadata.version("torch")
    assert noted["versions"]["python"] == platform.python_version()
    assert noted["git"] is None or re.fullmatch("[0-9a-f]{40}", noted["git"]["commit"])


def test_the_state_of_a_checkout_names_its_commit_and_what_was_changed(tmp_path):
    assert record.git_state(tmp_path) is None
    for words in (("init", "-q"), ("add", "."), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")):
        (tmp_path / "a.txt").touch()
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    clean = record.git_state(tmp_path)
    assert clean["changed"] == []
    (tmp_path / "a.txt").write_text("changed")
    assert record.git_state(tmp_path) == {"commit": clean["commit"], "changed": ["a.txt"]}


def test_a_finished_run_run_again_changes_nothing(uninterrupted):
    before, log = exported(uninterrupted), (uninterrupted.parent / "log.jsonl").read_text()
    tiny_run(TINY, uninterrupted.parent)
    assert all(torch.equal(value, before[name]) for name, value in exported(uninterrupted).items())
    assert (uninterrupted.parent / "log.jsonl").read_text() == log


def test_a_run_writes_a_model_that_loads_and_holds_the_average(uninterrupted):
    model = load_folder(uninterrupted)
    saved = load_file(uninterrupted.parent / "step-000006" / "state.safetensors")
    for name, value in model.named_parameters():
        frozen = name.startswith(TINY.frozen)
        assert torch.equal(value, saved[f"weights/model.{name}" if frozen else f"ema/model.{name}"].bfloat16())


def test_a_stage_that_starts_from_another_asks_for_it_and_takes_it_up(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny-d", SIZES | ONE_LAYER_MORE | {"fsq_levels": presets.FSQ_LEVELS})
    stage = changed(TINY, name="tiny-d", preset="tiny-d", start_from="tiny", steps=1)
    with pytest.raises(CheckpointError, match="starts from tiny"):
        tiny_run(stage, tmp_path / "a")
    model = load_folder(tiny_run(stage, tmp_path / "b", start=uninterrupted))
    assert model.config.fsq_levels == presets.FSQ_LEVELS
