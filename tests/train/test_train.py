"""Training: terms in closed form, batches and schedules as functions of the step, and a run that can be interrupted."""

import importlib.metadata
import json
import math
import os
import platform
import re
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from atoken import presets
from atoken.bottleneck import Posterior
from atoken.checkpoint import load_folder
from atoken.errors import AtokenError, CheckpointError
from atoken.metrics import psnr_of
from atoken.model import ATokenConfig
from atoken.tokens import SparseTokens
from atoken.train import losses, record
from atoken.train.batches import MOST_SAMPLES, batch, batches, modality_of, sample_shape
from atoken.train.engine import PATIENCE, PlainEngine
from atoken.train.loop import START_BATCHES, run
from atoken.train.objective import Objective
from atoken.train.run_folder import RunFolder
from atoken.train.stages import NANO, NANO_D, NANO_PIXELS, STAGES
from atoken.train.start import discrete_start, linear_start
from tests.model.sizes import small_config, small_model
from tests.tolerances import FP32

TINY = replace(
    NANO_PIXELS,
    preset="tiny",
    steps=6,
    warmup=2,
    tokens=64,
    image_patches=(4, 16),
    clip_patches=(4, 9),
    clip_steps=(1, 2),
)
SIZES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in {"width": 64, "layers": 1, "heads": 2, "mlp": 800}.items()
}
ONE_LAYER_MORE = {"encoder_layers": 2, "decoder_layers": 2}


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", SIZES)


def tiny_engine(**changes):
    return PlainEngine(Objective(small_model(), TINY.terms), replace(TINY, **changes), "cpu")


# Losses


def test_l1_counts_real_values_only():
    inputs = SparseTokens(torch.zeros(5, 3072), torch.zeros(5, 4, dtype=torch.int32), (5,))
    ours = torch.full((5, 3072), 100.0)
    ours[:, :768] = torch.tensor([0.5, -0.25]).repeat(384)
    step = losses.Step(inputs, 768, None, inputs.with_feats(ours))
    assert losses.l1(step).item() == 0.375
    assert losses.l1(replace(step, values=3072)).item() == pytest.approx((0.375 + 300) / 4, rel=FP32)


def test_kl_is_the_divergence_to_the_unit_gaussian_summed_over_channels():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 7, 48, generator=generator)
    theirs = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    ours = losses.kl(SimpleNamespace(encoded=SimpleNamespace(posterior=Posterior(mean, logvar))))
    torch.testing.assert_close(ours, theirs, rtol=FP32, atol=0)
    zeros = Posterior(torch.zeros(3, 48), torch.zeros(3, 48))
    assert losses.kl(SimpleNamespace(encoded=SimpleNamespace(posterior=zeros))) == 0


@pytest.mark.parametrize("step", [0, 2])
def test_the_loss_is_the_weighted_sum_of_its_terms(step):
    made = batch(TINY, step)
    loss, terms = Objective(small_model(), TINY.terms)(made)
    expected = sum(term.weight * terms[term.fn.__name__] for term in TINY.terms[made.modality])
    torch.testing.assert_close(loss.detach(), expected, rtol=FP32, atol=0)
    assert set(terms) == {"l1", "kl"}
    assert not any(value.requires_grad for value in terms.values())


# Batches


@pytest.mark.parametrize("mixture", [{"image": 3, "clip": 1}, {"image": 1, "clip": 1}, {"image": 2, "clip": 5}])
def test_every_cycle_holds_the_mixture_exactly(mixture):
    stage, cycle = replace(TINY, mixture=mixture), sum(mixture.values())
    for first in (0, cycle, 7 * cycle):
        names = [modality_of(stage, step) for step in range(first, first + cycle)]
        assert {name: names.count(name) for name in mixture} == mixture
        assert names == [modality_of(stage, step) for step in range(cycle)]


def same(ours, theirs):
    return (
        (ours.modality, ours.values, ours.tokens.lengths) == (theirs.modality, theirs.values, theirs.tokens.lengths)
        and torch.equal(ours.tokens.feats, theirs.tokens.feats)
        and torch.equal(ours.tokens.coords, theirs.tokens.coords)
    )


def test_a_batch_is_a_function_of_stage_and_step():
    first = [batch(TINY, step) for step in range(TINY.steps)]
    for workers in (0, 1):
        again = list(batches(TINY, 2, workers))
        assert len(again) == TINY.steps - 2
        assert all(same(*pair) for pair in zip(first[2:], again, strict=True))
    assert not any(same(first[0], other) for other in first[1:])
    assert not same(first[0], batch(replace(TINY, seed=1), 0))


