"""One step: rates in closed form, the EMA, steps that are skipped, and an engine that resumes."""

import math
from dataclasses import replace

import pytest
import torch

from atoken.errors import AtokenError, CheckpointError
from atoken.train.engine import PATIENCE, PlainEngine
from atoken.train.recipe import Recipe
from tests.tolerances import FP32
from tests.train.flow import RECIPE, Flow, Shapes
from tests.train.kept import contents, saved

SOURCE = Shapes(not_finite=(3,))  # a step of this source, not of the engine


def engine_of(seed=0, resumed=None, objective=Flow, **changes):
    return PlainEngine(objective(seed), replace(RECIPE, **changes), "cpu", resumed)


def batches(step):
    return [SOURCE.batch(key) for key in SOURCE.keys(step)]


def weights(engine):
    return {name: parameter.detach().clone() for name, parameter in engine.objective.named_parameters()}


def equal(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in right)


def test_learning_rate_warms_up_in_a_line_and_falls_as_a_cosine():
    recipe = Recipe(steps=110, warmup=10, lr=3e-4, final_lr=3e-6)
    assert recipe.learning_rate(0) == pytest.approx(3e-5)
    assert recipe.learning_rate(4) == pytest.approx(1.5e-4)
    assert recipe.learning_rate(9) == recipe.learning_rate(10) == pytest.approx(3e-4)
    assert recipe.learning_rate(60) == pytest.approx((3e-4 + 3e-6) / 2)
    assert recipe.learning_rate(35) == pytest.approx(3e-6 + (3e-4 - 3e-6) * (1 + math.sqrt(0.5)) / 2)
    assert recipe.learning_rate(110) == pytest.approx(3e-6)


def test_groups_have_their_own_rate_and_decay_and_what_is_in_none_is_frozen():
    engine = engine_of()
    before, rate = weights(engine), engine.train(batches(0))["lr"]
    of = {id(p): group for group in engine.optimisers[0].param_groups for p in group["params"]}
    assert len(of) == len(engine.parameters) == len(before) - 1
    for group in engine.objective.parameter_groups():
        for name in group.names:
            found = of[id(engine.parameters[name])]
            assert found["lr"] == pytest.approx(rate * group.lr_scale)
            assert found["weight_decay"] == (RECIPE.weight_decay if group.decay else 0.0)
    after = weights(engine)
    assert {name for name in before if torch.equal(before[name], after[name])} == {
        "frequencies", "branches.cross.bias"
    }  # fmt: skip


class Ungrouped(Flow):
    parameter_groups = Flow.__mro__[1].parameter_groups


