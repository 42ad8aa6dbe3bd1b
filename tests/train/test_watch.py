"""Watching a run: what is logged is what was done, and nothing that is trained notices."""

import copy
import json
import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atoken.modalities.pixels import PATCH, patchify
from atoken.modalities.voxels import VALUES
from atoken.pretrain import cost, evaluation, losses
from atoken.pretrain.batches import Batch
from atoken.pretrain.evaluation import HeldOut, evaluate
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Stage, Task, Term
from atoken.tokens import SparseTokens
from atoken.train import watch as module
from atoken.train.engine import PlainEngine
from atoken.train.report import report
from atoken.train.run_folder import RunFolder
from atoken.train.watch import Watch, averaged_model, decodes, step_flops
from tests.model.sizes import small_model
from tests.report.pages import Page
from tests.tokenizer.texts import text_sizes, words

PATCHES = (Term(losses.l1, 1.0), Term(losses.kl, 1e-4))
TASKS = {
    "image": Task("image", PATCHES),
    "video": Task("video", PATCHES, stream="clip"),
    "caption": Task("image", (Term(losses.alignment, 0.1, texts=True),)),
    "surface": Task("surface", (Term(losses.place, 1.0),)),
}
STAGE = Stage(
    "tiny", "nano", TASKS, {"image": 1, "video": 1}, auxiliary=("caption",), steps=6, warmup=1, lr=1e-3, ema=0.5,
    mixed_precision=False, frozen=("gaussian_decoder.", "encoder.inputs."),
)  # fmt: skip
GAUSSIANS = {"width": 32, "layers": 2, "heads": 2, "mlp": 48}


@pytest.fixture(autouse=True)
def few_and_small_samples(monkeypatch):
    for name, value in {"IMAGES": 5, "VIDEOS": 2, "SIDE": 48, "FRAMES": 20}.items():
        monkeypatch.setattr(evaluation, name, value)


def texts_model():
    return small_model(text=text_sizes(96), gaussian_decoder=GAUSSIANS)


def engine_of(stage=STAGE, device="cpu"):
    return PlainEngine(Objective(texts_model(), stage.used, texts=words()), stage, device)


