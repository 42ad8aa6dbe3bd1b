"""``python -m generation``: a generator trained on a small store, killed and gone on with, then sampled from."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import atoken
from atoken.cli import main as atoken_main
from atoken.errors import AtokenError
from atoken.io.token_file import TokenFile
from atoken.train.engine import PlainEngine
from generation import plan
from generation.command import main
from generation.pipelines.class_to_image import ClassToImagePipeline
from generation.training import training

pytest.importorskip("pyarrow", reason="the extra store is not installed")


@pytest.fixture(scope="module", params=["dit", "tokenbridge"])
def trained(request, tmp_path_factory):
    """The kind, the store, and the folder of a run of six steps."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    model = "nano" if kind == "dit" else "nano-d"
    words = ["--items", "24", "--crop", "48", "--model", model, "--workers", "1"]
    assert atoken_main(["tokenize", "procedural:image/labelled", "-o", str(folder / "store"), *words]) == 0
    run(kind, folder, folder / "run", 6)
    return kind, folder


def run(kind, folder, out, steps):
    sets = [f"steps={steps}", "samples=4", "warmup=2"]
    words = ["train", kind, "--store", str(folder / "store"), "-o", str(out), "--workers", "0", "--set", *sets]
    assert main(words) == 0


def test_what_is_trained_is_a_pipeline_of_the_store(trained):
    kind, folder = trained
    pipeline = ClassToImagePipeline.from_pretrained(folder / "run/model")
    store = atoken.TokenStore(folder / "store")
    assert tuple(pipeline.config.labels) == store.labels
    assert pipeline.config.fingerprint == store.fingerprint
    stored = load_file(folder / "run/model/transformer/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    if kind == "dit":
        assert tuple(pipeline.config.latents_mean) == store.statistics.mean
    rows = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(row["flops"] > 0 and np.isfinite(row["loss"]) for row in rows)


def test_a_plan_is_of_what_a_run_does(trained, monkeypatch, capsys):
    kind, folder = trained
    monkeypatch.setattr(plan, "MICRO_BATCHES", 6)
    how, store = training(kind, "nano", ["steps=6", "samples=4", "warmup=2"]), atoken.TokenStore(folder / "store")
    found = plan.plan(kind, "nano", store, how, gpus=1)
    rows = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert found.loads["latents"].flops == np.mean([row["flops"] for row in rows])
    assert found.loads["latents"].tokens == rows[0]["tokens"] == 4 * 9
    model = ClassToImagePipeline.from_pretrained(folder / "run/model").transformer
    assert found.trained + found.frozen == sum(weight.numel() for weight in model.parameters())
    assert found.activations > 0
    words = ["train", kind, "--store", str(folder / "store"), "-o", str(folder / "none"), "--plan"]
    assert main([*words, "--gpus", "2", "--set", "micro_batches=2", "samples=4"]) == 0
    assert f"{kind} nano" in capsys.readouterr().out
    assert main([*words, "--gpus", "2"]) == 1
    assert "such as --set micro_batches=2" in capsys.readouterr().err
    assert not (folder / "none").exists()


def test_a_run_whose_gradient_is_never_finite_ends_in_one_sentence(trained, capsys):
    kind, folder = trained
    words = ["train", kind, "--store", str(folder / "store"), "-o", str(folder / "wild"), "--workers", "0"]
    assert main([*words, "--set", "steps=30", "samples=4", "warmup=0", "lr=1e30"]) == 1
    assert "was not finite 10 steps in a row" in capsys.readouterr().err.splitlines()[-1]
    rows = [json.loads(line) for line in (folder / "wild/log.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped"] >= 9


def test_a_run_that_is_gone_on_with_equals_one_that_was_not_stopped(trained):
    kind, folder = trained
    with pytest.raises(SystemExit):  # as SIGTERM does
        stopped(kind, folder, folder / "again")
    assert not (folder / "again/model").exists()
    run(kind, folder, folder / "again", 6)
    first, second = (
        (folder / name / "model/transformer/diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("run", "again")
    )
    assert first == second


def stopped(kind, folder, out):
    """Stop in the third step."""
    calls = []

    def train(self, batches, whole=PlainEngine.train):
        calls.append(0)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainEngine, "train", train)
        run(kind, folder, out, 6)


def test_squares_of_samples_are_in_the_log_and_the_report(trained):
    kind, folder = trained
    words = ["train", kind, "--store", str(folder / "store"), "-o", str(folder / "shown"), "--workers", "0"]
    assert main([*words, "--evaluate-every", "2", "--set", "steps=3", "samples=4"]) == 0
    images = sorted((folder / "shown/images").glob("*.png"))
    assert [path.name for path in images] == ["step-000000.png", "step-000001.png", "step-000002.png"]
    assert {Image.open(path).size for path in images} == {(4 * 48, 4 * 48)}
    assert atoken_main(["train", "report", str(folder / "shown")]) == 0
    assert (folder / "shown/report.html").read_text().count("image grid") >= 3


def test_samples_as_an_image_tokens_and_for_evaluation(trained, tmp_path):
    _, folder = trained
    words = ["sample", str(folder / "run/model"), "-n", "5", "--batch", "2", "--steps", "3"]
    assert main([*words, "-o", str(tmp_path / "grid.png")]) == 0
    assert Image.open(tmp_path / "grid.png").size == (3 * 48, 2 * 48)
    assert main([*words, "-o", str(tmp_path / "some.atok")]) == 0
    with TokenFile(tmp_path / "some.atok") as file:
        assert len(file) == 5
    assert main([*words, "-o", str(tmp_path / "many")]) == 0
    found = np.load(tmp_path / "many/samples.npz")
    assert found["arr_0"].shape == (5, 48, 48, 3)
    assert found["arr_0"].dtype == np.uint8
    assert found["arr_1"].tolist() == [0, 1, 2, 3, 4]


def test_many_samples_go_on_and_do_not_depend_on_ranks(trained, tmp_path, monkeypatch):
    _, folder = trained
    words = ["sample", str(folder / "run/model"), "-n", "5", "--batch", "2", "--steps", "3"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main([*words, "-o", str(tmp_path / "two")]) == 0
    assert [path.name for path in sorted((tmp_path / "two").glob("*.npy"))] == ["000002.npy"]
    monkeypatch.setenv("RANK", "0")
    assert main([*words, "-o", str(tmp_path / "two")]) == 0
    one, two = (np.load(tmp_path / name / "samples.npz") for name in ("one", "two"))
    assert np.array_equal(one["arr_0"], two["arr_0"])
    assert main([*words, "--seed", "1", "-o", str(tmp_path / "two")]) == 1  # other samples than those there


def test_wrong_names_are_one_sentence(trained, tmp_path, capsys):
    kind, folder = trained
    store = str(folder / "store")
    assert main(["train", kind, "--preset", "huge", "--store", store, "-o", str(tmp_path / "run")]) == 1
    assert main(["train", kind, "--store", str(tmp_path), "-o", str(tmp_path / "run")]) == 1
    assert main(["sample", str(tmp_path)]) == 1
    assert main(["sample", str(folder / "run/model"), "--labels", "pear"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "There is no preset huge" in lines[0]
    with pytest.raises(AtokenError, match="stepz"):
        training(kind, "nano", ["stepz=3"])
