"""One step: rates in closed form, the EMA, steps that are skipped, and an engine restored."""

import math
from dataclasses import replace

import pytest
import torch

from atoken.errors import AtokenError
from atoken.pretrain.curriculum import NANO_COLORS, UNUSED
from atoken.pretrain.objective import Objective
from atoken.train.engine import PATIENCE
from atoken.train.recipe import Recipe
from tests.model.sizes import small_model
from tests.pretrain.tiny import (
    TINY,
    batch,
    changed,
    engine_of,
    tiny_engine,
    tiny_preset,  # noqa: F401 - a fixture for all tests here
)
from tests.tolerances import FP32


def test_learning_rate_warms_up_in_a_line_and_falls_as_a_cosine():
    recipe = Recipe(steps=110, warmup=10, lr=3e-4, final_lr=3e-6)
    assert recipe.learning_rate(0) == pytest.approx(3e-5)
    assert recipe.learning_rate(4) == pytest.approx(1.5e-4)
    assert recipe.learning_rate(9) == recipe.learning_rate(10) == pytest.approx(3e-4)
    assert recipe.learning_rate(60) == pytest.approx((3e-4 + 3e-6) / 2)
    assert recipe.learning_rate(35) == pytest.approx(3e-6 + (3e-4 - 3e-6) * (1 + math.sqrt(0.5)) / 2)
    assert recipe.learning_rate(110) == pytest.approx(3e-6)


def test_the_encoder_has_its_own_rate_and_only_matrices_decay():
    engine = tiny_engine(encoder_lr=0.1)
    rate = engine.train([batch(TINY, 0)])["lr"]
    of = {id(p): group for group in engine.optimisers[0].param_groups for p in group["params"]}
    assert len(of) == len(engine.parameters)
    for name, parameter in engine.parameters.items():
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(rate * (0.1 if name.startswith("model.encoder.") else 1.0))
        assert group["weight_decay"] == (TINY.recipe.weight_decay if parameter.ndim > 1 else 0.0)


def test_muon_updates_the_matrices_of_blocks_and_adamw_moves_the_rest():
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
        assert torch.equal(parameter, before[name]) or not name.startswith("model.encoder.")
    assert not torch.equal(
        engine.parameters["model.decoder.blocks.0.mlp.up.weight"], before["model.decoder.blocks.0.mlp.up.weight"]
    )


def test_clipping_at_zero_is_none():
    engine, free = tiny_engine(clip=1e9), tiny_engine(clip=0.0)
    for one in (engine, free):
        one.train([batch(TINY, 0)])
    assert all(torch.equal(engine.ema[name], free.ema[name]) for name in engine.ema)


def test_the_ema_ramps_up_to_its_decay():
    engine = tiny_engine(ema=0.2)  # reached at the second step: (1 + 2) / (10 + 2) is more
    expected = {name: p.detach().double() for name, p in engine.parameters.items()}
    for step, decay in enumerate((2 / 11, 0.2, 0.2)):
        engine.train([batch(TINY, step)])
        for name, parameter in engine.parameters.items():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
            torch.testing.assert_close(engine.ema[name].double(), expected[name], atol=FP32, rtol=0)


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
    made, objective = [batch(TINY, step) for step in (0, 1, 2)], Objective(small_model(), TINY)
    assert [one.task for one in made] == ["image", "image", "video"]
    losses = [objective(one)[0] for one in made]
    loss = (losses[0] + losses[1]) / 2 + losses[2]
    loss.backward()
    row = tiny_engine(mixed_precision=False).train(made)
    assert row["video/loss"] == pytest.approx(losses[2].item(), rel=FP32)
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    assert row["loss"] == pytest.approx(loss.item(), rel=FP32)
    assert row["norm"] == pytest.approx(torch.nn.utils.get_total_norm(gradients).item(), rel=FP32)


def test_what_a_step_does_not_use_has_a_gradient_of_zero_and_decays():
    engine = tiny_engine(weight_decay=0.5, frozen=())
    before = engine.parameters["model.pool.kv.weight"].detach().clone()
    rate = engine.train([batch(TINY, 0)])["lr"]
    torch.testing.assert_close(engine.parameters["model.pool.kv.weight"].detach(), before * (1 - 0.5 * rate))


def engine_equals(engine, tensors):
    ours = engine.state()[0]
    assert ours.keys() == tensors.keys()
    return all(torch.equal(ours[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("muon", [0.0, 2.0])
def test_a_restored_engine_goes_on_as_the_first_would_have(muon):
    first, second = tiny_engine(muon=muon), engine_of(changed(TINY, muon=muon), small_model(seed=1))
    first.train([batch(TINY, 0)])
    second.restore(snapshot(first), first.state()[1])
    for step in (1, 2):
        assert first.train([batch(TINY, step)]) == second.train([batch(TINY, step)])
    assert engine_equals(second, snapshot(first))


def test_the_gaussian_decoder_learns_and_the_tokenizer_stays():
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    pytest.importorskip("scipy", reason="the extra train is not installed")
    model = small_model(gaussian_decoder={"width": 48, "layers": 2, "heads": 4, "mlp": 64})
    task = replace(NANO_COLORS.tasks["surface"], tokens=200)
    stage = changed(NANO_COLORS, tasks={"surface": task}, mixture={"surface": 1}, warmup=1, steps=12, lr=3e-3)
    engine = engine_of(stage, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = batch(stage, 0)
    assert (made.task, made.values, len(made.tokens.lengths)) == ("surface", 768, 1)
    rows = [engine.train([made]) for _ in range(stage.recipe.steps)]
    named = {f"surface/{name}" for name in ("loss", *(term.fn.__name__ for term in task.terms))}
    assert set(rows[0]) == {*named, "loss", "norm", "lr"}
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("gaussian_decoder.")


def test_what_was_frozen_begins_with_its_weights_as_ema():
    before, after = tiny_engine(frozen=(*UNUSED, "decoder.")), tiny_engine()
    before.train([batch(TINY, 0)])
    tensors, numbers = before.state()
    after.restore(tensors, numbers)
    for name, ema in after.ema.items():
        wanted = "weights" if name.startswith("model.decoder.") else "ema"
        assert torch.equal(ema, tensors[f"{wanted}/{name}"])
    after.train([batch(TINY, 1)])
    assert after.skipped == 0


@pytest.mark.parametrize(("there", "here"), [(0.0, 2.0), (2.0, 0.0)])
def test_a_run_may_change_its_optimiser(there, here):
    before, after = tiny_engine(muon=there), tiny_engine(muon=here)
    before.train([batch(TINY, 0)])
    after.restore(*before.state())
    assert math.isfinite(after.train([batch(TINY, 1)])["norm"])