def test_a_batch_keeps_to_its_budget_its_modality_and_its_sizes():
    for step in range(12):
        made = batch(TINY, step)
        numbers = range(step * MOST_SAMPLES, step * MOST_SAMPLES + len(made.tokens.lengths) + 1)
        *taken, next_one = [math.prod(sample_shape(TINY, made.modality, number)) for number in numbers]
        assert made.tokens.lengths == tuple(taken)
        assert sum(taken) <= TINY.tokens < sum(taken) + next_one
        assert made.modality == modality_of(TINY, step)
        for part in made.tokens.unpack():
            steps, rows, columns = (int(part.coords[:, axis].max()) + 1 for axis in range(3))
            assert steps * rows * columns == len(part.feats)
            assert steps <= (TINY.clip_steps[1] if made.modality == "clip" else 1)
            assert rows * columns <= (TINY.clip_patches if made.modality == "clip" else TINY.image_patches)[1]
        assert made.values == (3072 if made.modality == "clip" else 768)
        assert not made.tokens.feats[:, made.values :].any()
        assert made.tokens.feats.abs().max() <= 1


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


def test_a_step_takes_the_mean_over_its_micro_batches():
    made, objective = [batch(TINY, step) for step in (0, 2)], Objective(small_model(), TINY.terms)
    assert made[0].modality != made[1].modality
    loss = torch.stack([objective(one)[0] for one in made]).mean()
    loss.backward()
    row = tiny_engine(mixed_precision=False).train(made)
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
    first, second = tiny_engine(muon=muon), PlainEngine(Objective(small_model(seed=1), TINY.terms), stage, "cpu")
    first.train([batch(TINY, 0)])
    second.restore(snapshot(first), first.state()[1])
    for step in (1, 2):
        assert first.train([batch(TINY, step)]) == second.train([batch(TINY, step)])
    assert engine_equals(second, snapshot(first))


# Gaussians


@pytest.mark.parametrize("modality", ["surface", "views"])
def test_the_gaussian_decoder_learns_and_the_tokenizer_stays(modality):
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    pytest.importorskip("scipy", reason="the extra train is not installed")
    model = small_model(gaussian_decoder={"width": 48, "layers": 2, "heads": 4, "mlp": 64})
    stage = replace(NANO, mixture={modality: 1}, tokens=200, views=1, warmup=1, steps=12, lr=3e-3)
    engine = PlainEngine(Objective(model, stage.terms), stage, "cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = batch(stage, 0)
    assert (made.modality, made.values, len(made.tokens.lengths)) == (modality, 768, 1)
    rows = [engine.train([made]) for _ in range(stage.steps)]
    assert set(rows[0]) == {*(term.fn.__name__ for term in stage.terms[modality]), "loss", "norm", "lr"}
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
        return run(TINY, tmp_path_factory.mktemp("run"), start=None, device="cpu", workers=0)


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
    again = {"start": None, "device": "cpu", "workers": 0, "save_every": save_every}
    with killed_before(3):
        run(TINY, tmp_path, **again)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "modal')  # killed while it wrote
    (tmp_path / ".step-000003.part").mkdir()
    torch.manual_seed(99)
    model = run(TINY, tmp_path, **again)
    ours, theirs = exported(model), exported(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rows = [[json.loads(line) for line in (folder / "log.jsonl").open()] for folder in (tmp_path, uninterrupted.parent)]
    for row in rows[0] + rows[1]:
        assert row.pop("seconds") >= 0
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(TINY.steps))


def test_sigterm_saves_the_step_that_ran_and_the_run_goes_on_from_there(uninterrupted, tmp_path, monkeypatch):
    again = {"start": None, "device": "cpu", "workers": 0}
    train = PlainEngine.train

    def is_asked_to_end(engine, made):
        if engine.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(engine, made)

    with monkeypatch.context() as patch:
        patch.setattr(PlainEngine, "train", is_asked_to_end)
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            run(TINY, tmp_path, **again)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [folder.name for folder in RunFolder(tmp_path).checkpoints()] == ["step-000003"]
    ours, theirs = exported(run(TINY, tmp_path, **again)), exported(uninterrupted)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    starts = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("start-*.json")}
    assert sorted(starts) == ["start-000000.json", "start-000003.json"]
    assert starts["start-000003.json"] == starts["start-000000.json"] | {"step": 3}


