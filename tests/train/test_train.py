"""Training: terms in closed form, batches and schedules as functions of the step, and a run that can be interrupted."""

import importlib.metadata
import json
import math
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
from atoken.errors import AtokenError, AtokenWarning, CheckpointError
from atoken.train import record
from atoken.train.curriculum import CURRICULA, NANO_COLORS, UNUSED
from atoken.train.engine import PATIENCE, PlainEngine
from atoken.train.feeds import load_feeds
from atoken.train.loop import run
from atoken.train.objective import Objective
from atoken.train.run_folder import RunFolder
from tests.model.sizes import small_model
from tests.tolerances import FP32
from tests.train.tiny import (
    ONE_LAYER_MORE,
    SIZES,
    TASKS,
    TINY,
    batch,
    tiny_engine,
    tiny_preset,  # noqa: F401 - a fixture for all tests here
    tiny_run,
)

# The engine


def test_learning_rate_warms_up_in_a_line_and_falls_as_a_cosine():
    engine = tiny_engine(steps=110, warmup=10, lr=3e-4, final_lr=3e-6)
    assert engine.learning_rate(0) == pytest.approx(3e-5)
    assert engine.learning_rate(4) == pytest.approx(1.5e-4)
    assert engine.learning_rate(9) == engine.learning_rate(10) == pytest.approx(3e-4)
    assert engine.learning_rate(60) == pytest.approx((3e-4 + 3e-6) / 2)
    assert engine.learning_rate(35) == pytest.approx(3e-6 + (3e-4 - 3e-6) * (1 + math.sqrt(0.5)) / 2)
    assert engine.learning_rate(110) == pytest.approx(3e-6)


def test_the_encoder_has_its_own_rate_and_only_matrices_decay():
    engine = tiny_engine(encoder_lr=0.1)
    rate = engine.train([batch(TINY, 0)])["lr"]
    of = {id(p): group for group in engine.optimisers[0].param_groups for p in group["params"]}
    assert len(of) == len(engine.parameters)
    for name, parameter in engine.parameters.items():
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(rate * (0.1 if name.startswith("encoder.") else 1.0))
        assert group["weight_decay"] == (TINY.weight_decay if parameter.ndim > 1 else 0.0)


def test_muon_turns_the_matrices_of_blocks_and_adamw_moves_the_rest():
    engine = tiny_engine(muon=2.0, warmup=0, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in engine.parameters.items()}
    rate = engine.train([batch(TINY, 0)])["lr"]
    muon = [name for name, optimiser in engine.owners.items() if isinstance(optimiser, torch.optim.Muon)]
    assert set(muon) == {name for name, p in before.items() if ".blocks." in name and p.ndim == 2}
    for name in muon:
        change = (engine.parameters[name].detach() - before[name]) / (2.0 * rate)
        if change.any():
            # Muon's step is the gradient with all its singular values brought near to 1, longer for tall matrices.
            scale = max(1.0, change.shape[0] / change.shape[1]) ** 0.5
            assert torch.linalg.matrix_norm(change, 2) / scale == pytest.approx(1, abs=0.35)
    of = engine.optimisers[0].param_groups
    assert sum(len(group["params"]) for group in of) == len(before) - len(muon)


def test_muon_follows_the_rate_of_the_encoder():
    engine = tiny_engine(muon=2.0, warmup=0, weight_decay=0.0, encoder_lr=0.0)
    before = {name: p.detach().clone() for name, p in engine.parameters.items()}
    engine.train([batch(TINY, 0)])
    for name, parameter in engine.parameters.items():
        assert torch.equal(parameter, before[name]) or not name.startswith("encoder.")
    assert not torch.equal(
        engine.parameters["decoder.blocks.0.mlp.up.weight"], before["decoder.blocks.0.mlp.up.weight"]
    )


def test_clipping_at_zero_is_none():
    engine, free = tiny_engine(clip=1e9), tiny_engine(clip=0.0)
    for one in (engine, free):
        one.train([batch(TINY, 0)])
    assert all(torch.equal(engine.average[name], free.average[name]) for name in engine.average)