def test_without_groups_all_is_trained_and_only_matrices_decay():
    engine = engine_of(objective=Ungrouped)
    matrices, others = engine.optimisers[0].param_groups
    assert matrices["weight_decay"] == RECIPE.weight_decay
    assert others["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in matrices["params"])
    assert len(matrices["params"]) + len(others["params"]) == len(list(engine.objective.parameters()))


def test_steps_are_those_of_adamw_written_out_with_the_betas_decay_and_clip_of_the_recipe():
    """Loshchilov and Hutter 2019, algorithm 2, on gradients whose norm is clipped first."""
    engine, twin = engine_of(betas=(0.6, 0.9), clip=0.1), Flow().double()
    named = {name: p for name, p in twin.named_parameters() if name in engine.parameters}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in named.items()}
    groups = {name: group for group in twin.parameter_groups() for name in group.names}
    for step, made in enumerate(map(batches, (0, 1, 2, 4)), 1):
        engine.train(made)
        twin.zero_grad()
        (sum(twin(replace(one, rows=one.rows.double()))[0] for one in made) / 2).backward()
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()}
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        for name, parameter in named.items():
            gradient, (first, second) = gradients[name] * (0.1 / (norm + 1e-6)).clamp(max=1), moments[name]
            first.mul_(0.6).add_(0.4 * gradient)
            second.mul_(0.9).add_(0.1 * gradient**2)
            rate = engine.recipe.learning_rate(step - 1) * groups[name].lr_scale
            change = (first / (1 - 0.6**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)
            decay = engine.recipe.weight_decay if groups[name].decay else 0.0
            parameter.data = parameter.data * (1 - rate * decay) - rate * change
    for name, parameter in named.items():
        torch.testing.assert_close(engine.parameters[name].double(), parameter, atol=10 * FP32, rtol=0)


def test_muon_updates_the_matrices_that_it_may_and_adamw_the_rest():
    engine = engine_of(muon=2.0, warmup=0, weight_decay=0.0)
    before, rate = weights(engine), engine.train(batches(0))["lr"]
    muon = {name for name, optimiser in engine.owners.items() if isinstance(optimiser, torch.optim.Muon)}
    assert muon == set(engine.objective.parameter_groups()[0].names)
    for name in ("first.weight", "branches.ring.weight"):
        # Muon's step is the gradient with all its singular values brought near to 1.
        change = (weights(engine)[name] - before[name]) / (0.5 * 2.0 * rate)
        assert torch.linalg.matrix_norm(change, 2) == pytest.approx(1, abs=0.35)
    assert not torch.equal(engine.parameters["last.weight"], before["last.weight"])


def test_clipping_at_zero_is_none():
    engine, free = engine_of(clip=1e9), engine_of(clip=0.0)
    for one in (engine, free):
        for step in (0, 1):
            row = one.train([replace(batch, rows=batch.rows * 20) for batch in batches(step)])
            assert row["norm"] > 1
    assert equal(engine.ema, free.ema)


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_products_are_in_bf16_where_the_recipe_asks_for_it(mixed_precision):
    engine, seen = engine_of(mixed_precision=mixed_precision), []
    engine.objective.first.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    engine.train(batches(0))
    assert set(seen) == {torch.bfloat16 if mixed_precision else torch.float32}


def test_what_is_frozen_gets_no_gradient_and_what_is_exported_is_the_ema():
    engine = engine_of()
    for step in (0, 1):
        engine.train(batches(step))
    frozen = engine.objective.frequencies
    assert not frozen.requires_grad
    assert frozen.grad is None
    exported = engine.ema_weights()
    assert equal({name: exported[name] for name in engine.ema}, engine.ema)
    assert exported.keys() - engine.ema.keys() == {"frequencies"}
    assert torch.equal(exported["frequencies"], frozen)
    assert not torch.equal(exported["first.weight"], engine.objective.first.weight)


@pytest.mark.parametrize("skipped", [(), (1, 2)], ids=["every step applied", "two skipped"])
def test_the_ema_ramps_up_to_its_decay_with_the_steps_that_are_applied(skipped):
    engine = engine_of(ema=0.2)  # reached at the second applied step: (1 + 2) / (10 + 2) is more
    expected, decays = {name: p.detach().double() for name, p in engine.parameters.items()}, [2 / 11, 0.2, 0.2]
    for step in range(3 + len(skipped)):
        engine.train(batches(3 if step in skipped else 10 + step))
        if step not in skipped:
            decay = decays.pop(0)
            for name, parameter in engine.parameters.items():
                expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
        for name, value in expected.items():
            torch.testing.assert_close(engine.ema[name].double(), value, atol=FP32, rtol=0)
    assert decays == []
    counts = {float(state["step"]) for state in engine.optimisers[0].state.values()}
    assert counts == {3.0} == {float(engine.applied)}


def test_a_gradient_that_is_not_finite_is_skipped(tmp_path):
    engine = engine_of()
    engine.train(batches(0))
    before = contents(saved(engine, tmp_path), engine.objective)
    row = engine.train(batches(3))
    assert math.isnan(row["norm"])
    assert (engine.step, engine.applied, engine.skipped) == (2, 1, 1)
    assert equal(contents(saved(engine, tmp_path), engine.objective), before)
    assert engine.train(batches(2))["lr"] == engine.recipe.learning_rate(2)  # the schedule goes by steps seen
    assert (engine.step, engine.applied) == (3, 2)
    after = contents(saved(engine, tmp_path), engine.objective)
    assert not equal(after, before)
    assert all(value.isfinite().all() for value in after.values())


def test_the_run_ends_when_too_many_steps_in_a_row_are_skipped():
    engine, good, bad = engine_of(), batches(0), batches(3)
    for made in [bad] * (PATIENCE - 1) + [good] + [bad] * (PATIENCE - 1):
        engine.train(made)
    assert (engine.step, engine.skipped) == (2 * PATIENCE - 1, 2 * PATIENCE - 2)
    with pytest.raises(AtokenError, match=f"{PATIENCE} steps in a row"):
        engine.train(bad)


def test_a_step_sums_over_tasks_the_mean_over_their_micro_batches():
    made, objective = [*batches(0), *batches(1)[:1]], Flow()
    assert [one.task for one in made] == ["ring", "ring", "cross"]
    losses = [objective(one)[0] for one in made]
    loss = (losses[0] + losses[1]) / 2 + losses[2]
    loss.backward()
    row = engine_of().train(made)
    assert row["cross/loss"] == row["cross/error"] == pytest.approx(losses[2].item(), rel=FP32)
    gradients = [p.grad for name, p in objective.named_parameters() if name != "frequencies"]
    assert row["loss"] == pytest.approx(loss.item(), rel=FP32)
    assert row["norm"] == pytest.approx(torch.nn.utils.get_total_norm(gradients).item(), rel=FP32)


def test_what_a_step_does_not_use_has_a_gradient_of_zero_and_decays():
    engine = engine_of(weight_decay=0.5)
    before, rate = weights(engine)["branches.cross.weight"], engine.train(batches(0))["lr"]
    torch.testing.assert_close(engine.parameters["branches.cross.weight"].detach(), before * (1 - 0.5 * 0.5 * rate))


@pytest.mark.parametrize("muon", [0.0, 2.0])
def test_an_engine_that_resumes_continues_as_the_first_would_have(muon, tmp_path):
    first = engine_of(muon=muon)
    for step in (0, 3, 1):  # one of them is skipped
        first.train(batches(step))
    second = engine_of(seed=1, resumed=saved(first, tmp_path), muon=muon)
    assert (second.step, second.applied) == (3, 2)
    for step in (2, 4):
        assert first.train(batches(step)) == second.train(batches(step))
    left, right = (saved(engine, tmp_path / f"{number}") for number, engine in enumerate((first, second)))
    assert left.numbers == right.numbers
    assert equal(contents(left, Flow()), contents(right, Flow()))


class Headless(Flow):
    """Whose last layer is not trained."""

    def parameter_groups(self):
        return [group._replace(names=tuple(n for n in group.names if n[:5] != "last.")) for group in
                super().parameter_groups()]  # fmt: skip


def test_what_was_frozen_begins_with_its_weights_as_ema(tmp_path):
    before = engine_of(objective=Headless)
    before.train(batches(0))
    resumed = saved(before, tmp_path)
    after = engine_of(seed=1, resumed=resumed)
    for name, ema in after.ema.items():
        kind = "weights" if name.startswith("last.") else "ema"
        assert torch.equal(ema.flatten(), resumed.read(f"{kind}/{name}", 0, ema.numel()))
    after.train(batches(1))
    assert after.skipped == 0


@pytest.mark.parametrize(("there", "here"), [(0.0, 2.0), (2.0, 0.0)])
def test_a_run_may_change_its_optimiser(there, here, tmp_path):
    before = engine_of(muon=there)
    before.train(batches(0))
    after = engine_of(muon=here, resumed=saved(before, tmp_path))
    assert math.isfinite(after.train(batches(1))["norm"])


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    found = saved(engine_of(), tmp_path)
    larger = Flow()
    larger.last = torch.nn.Linear(16, 3)
    with pytest.raises(CheckpointError, match=r"does not fit what is trained: it has 32 of 48 weights/last\.weight"):
        PlainEngine(larger, RECIPE, "cpu", found)