def test_a_run_records_its_stage_its_packages_and_its_checkout(uninterrupted):
    noted = json.loads((uninterrupted.parent / "start-000000.json").read_text())
    assert (noted["step"], noted["stage"]["steps"], noted["stage"]["preset"]) == (0, TINY.steps, "tiny")
    terms = noted["stage"]["terms"]["image"]
    assert terms == [{"fn": term.fn.__name__, "weight": term.weight} for term in TINY.terms["image"]]
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
    run(TINY, uninterrupted.parent, start=None, device="cpu", workers=0)
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
        run(stage, tmp_path / "a", start=None, device="cpu", workers=0)
    model = load_folder(run(stage, tmp_path / "b", start=uninterrupted, device="cpu", workers=0))
    assert model.config.fsq_levels == presets.FSQ_LEVELS


def test_stages_name_presets_and_stages_that_exist():
    for name, stage in STAGES.items():
        assert name == stage.name
        assert presets.preset(stage.preset)
        assert stage.start_from is None or stage.start_from in STAGES
        assert set(stage.mixture) <= set(stage.terms)
    assert presets.preset(NANO_D.preset).fsq_levels
    assert not presets.preset(NANO.preset).fsq_levels


# Starts


def one_layer(**changes):
    return ATokenConfig(**(presets.PRESETS["nano"] | {"encoder_layers": 1, "decoder_layers": 1} | changes))


def test_linear_start_is_near_the_best_linear_code():
    stage = replace(NANO_PIXELS, tokens=512, image_patches=(16, 64), mixture={"image": 1})
    *seen, held_out = [batch(stage, step).tokens for step in range(7)]
    config = one_layer()
    model = linear_start(config, seen)
    with torch.no_grad():
        ours = model(held_out)[1].feats[:, :768]
    values, wanted = (torch.cat([part.feats[:, :768] for part in parts]).double() for parts in (seen, [held_out]))
    mean = values.mean(0)
    basis = torch.linalg.svd(values - mean, full_matrices=False).Vh[: config.latent_channels]
    best = (wanted - mean) @ basis.T @ basis + mean
    decibels = [psnr_of(float((255 / 2) ** 2 * (result - wanted).square().mean())) for result in (ours, best)]
    assert decibels[1] - decibels[0] < 0.6
    assert decibels[1] > psnr_of(float((255 / 2) ** 2 * (mean - wanted).square().mean())) + 3  # PCA says something


def test_linear_start_shows_a_still_clip():
    model = linear_start(one_layer(), [batch(TINY, step).tokens for step in (0, 1, 3, 4, 5, 7, 8)])
    with torch.no_grad():
        frames = model(batch(TINY, 2).tokens)[1].feats.unflatten(1, (4, 768))
    for later in frames.unbind(1)[1:]:
        torch.testing.assert_close(later, frames[:, 0], atol=FP32, rtol=0)


def test_discrete_start_reads_the_latents_off_its_codes():
    tokens = [batch(TINY, step).tokens for step in range(8)]
    with torch.no_grad():
        model = linear_start(one_layer(), tokens)
        discrete = discrete_start(model, one_layer(**ONE_LAYER_MORE, fsq_levels=presets.FSQ_LEVELS), tokens)
        error = signal = 0.0
        for part in tokens:
            ours, theirs = discrete(part)[1].feats[:, :768], model(part)[1].feats[:, :768]
            error += float((ours - theirs).square().sum())
            signal += float((theirs - theirs.mean(0)).square().sum())
    # 48 digits of two bits for some 48 coefficients: plain two bits each would be 9.3 dB for Gaussians.
    assert 10 * np.log10(signal / error) > 15


def test_a_start_needs_an_mlp_that_is_wide_enough():
    tokens = [batch(TINY, step).tokens for step in range(2)]
    model = linear_start(small_config(), tokens)
    config = small_config(encoder_layers=3, decoder_layers=3, fsq_levels=presets.FSQ_LEVELS)
    with pytest.raises(ValueError, match="MLP of 128"):
        discrete_start(model, config, tokens)


@pytest.mark.parametrize("frozen", [(), ("encoder.", "to_latent.")])
def test_frozen_parameters_stay_and_come_back(frozen, tmp_path):
    model = load_folder(run(replace(TINY, frozen=frozen), tmp_path, start=None, device="cpu", workers=0))
    torch.manual_seed(TINY.seed)
    pictures = [batch(TINY, step).tokens for step in range(START_BATCHES) if modality_of(TINY, step) == "image"]
    start = linear_start(presets.preset("tiny"), pictures)
    for name, parameter in start.state_dict().items():
        if frozen and name.startswith(frozen):
            torch.testing.assert_close(model.state_dict()[name], parameter.bfloat16(), atol=0, rtol=0)
    assert not torch.equal(model.to_patch.weight.float(), start.to_patch.weight.bfloat16().float())
    assert bool(frozen) == torch.equal(model.to_latent.weight.float(), start.to_latent.weight.bfloat16().float())