def test_the_average_ramps_up_to_its_decay():
    engine = tiny_engine(ema=0.2)  # reached at the second step: (1 + 2) / (10 + 2) is more
    expected = {name: p.detach().double() for name, p in engine.parameters.items()}
    for step, decay in enumerate((2 / 11, 0.2, 0.2)):
        engine.train([batch(TINY, step)])
        for name, parameter in engine.parameters.items():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
            torch.testing.assert_close(engine.average[name].double(), expected[name], atol=FP32, rtol=0)


def snapshot(engine):
    return {name: value.clone() for name, value in engine.state()[0].items()}


def test_a_gradient_that_is_not_finite_is_skipped():
    engine = tiny_engine()
    engine.train([batch(TINY, 0)])
    before = snapshot(engine)
    row = engine.train([poisoned(batch(TINY, 1))])
    assert math.isnan(row["norm"])
    assert (engine.step, engine.applied) == (2, 1)
    assert engine_equals(engine, before)
    engine.train([batch(TINY, 2)])
    assert (engine.step, engine.applied) == (3, 2)
    assert not engine_equals(engine, before)
    assert all(value.isfinite().all() for value in engine.state()[0].values())


def poisoned(made):
    feats = made.tokens.feats.clone()
    feats[3, 5] = math.nan
    return replace(made, tokens=made.tokens.with_feats(feats))


def test_the_run_ends_when_too_many_steps_in_a_row_are_skipped():
    engine, good = tiny_engine(), batch(TINY, 0)
    bad = poisoned(good)
    for made in [bad] * (PATIENCE - 1) + [good] + [bad] * (PATIENCE - 1):
        engine.train([made])
    assert (engine.step, engine.skipped) == (2 * PATIENCE - 1, 2 * PATIENCE - 2)
    with pytest.raises(AtokenError, match=f"{PATIENCE} steps in a row"):
        engine.train([bad])


def test_a_step_sums_over_tasks_the_mean_over_their_micro_batches():
    made, objective = [batch(TINY, step) for step in (0, 1, 2)], Objective(small_model(), TINY.used)
    assert [one.task for one in made] == ["image", "image", "clip"]
    losses = [objective(one)[0] for one in made]
    loss = (losses[0] + losses[1]) / 2 + losses[2]
    loss.backward()
    row = tiny_engine(mixed_precision=False).train(made)
    assert row["clip/loss"] == pytest.approx(losses[2].item(), rel=FP32)
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    assert row["loss"] == pytest.approx(loss.item(), rel=FP32)
    assert row["norm"] == pytest.approx(torch.nn.utils.get_total_norm(gradients).item(), rel=FP32)


def test_what_a_step_does_not_use_has_a_gradient_of_zero_and_decays():
    engine = tiny_engine(weight_decay=0.5, frozen=())
    before = engine.parameters["pool.kv.weight"].detach().clone()
    rate = engine.train([batch(TINY, 0)])["lr"]
    torch.testing.assert_close(engine.parameters["pool.kv.weight"].detach(), before * (1 - 0.5 * rate))


