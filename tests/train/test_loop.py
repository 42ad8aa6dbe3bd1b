"""A run of the flow in flow.py: what it writes, and that it can be killed at any moment and resumed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from atoken.data.mixing import Broken
from atoken.errors import AtokenWarning, CheckpointError, MediaError
from atoken.train import checkpoints, manifest
from atoken.train.checkpoints import Checkpoints
from atoken.train.engine import PlainEngine
from atoken.train.loop import run
from tests.train.flow import RECIPE, Flow, Points, Shapes, export
from tests.train.test_watch import evaluate

FORK = multiprocessing.get_context("fork")  # the child has what is imported here


def flow_run(folder, recipe=RECIPE, source=None, **options):
    return run(
        Flow(), recipe, source or Shapes(), folder, export=export, **({"evaluate": evaluate, "save_every": 3} | options)
    )


def rows(folder):
    """Without what is measured."""
    found = [json.loads(line) for line in (folder / "log.jsonl").open()]
    return [{name: row[name] for name in row if name not in ("seconds", "data", "memory")} for row in found]


def outcome(folder):
    """The exported weights and the last checkpoint, byte for byte, and the log."""
    files = [folder / "model" / "flow.safetensors", *sorted((folder / f"step-{RECIPE.steps:06d}").iterdir())]
    return [path.read_bytes() for path in files], rows(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    flow_run(folder)
    return folder


def test_a_run_learns_is_evaluated_exported_and_logged(tmp_path):
    model = flow_run(tmp_path, replace(RECIPE, steps=200), evaluate_every=100)
    losses = [row["ring/loss"] for row in rows(tmp_path) if "ring/loss" in row]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    distances = [json.loads(line)["ring/distance"] for line in (tmp_path / "evaluation.jsonl").open()]
    assert len(distances) == len(list(tmp_path.glob("images/*.png"))) == 3  # before the first step, and after each 100
    assert distances[0] > distances[1] > distances[2]
    weights = load_file(model / "flow.safetensors")
    assert set(weights) == {name for name, _ in Flow().named_parameters()}
    assert evaluate(weights)[0]["ring/distance"] == distances[-1] < 0.3


# Killed and resumed


def killed_at(folder, patch):
    """A run in a process of its own, which gets SIGKILL where ``patch`` has put it."""

    def die():
        with pytest.MonkeyPatch.context() as monkey:
            patch(monkey)
            flow_run(folder)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def killing(name, home, calls, *, after=False):
    """Kill the process before or after the nth call of a function."""

    def patch(monkey):
        plain, count = getattr(home, name), iter(range(1, 1000))

        def dies(*arguments, **options):
            now = next(count) == calls
            if now and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = plain(*arguments, **options)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        monkey.setattr(home, name, dies)

    return patch


MOMENTS = {
    "before the first step": killing("train", PlainEngine, 1),
    "in a step before a checkpoint": killing("train", PlainEngine, 2, after=True),
    "in a step after one": killing("train", PlainEngine, 5),
    "before the first checkpoint": killing("save", PlainEngine, 1),
    "before the tensors of a checkpoint": killing("save_file", checkpoints, 3),
    "after its tensors": killing("save_file", checkpoints, 3, after=True),
    "before its name": killing("rename", checkpoints.Path, 2),
    "after its name": killing("rename", checkpoints.Path, 2, after=True),
    "after the last step": killing("train", PlainEngine, RECIPE.steps, after=True),
    "while it exports": killing("ema_weights", PlainEngine, 1, after=True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_and_resumed_equals_an_uninterrupted_one(moment, uninterrupted, tmp_path):
    killed_at(tmp_path, MOMENTS[moment])
    assert not (tmp_path / "model").exists()
    if (tmp_path / "log.jsonl").exists():
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write('{"step": 3, "los')  # cut short
    flow_run(tmp_path)
    assert outcome(tmp_path) == outcome(uninterrupted)
    assert not list(tmp_path.glob(".step-*"))


def test_a_run_that_is_killed_at_random_moments_until_it_is_done_equals_an_uninterrupted_one(uninterrupted, tmp_path):
    seconds, moments = (
        json.loads((uninterrupted / "log.jsonl").read_text().splitlines()[-1])["seconds"],
        random.Random(0),
    )
    for _ in range(8):
        process = FORK.Process(target=flow_run, args=(tmp_path,), kwargs={"save_every": 1})
        process.start()
        process.join(0.05 + moments.uniform(0, seconds))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    flow_run(tmp_path, save_every=1)
    assert outcome(tmp_path) == outcome(uninterrupted)


def test_a_finished_run_run_again_changes_nothing(uninterrupted):
    before = outcome(uninterrupted)
    flow_run(uninterrupted)
    assert outcome(uninterrupted) == before


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
            flow_run(folder)


def test_sigterm_saves_the_step_that_ran_and_the_run_resumes_from_there(uninterrupted, tmp_path, monkeypatch):
    run_asked_to_end(4, tmp_path, monkeypatch)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [folder.name for folder in Checkpoints(tmp_path).folders()] == ["step-000003", "step-000005"]
    flow_run(tmp_path)
    assert outcome(tmp_path) == outcome(uninterrupted)
    starts = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("start-*.json")}
    assert sorted(starts) == ["start-000000.json", "start-000005.json"]
    assert starts["start-000005.json"] == starts["start-000000.json"] | {"step": 5}


def test_sigterm_in_the_last_step_is_heard_too(tmp_path, monkeypatch):
    run_asked_to_end(RECIPE.steps - 1, tmp_path, monkeypatch)
    assert (tmp_path / "model" / "flow.safetensors").exists()


# What it resumes from, and as what


def test_a_damaged_checkpoint_is_named_and_the_run_resumes_from_the_one_before(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    shutil.rmtree(folder / "model")
    path = folder / "step-000012" / "rank-00000.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-5] ^= 4
    path.write_bytes(flipped)
    with pytest.warns(AtokenWarning, match=r"step-000012.* damaged.*resumes from step-000009"):
        flow_run(folder)
    assert outcome(folder) == outcome(uninterrupted)


def test_an_exported_model_has_a_manifest(uninterrupted, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(uninterrupted / "model", folder)
    assert manifest.read(folder).keys() == {"flow.safetensors"}
    whole = (folder / "flow.safetensors").read_bytes()
    for place in (0, 9, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (folder / "flow.safetensors").write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"flow\.safetensors is damaged"):
            manifest.read(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"damaged: it is empty"):
        manifest.read(folder)


def test_the_manifest_of_a_model_covers_the_folders_in_it(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "config.json").write_text("{}")
    (tmp_path / "index.json").write_text("[]")
    manifest.seal(tmp_path)
    assert manifest.read(tmp_path).keys() == {"index.json", "scheduler/config.json"}
    (tmp_path / "scheduler" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"scheduler/config\.json is damaged"):
        manifest.read(tmp_path)


def test_a_folder_that_holds_another_run_is_refused(uninterrupted):
    for change, said in (({"lr": 0.1}, r"recipe\.lr: 0\.01, now 0\.1"), ({"seed": 7}, r"recipe\.seed: 0, now 7")):
        with pytest.raises(CheckpointError, match=rf"holds a finished run \({said}\); name another folder with -o"):
            flow_run(uninterrupted, replace(RECIPE, **change))
    with pytest.raises(CheckpointError, match=r"holds another run \(recipe\.seed: 0, now 7\)"):
        flow_run(uninterrupted, replace(RECIPE, steps=13, seed=7))


def test_a_run_that_continues_at_another_rate_says_so(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    with pytest.warns(AtokenWarning, match=r"continues with other settings \(recipe\.lr: 0\.01, now 0\.1\)"):
        flow_run(folder, replace(RECIPE, steps=13, lr=0.1))


def test_a_run_that_begins_anew_forgets_how_it_was_started(tmp_path):
    for steps in (2, 3):
        flow_run(tmp_path, replace(RECIPE, steps=steps))
    for checkpoint in Checkpoints(tmp_path).folders():
        shutil.rmtree(checkpoint)
    for _ in range(2):
        flow_run(tmp_path, replace(RECIPE, steps=2, seed=9))


# Broken samples


class BrokenShapes(Shapes):
    def batch(self, key):
        found, broken = super().batch(key), (Broken(0, "shapes", "a", "damaged"),) * 5
        return Points(found.task, found.rows, broken, samples=8)


def test_a_short_run_of_broken_data_stops_before_it_saves_or_exports_anything(tmp_path):
    once = replace(RECIPE, steps=1)
    with pytest.raises(MediaError, match=r"10 of 26 samples are broken, .*broken-0\.jsonl lists"):
        flow_run(tmp_path, once, BrokenShapes())
    assert not list(tmp_path.glob("*step-*")) + list(tmp_path.glob("model"))
    flow_run(tmp_path, once, BrokenShapes(), most_broken=0.5)
    assert rows(tmp_path)[0]["broken"] == 10
    assert {json.loads(line)["step"] for line in (tmp_path / "broken-0.jsonl").read_text().splitlines()} == {0}


def test_weights_do_not_depend_on_the_evaluation(uninterrupted, tmp_path):
    torch.manual_seed(5)
    flow_run(tmp_path, evaluate_every=2)
    assert outcome(tmp_path)[0] == outcome(uninterrupted)[0]