def micro_batch(task, *sizes, seed=0):
    """Random images or videos of (frames, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    samples = [patchify(torch.rand(*size, 3, generator=generator) * 2 - 1) for size in sizes]
    values = VALUES if sizes[0][0] == 1 else PATCH[0] * VALUES
    return Batch(task, SparseTokens.pack(samples), values, tuple(f"{n} red box" for n, _ in enumerate(sizes)))


def batches_of(step):
    own = STAGE.tasks_of(step)[0][0]
    frames = 1 if own == "image" else 8
    shown = micro_batch("caption", (1, 16, 32), (1, 32, 32), seed=step)
    return [micro_batch(own, (frames, 32, 32), (frames, 16, 48), seed=step), shown]


def watched(engine, folder, until, every=0):
    """Train to a step as the loop does."""
    run_folder = RunFolder(folder)
    run_folder.rewind(engine.step)
    with Watch(engine, run_folder, words(), every) as watch:
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


# What a step costs


def test_the_flops_of_a_row_are_those_of_its_micro_batches(tmp_path):
    engine = watched(engine_of(), tmp_path, 2)
    config, frozen = engine.objective.model.config, STAGE.frozen

    def cost_of(tiles, decode):
        return cost.training_flops(cost.model_parts(config, tiles, decode=decode), frozen).counted

    embedded = cost_of([(2,), (4,)], False)
    assert [row["flops"] for row in rows_of(tmp_path)] == [
        cost_of([(8,), (6,)], True) + embedded,
        cost_of([(4,), (3,)], True) + embedded,
    ]


@pytest.mark.parametrize(
    ("even", "uneven"),
    [
        ([(1, 32, 32), (1, 32, 32)], [(1, 48, 32), (1, 16, 32)]),
        ([(24, 16, 16), (24, 16, 16)], [(32, 16, 16), (16, 16, 16)]),  # attention stays in tiles of 16 frames
    ],
)
def test_attention_is_counted_as_the_sum_of_squared_lengths(even, uneven):
    config = small_model().config
    pairs = [16 + 16, 36 + 4] if even[0][0] == 1 else [16 + 4 + 16 + 4, 16 + 16 + 16]
    flops = [step_flops(config, STAGE, [micro_batch("video", *sizes)]) for sizes in (even, uneven)]
    passes, layers, width = 3, 4, 96  # forward and twice that backward; two layers of each side
    assert flops[1] - flops[0] == passes * layers * 4 * width * (pairs[1] - pairs[0])


def test_a_step_of_the_gaussian_decoder_costs_that_alone():
    config, stage = texts_model().config, replace(STAGE, frozen=("encoder.", "decoder."))
    voxels = micro_batch("surface", (1, 32, 32))
    expected = cost.training_flops(cost.gaussian_parts(config, voxels.tokens), stage.frozen).counted
    assert step_flops(config, stage, [voxels, voxels]) == 2 * expected


@pytest.mark.parametrize("fn", [losses.l1, losses.kl, losses.alignment])
def test_what_is_said_to_decode_does(fn):
    task, calls = Task("image", (Term(fn, 1.0),)), []
    objective = Objective(texts_model(), {"image": task}, texts=words())
    objective.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    objective(micro_batch("image", (1, 32, 32)))
    assert bool(calls) == decodes(task)


@pytest.mark.parametrize("names", [("l1", "lpips", "gram", "clip"), ("kl", "semantics", "alignment")])
def test_terms_of_reconstructions_decode_and_others_do_not(names):
    for name in names:
        assert decodes(Task("image", (Term(getattr(losses, name), 1.0),))) == (names[0] == "l1")


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
        clock.now += 100.0  # a checkpoint
        watch.evaluate_if_due()
    rows = rows_of(tmp_path)
    assert [row["mfu"] for row in rows] == [row["flops"] / 4e9 for row in rows]
    assert [(row["seconds"], row["data"]) for row in rows] == [(4.0, 1.0), (108.0, 1.0)]


# What is logged


def test_a_row_holds_what_the_engine_found_and_what_was_seen(tmp_path):
    engine, found = engine_of(), []
    with Watch(engine, RunFolder(tmp_path), None, 0) as watch:
        for step in range(3):
            batches = batches_of(step)
            if step == 1:
                batches[0].tokens.feats[0] = torch.nan
            found.append({**engine.train(batches), "drawn": 4, "broken": step})
            watch.step(found[-1], batches, 0.0)
    rows = rows_of(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 1, 1]
    assert [row["tasks"] for row in rows] == [["video", "caption"], ["image", "caption"], ["video", "caption"]]
    assert [row["tokens"] for row in rows] == [14 + 6, 7 + 6, 14 + 6]
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
    images = events.Images("reconstructions")
    assert [event.step for event in images] == [1, 3]
    (tmp_path / "event.png").write_bytes(images[1].encoded_image_string)
    with Image.open(tmp_path / "event.png") as ours, Image.open(tmp_path / "images/step-000003.png") as theirs:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_resumed_run_has_every_step_once_and_nothing_of_what_was_given_up(tmp_path):
    engine = watched(engine_of(), tmp_path, 3, every=1)
    tensors, numbers = engine.state()
    saved = {name: tensor.clone() for name, tensor in tensors.items()}, dict(numbers)
    watched(engine, tmp_path, 5, every=1)
    (tmp_path / "images/step-000004.png").write_bytes(b"of a step that is given up")
    resumed = engine_of()
    resumed.restore(*saved)
    watched(resumed, tmp_path, 6, every=2)
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in rows_of(tmp_path, "evaluation")] == [0, 1, 2, 3, 5]
    assert sorted(path.stem[-1] for path in (tmp_path / "images").iterdir()) == ["0", "1", "2", "3", "5"]
    events = events_of(tmp_path)
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("image/psnr")] == [0, 1, 2, 3, 5]
    assert [event.step for event in events.Images("reconstructions")] == [0, 1, 2, 3, 5]


def test_without_tensorboard_the_run_goes_on_and_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    watched(engine_of(), tmp_path, 2, every=1)
    assert capsys.readouterr().err.count("pip install 'atoken[train]'") == 1
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 1]
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (3, [3, 6]), (9, [6])])
def test_all_ranks_take_part_in_an_evaluation_and_the_first_alone_writes(every, steps, tmp_path, monkeypatch):
    engine, calls = engine_of(), []
    averaged = engine.averaged
    monkeypatch.setattr(engine, "rank", 1)
    monkeypatch.setattr(engine, "averaged", lambda: calls.append(engine.step) or averaged())
    with Watch(engine, RunFolder(tmp_path), words(), every) as watch:
        batches = batches_of(0)
        row = engine.train(batches)
        for engine.step in range(1, STAGE.steps + 1):
            watch.step(row, batches, 0.0)
            watch.evaluate_if_due()
    assert calls == steps
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_done_writes_nothing_more(tmp_path):
    engine = engine_of()
    engine.step = STAGE.steps
    watched(engine, tmp_path, STAGE.steps, every=1)
    assert list(tmp_path.iterdir()) == []


# What is evaluated


def randomness():
    of_numpy = np.random.get_state()[1].tolist()  # noqa: NPY002 - that it is left alone is what is tested
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy


def test_an_evaluation_changes_nothing_that_is_trained(tmp_path):
    plain, engine = engine_of(), engine_of()
    watch = Watch(engine, RunFolder(tmp_path), words(), 1)
    for step in range(3):
        plain.train(batches_of(step))
        engine.train(batches_of(step))
        before, modes = randomness(), [part.training for part in engine.objective.modules()]
        watch.evaluate_if_due()
        assert randomness() == before
        assert [part.training for part in engine.objective.modules()] == modes
        assert all(parameter.grad is None for parameter in engine.objective.parameters())
    ours, theirs = engine.state(), plain.state()
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])


def test_what_is_evaluated_are_the_averaged_weights(tmp_path):
    engine = watched(engine_of(), tmp_path, 2, every=2)
    media = {"image", "video"}
    model = texts_model()
    model.load_state_dict(model.state_dict() | engine.averaged())
    expected, _ = evaluate(model, HeldOut.of(media), words())
    assert rows_of(tmp_path, "evaluation") == [{"step": 1, **expected}]
    trained, _ = evaluate(copy.deepcopy(engine.objective.model).eval(), HeldOut.of(media), words())
    assert trained["image/psnr"] != expected["image/psnr"]


@pytest.mark.parametrize("fsq_levels", [None, (4,) * 6])
def test_a_model_of_averaged_weights_is_whole(fsq_levels):
    model = small_model(fsq_levels=fsq_levels, text=text_sizes(96))
    made = averaged_model(model.config, dict(model.named_parameters()), "cpu")
    assert made.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    tokens = micro_batch("image", (1, 32, 48)).tokens
    with torch.no_grad():
        assert torch.equal(made(tokens)[1].feats, model(tokens)[1].feats)
        assert torch.equal(made.encode_text(words()(["a red box"])), model.encode_text(words()(["a red box"])))


def test_the_report_shows_the_curves_of_every_task_and_the_newest_image(tmp_path):
    watched(engine_of(), tmp_path, 4, every=2)
    page = Page(report([tmp_path]))
    charts = {title: texts for _, title, texts in page.charts}
    assert {"loss", "l1", "kl", "alignment", "psnr", "zero-shot", "gradient norm", "FLOPs a step"} <= charts.keys()
    assert {"image", "video", "caption"} <= set(charts["loss"])
    assert [caption.removesuffix("image grid") for _, caption, _ in page.images] == ["step 3", "step 1"]
    assert page.reaches_outside() == []