def engine_equals(engine, tensors):
    ours = engine.state()[0]
    assert ours.keys() == tensors.keys()
    return all(torch.equal(ours[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("muon", [0.0, 2.0])
def test_a_restored_engine_goes_on_as_the_first_would_have(muon):
    stage = replace(TINY, muon=muon)
    first, second = tiny_engine(muon=muon), PlainEngine(Objective(small_model(seed=1), TINY.used), stage, "cpu")
    first.train([batch(TINY, 0)])
    second.restore(snapshot(first), first.state()[1])
    for step in (1, 2):
        assert first.train([batch(TINY, step)]) == second.train([batch(TINY, step)])
    assert engine_equals(second, snapshot(first))


# Gaussians


@pytest.mark.parametrize("medium", ["surface", "views"])
def test_the_gaussian_decoder_learns_and_the_tokenizer_stays(medium):
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    pytest.importorskip("scipy", reason="the extra train is not installed")
    model = small_model(gaussian_decoder={"width": 48, "layers": 2, "heads": 4, "mlp": 64})
    task = replace(NANO_COLORS.tasks[medium], tokens=200, views=1)
    stage = replace(NANO_COLORS, tasks={medium: task}, mixture={medium: 1}, warmup=1, steps=12, lr=3e-3)
    engine = PlainEngine(Objective(model, stage.used), stage, "cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = batch(stage, 0)
    assert (made.task, made.values, len(made.tokens.lengths)) == (medium, 768, 1)
    rows = [engine.train([made]) for _ in range(stage.steps)]
    named = {f"{medium}/{name}" for name in ("loss", *(term.fn.__name__ for term in task.terms))}
    assert set(rows[0]) == {*named, "loss", "norm", "lr"}
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("gaussian_decoder.")


# A run


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
    assert [row["step"] for row in rows[0]] == list(range(TINY.steps))


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
    run_asked_to_end(TINY.steps - 1, tmp_path, monkeypatch)
    assert load_folder(tmp_path / "model")


def test_a_folder_that_holds_another_run_is_refused(uninterrupted, tmp_path):
    folder = uninterrupted.parent
    for change, said in (({"lr": 0.1}, "stage.lr: 0.0005, now 0.1"), ({"seed": 7}, "stage.seed: 0, now 7")):
        with pytest.raises(CheckpointError, match=rf"holds a finished run \({said}\); name another folder with -o"):
            tiny_run(replace(TINY, **change), folder)
    longer = replace(TINY, steps=TINY.steps + 1)
    with pytest.raises(CheckpointError, match=r"another run \(stage.preset: tiny, now tiny-2\)"):
        tiny_run(replace(longer, preset="tiny-2"), folder)
    (tmp_path / "data.toml").write_text('[image.mine]\nprocedural = "labelled"\n[clip.mine]\nprocedural = "mixed"\n')
    with pytest.raises(CheckpointError, match=r"another run \(data.procedural: True, now False"):
        run(longer, folder, start=None, feeds=load_feeds(tmp_path / "data.toml", longer), device="cpu", workers=0)


def noted(stage, tmp_path, data="", step=1):
    """The record of a start, as its file gives it back."""
    (tmp_path / "data.toml").write_text(data or '[image.made]\nprocedural = "mixed"\n')
    feeds = load_feeds(tmp_path / "data.toml", stage)
    return json.loads(json.dumps(record.record(stage, step, feeds.data, None, {}, {})))


def test_what_makes_a_run_another_one(tmp_path, monkeypatch):
    pictures = replace(TINY, mixture={"image": 1})
    made, more = '[image.made]\nprocedural = "mixed"\n', '[clip.made]\nprocedural = "mixed"\n'
    both = made + '[image.too]\nprocedural = "labelled"\n'
    before = noted(pictures, tmp_path, made)
    record.check_goes_on(before, noted(pictures, tmp_path, made + more), tmp_path)  # of a stage to come
    monkeypatch.chdir(tmp_path)
    record.check_goes_on(before, noted(pictures, tmp_path, made), tmp_path)
    record.check_goes_on({"stage": before["stage"]}, noted(pictures, tmp_path, both), tmp_path)  # an earlier version's
    for there, here in ((made, both), (both, made), (made, "seed = 5\n" + made)):
        with pytest.raises(CheckpointError, match=r"another run \(data\."):
            record.check_goes_on(noted(pictures, tmp_path, there), noted(pictures, tmp_path, here), tmp_path)
    for there, here in ((pictures, TINY), (TINY, pictures)):
        with pytest.warns(AtokenWarning, match=r"stage\.mixture\.clip"):
            record.check_goes_on(noted(there, tmp_path, made + more), noted(here, tmp_path, made + more), tmp_path)


def test_a_run_that_begins_anew_forgets_how_it_was_started(tmp_path):
    for steps in (2, 3):
        tiny_run(replace(TINY, steps=steps), tmp_path)
    for checkpoint in RunFolder(tmp_path).checkpoints():
        shutil.rmtree(checkpoint)
    for _ in range(2):
        tiny_run(replace(TINY, steps=2, seed=9), tmp_path)


def test_a_run_that_goes_on_at_another_rate_says_so(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted.parent, folder)
    with pytest.warns(AtokenWarning, match=r"goes on otherwise than it began \(stage.lr: 0.0005, now 0.1\)"):
        tiny_run(replace(TINY, steps=TINY.steps + 1, lr=0.1), folder)


def test_what_was_frozen_begins_with_its_weights_as_average():
    before, after = tiny_engine(frozen=(*UNUSED, "decoder.")), tiny_engine()
    before.train([batch(TINY, 0)])
    tensors, numbers = before.state()
    after.restore(tensors, numbers)
    for name, average in after.average.items():
        wanted = "weights" if name.startswith("decoder.") else "average"
        assert torch.equal(average, tensors[f"{wanted}/{name}"])
    after.train([batch(TINY, 1)])
    assert after.skipped == 0


@pytest.mark.parametrize(("there", "here"), [(0.0, 2.0), (2.0, 0.0)])
def test_a_run_may_change_its_optimiser(there, here):
    before, after = tiny_engine(muon=there), tiny_engine(muon=here)
    before.train([batch(TINY, 0)])
    after.restore(*before.state())
    assert math.isfinite(after.train([batch(TINY, 1)])["norm"])


def test_a_run_records_its_stage_its_packages_and_its_checkout(uninterrupted):
    noted = json.loads((uninterrupted.parent / "start-000000.json").read_text())
    assert (noted["step"], noted["stage"]["steps"], noted["stage"]["preset"]) == (0, TINY.steps, "tiny")
    terms = noted["stage"]["tasks"]["image"]["terms"]
    assert [(term["fn"], term["weight"]) for term in terms] == [("l1", 0.2), ("kl", 1e-8)]
    assert noted["teachers"] == {}
    assert (noted["data"]["file"], noted["start"]) == ("procedural", None)
    assert noted["launch"] == {"device": "cpu", "ranks": 1, "workers": 0, "zero": None}
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
        assert torch.equal(value, saved[f"weights/{name}" if frozen else f"average/{name}"].bfloat16())


def test_a_stage_that_starts_from_another_asks_for_it_and_takes_it_up(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny-d", SIZES | ONE_LAYER_MORE | {"fsq_levels": presets.FSQ_LEVELS})
    stage = replace(TINY, name="tiny-d", preset="tiny-d", start_from="tiny", steps=1)
    with pytest.raises(CheckpointError, match="starts from tiny"):
        tiny_run(stage, tmp_path / "a")
    model = load_folder(tiny_run(stage, tmp_path / "b", start=uninterrupted))
    assert model.config.fsq_levels == presets.FSQ_LEVELS


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
    assert [stage.steps for stage in stages] == [200_000, 200_000, 50_000, 100_000]
    configs = [presets.preset(stage.preset) for stage in stages]
    assert [config.latent_channels for config in configs] == [32, 48, 48, 48]
    assert [bool(config.fsq_levels) for config in configs] == [False, False, False, True]
    assert all(stage.beside == ("image-text",) for stage in stages)


def test_without_teachers_a_stage_has_no_term_of_theirs_and_keeps_what_nothing_reads():
    first, second = (CURRICULA["so400m-c"][name].without_teachers() for name in ("1", "2"))
    assert first.beside == second.beside == ()
    assert [term.fn.__name__ for term in first.tasks["image"].terms] == ["l1", "kl"]
    assert not first.teachers | second.teachers
    assert "pool." in first.frozen
    assert "pool." not in second.frozen  # clips are still matched with their captions


@pytest.mark.parametrize("mixture", [{"image": 3, "clip": 1}, {"image": 1, "clip": 1}, {"image": 2, "clip": 5}])
def test_every_cycle_holds_the_mixture_exactly_and_counts_on(mixture):
    stage, cycle = replace(TINY, mixture=mixture, beside=("part",)), sum(mixture.values())
    met = dict.fromkeys(TASKS, 0)
    for step in range(8 * cycle):
        for name, before in stage.tasks_of(step):
            assert before == met[name]
            met[name] += 1
    assert {name: met[name] for name in (*mixture, "part")} == {n: 8 * k for n, k in mixture.items()} | {
        "part": 8 * cycle
    }
