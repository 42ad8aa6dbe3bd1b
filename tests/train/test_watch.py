"""Watching a run: what is logged is what was done, and nothing that is trained notices."""

import json
import random
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atoken.train import watch as module
from atoken.train.engine import PlainEngine
from atoken.train.report import report
from atoken.train.run_folder import RunFolder
from atoken.train.watch import Watch
from tests.report.pages import Page
from tests.train.flow import RECIPE, Flow, Shapes

SIX = replace(RECIPE, steps=6)
SOURCE = Shapes((("ring", "cross"), ("ring",)))


@torch.no_grad()
def evaluate(weights):
    """How far from the ring its points lie that Euler's method finds, in the mean, and an image of them."""
    flow, points = Flow(), torch.randn(256, 2)
    flow.load_state_dict(weights, strict=False)  # a weight that is used twice comes once
    for sigma in torch.linspace(1, 0.05, 20):
        points = points - flow.velocity(points, sigma.expand(256, 1), "ring") / 20
    image = np.zeros((64, 64, 3), np.uint8)
    image[tuple((points.clamp(-1.9, 1.9) * 16 + 32).long().T)] = 255
    return {"ring/distance": (points.norm(dim=1) - 1).abs().mean().item()}, image


def engine_of():
    return PlainEngine(Flow(), SIX, "cpu")


def batches_of(step):
    return [SOURCE.batch(key) for key in SOURCE.keys(step)]


def watched(engine, folder, until, every=0):
    """Train to a step as the loop does."""
    run_folder = RunFolder(folder)
    run_folder.rewind(engine.step)
    with closing(Watch(engine, run_folder, evaluate, every)) as watch:
        while engine.step < until:
            batches = batches_of(engine.step)
            watch.step(engine.train(batches), batches, 0.0)
            watch.evaluate_if_due()
    return engine


def rows_of(folder, name="log"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def events_of(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def test_time_is_that_of_steps_and_not_of_what_lies_between(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    engine = engine_of()
    watch = Watch(engine, RunFolder(tmp_path), None, 0)
    watch.peak = 1e9
    for step in range(2):
        batches = batches_of(step)
        row = engine.train(batches)
        clock.now += 4.0
        watch.step(row, batches, 1.0)
        clock.now += 100.0  # an evaluation and a checkpoint
        watch.restart_clock()
    rows = rows_of(tmp_path)
    assert [row["mfu"] for row in rows] == [row["flops"] / 4e9 for row in rows]
    assert [(row["seconds"], row["data"]) for row in rows] == [(4.0, 1.0), (108.0, 1.0)]


def test_a_row_holds_what_the_engine_found_and_what_was_seen(tmp_path):
    engine, found = engine_of(), []
    with closing(Watch(engine, RunFolder(tmp_path), None, 0)) as watch:
        for step in range(3):
            batches = batches_of(step)
            if step == 1:
                batches[0].rows[0] = torch.nan
            found.append({**engine.train(batches), "drawn": 4, "broken": step})
            watch.step(found[-1], batches, 0.0)
    rows = rows_of(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 1, 1]
    assert [row["tasks"] for row in rows] == [["ring", "cross"], ["ring"], ["ring", "cross"]]
    assert [row["tokens"] for row in rows] == [4 * 32, 2 * 32, 4 * 32]
    assert [row["flops"] for row in rows] == [n * Flow().flops(batches_of(0)[0]) for n in (4, 2, 4)]
    assert all(row["mfu"] is None and row["memory"] > 1 << 20 for row in rows)
    for step, (row, engine_row) in enumerate(zip(rows, found, strict=True)):
        assert row["step"] == step
        assert {name: row[name] for name in engine_row} == pytest.approx(engine_row, nan_ok=True, rel=0, abs=0)


def test_tensorboard_holds_every_number_of_both_logs_and_the_images(tmp_path):
    watched(engine_of(), tmp_path, 4, every=2)
    events = events_of(tmp_path)
    rows = [*rows_of(tmp_path), *rows_of(tmp_path, "evaluation")]
    logged = {(k, row["step"]): v for row in rows for k, v in row.items() if k not in ("step", "tasks", "mfu")}
    assert {tag for tag, _ in logged} == set(events.Tags()["scalars"])
    shown = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert shown == {key: np.float32(value) for key, value in logged.items()}
    images = events.Images("evaluation")
    assert [event.step for event in images] == [1, 3]
    (tmp_path / "event.png").write_bytes(images[1].encoded_image_string)
    with Image.open(tmp_path / "event.png") as event, Image.open(tmp_path / "images/step-000003.png") as file:
        np.testing.assert_array_equal(np.asarray(event), np.asarray(file))


def test_without_tensorboard_the_run_continues_and_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    watched(engine_of(), tmp_path, 2, every=1)
    assert capsys.readouterr().err.count("pip install 'atoken[train]'") == 1
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 1]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (3, [3, 6]), (9, [6])])
def test_all_ranks_take_part_in_an_evaluation_and_the_first_alone_writes(every, steps, tmp_path, monkeypatch):
    engine, calls = engine_of(), []
    ema_weights = engine.ema_weights
    monkeypatch.setattr(engine, "rank", 1)
    monkeypatch.setattr(engine, "ema_weights", lambda: calls.append(engine.step) or ema_weights())
    with closing(Watch(engine, RunFolder(tmp_path), evaluate, every)) as watch:
        batches = batches_of(0)
        row = engine.train(batches)
        for engine.step in range(1, SIX.steps + 1):
            watch.step(row, batches, 0.0)
            watch.evaluate_if_due()
    assert calls == steps
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_done_writes_nothing_more(tmp_path):
    engine = engine_of()
    engine.step = SIX.steps
    watched(engine, tmp_path, SIX.steps, every=1)
    assert list(tmp_path.iterdir()) == []


def randomness():
    of_numpy = np.random.get_state()[1].tolist()  # noqa: NPY002 - that it is left alone is what is tested
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy


def test_an_evaluation_changes_nothing_that_is_trained(tmp_path):
    plain, engine = engine_of(), engine_of()
    watch = Watch(engine, RunFolder(tmp_path), lambda weights: (torch.rand(3), evaluate(weights))[1], 1)
    for step in range(3):
        plain.train(batches_of(step))
        engine.train(batches_of(step))
        before, modes = randomness(), [part.training for part in engine.objective.modules()]
        watch.evaluate_if_due()
        assert randomness() == before
        assert [part.training for part in engine.objective.modules()] == modes
        assert all(parameter.grad is None for parameter in engine.objective.parameters())
    for watched_state, state in ((engine.masters, plain.masters), (engine.ema, plain.ema)):
        assert all(torch.equal(watched_state[name], state[name]) for name in state)


def test_what_is_evaluated_are_the_ema_weights(tmp_path):
    engine = watched(engine_of(), tmp_path, 2, every=2)
    expected, _ = evaluate(engine.ema_weights())
    assert rows_of(tmp_path, "evaluation") == [{"step": 1, **expected}]
    assert evaluate(dict(engine.objective.named_parameters()))[0] != expected


def test_the_report_shows_the_curves_of_every_task_and_the_newest_image(tmp_path):
    watched(engine_of(), tmp_path, 4, every=2)
    page = Page(report([tmp_path]))
    charts = {title: texts for _, title, texts in page.charts}
    assert {"loss", "error", "distance", "gradient norm", "FLOPs a step"} <= charts.keys()
    assert {"ring", "cross"} <= set(charts["loss"])
    assert [caption.removesuffix("image grid") for _, caption, _ in page.images] == ["step 3", "step 1"]
    assert page.reaches_outside() == []
