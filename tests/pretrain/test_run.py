"""Runs of stages: what makes one another, what they start from, and the model that they hand on."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from atoken import presets
from atoken.checkpoint import load_folder
from atoken.errors import AtokenWarning, CheckpointError
from atoken.pretrain import evaluation
from atoken.pretrain.config import overridden
from atoken.pretrain.curriculum import NANO_COLORS
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.evaluation import HeldOut, evaluate
from atoken.pretrain.run import _started, ema_model, run
from atoken.pretrain.teachers import NO_TEACHERS
from atoken.train.engine import PlainEngine
from tests.model.sizes import small_model
from tests.pretrain.small_teachers import small_teachers
from tests.pretrain.tiny import (
    ONE_LAYER_MORE,
    SIZES,
    TINY,
    batch,
    changed,
    engine_of,
    stage_of,
    tiny_preset,  # noqa: F401 - a fixture for all tests here
    tiny_run,
)
from tests.tokenizer.texts import text_sizes, words


def exported(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", SIZES)
        return tiny_run(TINY, tmp_path_factory.mktemp("run"))


def held_in(folder, step):
    """Flat tensors of a checkpoint."""
    files = f"step-{step:06d}/rank-00000.safetensors", "frozen-000000.safetensors"
    return {key: tensor for file in files for key, tensor in load_file(folder / file).items()}


class Killed(BaseException):
    """No handler of the program may catch this, as none catches SIGKILL."""


def resumed(folder, stage=TINY, **options):
    """The model of a run that was killed at step 3 and started again."""
    train = PlainEngine.train

    def dies(engine, made):
        if engine.step == 3:
            raise Killed
        return train(engine, made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainEngine, "train", dies)
        with pytest.raises(Killed):
            tiny_run(stage, folder, save_every=2, **options)
    torch.manual_seed(99)
    return tiny_run(stage, folder, save_every=2, **options)


def equal(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in right)


def test_a_resumed_run_equals_an_uninterrupted_one(uninterrupted, tmp_path):
    equal(exported(resumed(tmp_path)), exported(uninterrupted))


def test_a_resumed_run_with_a_teacher_equals_an_uninterrupted_one(tmp_path):
    image = overridden(TINY, ["tasks.image.terms.stlpips=0.1"]).tasks["image"]
    stage, options = changed(TINY, tasks={**TINY.tasks, "image": image}), {"teachers": small_teachers()}
    whole = tiny_run(stage, tmp_path / "whole", **options)
    equal(exported(resumed(tmp_path / "again", stage, **options)), exported(whole))


def test_a_run_records_its_stage_and_its_data(uninterrupted):
    noted = json.loads((uninterrupted.parent / "start-000000.json").read_text())
    assert (noted["step"], noted["recipe"]["steps"], noted["stage"]["preset"]) == (0, TINY.recipe.steps, "tiny")
    terms = noted["stage"]["tasks"]["image"]["terms"]
    assert [(term["fn"], term["weight"]) for term in terms if term["weight"]] == [("l1", 0.8), ("kl", 1e-8)]
    assert (noted["data"]["procedural"], noted["start"]) == (True, None)
    assert noted["launch"] == {
        "data": "procedural", "teachers": {}, "device": "cpu", "ranks": 1, "workers": 0, "zero": None,
    }  # fmt: skip


def test_a_folder_that_holds_another_run_is_refused(uninterrupted, tmp_path):
    folder, longer = uninterrupted.parent, changed(TINY, steps=TINY.recipe.steps + 1)
    with pytest.raises(CheckpointError, match=r"another run \(stage.preset: tiny, now tiny-2\)"):
        tiny_run(changed(longer, preset="tiny-2"), folder)
    (tmp_path / "data.toml").write_text('[image.mine]\nprocedural = "labelled"\n[video.mine]\nprocedural = "mixed"\n')
    with pytest.raises(CheckpointError, match=r"another run \(data\.procedural: True, now False"):
        run(longer, folder, start=None, datasets=load_datasets(tmp_path / "data.toml", longer), device="cpu", workers=0)


def test_what_makes_a_run_another_one(tmp_path, monkeypatch):
    def check(there, here):
        """Resume a run of one stage and data file as one of others."""
        records = []
        for stage, text in (there, here):
            (tmp_path / "data.toml").write_text(text)
            started = _started(stage, None, load_datasets(tmp_path / "data.toml", stage).data, NO_TEACHERS)
            records.append(json.loads(json.dumps(started.record(1, stage.recipe))))
        started.check_resumable(*records, tmp_path)

    images = changed(TINY, mixture={"image": 1})
    made, more = '[image.made]\nprocedural = "mixed"\n', '[video.made]\nprocedural = "mixed"\n'
    both = made + '[image.too]\nprocedural = "labelled"\n'
    check((images, made), (images, made + more))  # of a stage to come
    for there, here in ((made, both), (both, made), (made, "seed = 5\n" + made)):
        with pytest.raises(CheckpointError, match=r"another run \(data\."):
            check((images, there), (images, here))
    for there, here in ((images, TINY), (TINY, images)):
        with pytest.warns(AtokenWarning, match=r"stage\.mixture\.video"):
            check((there, made + more), (here, made + more))


def test_a_stage_that_starts_from_another_asks_for_it_and_takes_it_up(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny-d", SIZES | ONE_LAYER_MORE | {"fsq_levels": presets.FSQ_LEVELS})
    stage = changed(TINY, name="tiny-d", preset="tiny-d", start_from="tiny", steps=1)
    with pytest.raises(CheckpointError, match="starts from tiny"):
        tiny_run(stage, tmp_path / "a")
    model = load_folder(tiny_run(stage, tmp_path / "b", start=uninterrupted))
    assert model.config.fsq_levels == presets.FSQ_LEVELS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
def test_a_stage_does_not_start_from_a_damaged_model(name, uninterrupted, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(uninterrupted, folder)
    flipped = bytearray((folder / name).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / name).write_bytes(flipped)
    stage = changed(TINY, start_from="tiny", steps=1)
    with pytest.raises(CheckpointError, match=r"model.* is damaged"):
        tiny_run(stage, tmp_path / "run", start=folder)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    (folder / "manifest.json").unlink()  # of a model from elsewhere nothing is known
    (folder / name).write_bytes((uninterrupted / name).read_bytes())
    tiny_run(stage, tmp_path / "run", start=folder)


def test_a_run_exports_a_model_that_loads_and_holds_the_ema(uninterrupted):
    model, folder = load_folder(uninterrupted), uninterrupted.parent
    held = held_in(folder, 6)
    for name, value in model.named_parameters():
        kind = "weights" if name.startswith(TINY.frozen) else "ema"
        assert torch.equal(value.flatten(), held[f"{kind}/model.{name}"].bfloat16())


@pytest.mark.parametrize("fsq_levels", [None, (4,) * 6])
def test_a_model_of_ema_weights_is_whole(fsq_levels):
    model = small_model(fsq_levels=fsq_levels, text=text_sizes(96))
    weights = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    made = ema_model(model.config, weights, "cpu")
    assert made.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(made.encode_text(words()(["a red box"])), model.encode_text(words()(["a red box"])))


def test_a_run_is_evaluated_on_its_ema_weights(tmp_path, monkeypatch):
    for name, value in {"IMAGES": 3, "VIDEOS": 2, "SIDE": 48, "FRAMES": 20}.items():
        monkeypatch.setattr(evaluation, name, value)
    stage = changed(TINY, steps=2, mixed_precision=False)
    tiny_run(stage, tmp_path, evaluate_every=2)
    _, row = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").open()]
    held = held_in(tmp_path, 2)
    model = load_folder(tmp_path / "model", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        kind = "weights" if name.startswith(TINY.frozen) else "ema"
        parameter.data.copy_(held[f"{kind}/model.{name}"].view(parameter.shape))
    expected, _ = evaluate(model, HeldOut.of({"image", "video"}), None)
    assert row == {"step": 1, **expected}
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["step-000000.png", "step-000001.png"]


def test_the_gaussian_decoder_learns_and_the_tokenizer_stays():
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    pytest.importorskip("scipy", reason="the extra train is not installed")
    model = small_model(gaussian_decoder={"width": 48, "layers": 2, "heads": 4, "mlp": 64})
    task = replace(NANO_COLORS.tasks["surface"], tokens=200)
    stage = stage_of({"surface": task}, frozen=NANO_COLORS.frozen, warmup=1, steps=12, lr=3e-3, muon=2.5)
    engine = engine_of(stage, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = batch(stage, 0)
    assert (made.task, made.tokens.feats.shape[1], len(made.tokens.lengths)) == ("surface", 768, 1)
    rows = [engine.train([made]) for _ in range(stage.recipe.steps)]
    named = {f"surface/{name}" for name in ("loss", *(term.fn.__name__ for term in task.terms))}
    assert set(rows[0]) == {*named, "loss", "norm", "lr"}
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("gaussian_decoder.")
