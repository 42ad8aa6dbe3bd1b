"""Tables 11 and 12 of the paper: sampled, measured as ADM's evaluation does, and said what is missing."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch

import atoken
from atoken.io import Image
from eval import commands, published
from eval.command import main
from eval.generation import evaluate_generation
from eval.metrics.distribution import InceptionScore
from eval.networks import Inception
from generation.dit import DiT
from generation.pipelines.class_to_image import ClassToImagePipeline
from tests.eval.plain_network import PlainNetwork, images
from tests.tolerances import MOMENTS


class PlainInception(PlainNetwork, Inception):
    """Small features under the published names."""


def of_adm(samples, reference, split):
    """The five numbers of ADM's evaluator, by its formulas: roots of matrices, splits in order, exact distances."""
    features = [PlainNetwork().features(every[:, None]) for every in (samples, reference)]
    numbers = {}
    for name, kind in (("gfid", "pooled"), ("sfid", "spatial")):
        means = [one[kind].astype(float).mean(0) for one in features]
        covariances = [np.cov(one[kind].astype(float), rowvar=False) for one in features]
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        gap = means[0] - means[1]
        numbers[name] = gap @ gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    scores = []
    for first in range(0, len(samples), split):
        part = features[0]["probabilities"][first : first + split]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0, keepdims=True)))).sum(1).mean()))
    numbers["inception score"] = np.mean(scores)
    made, real = (one["pooled"].astype(float) for one in features)
    radii = [
        np.sort(np.square(one[:, None] - one[None]).sum(2), 1)[:, 3] for one in (made, real)
    ]  # 0 is the row itself
    apart = np.square(made[:, None] - real[None]).sum(2)
    numbers["precision"] = (apart <= radii[1][None, :]).any(1).mean()
    numbers["recall"] = (apart <= radii[0][:, None]).any(0).mean()
    return numbers


def test_the_numbers_are_those_of_adms_formulas(tmp_path):
    samples, reference = images(1, 130), images(2, 110)
    samples[:40] = images(2, 110)[30:70]  # some are within the reference
    np.savez(tmp_path / "samples.npz", samples)
    np.savez(tmp_path / "reference.npz", reference)
    found = evaluate_generation(
        tmp_path / "samples.npz", tmp_path / "reference.npz", PlainInception(), score=InceptionScore(50, 10)
    )["numbers"]
    wanted = of_adm(samples, reference, 50)
    assert 0.2 < wanted["precision"] < 0.95
    assert wanted["precision"] != wanted["recall"]
    for name, number in wanted.items():
        assert found[name] == pytest.approx(number, rel=MOMENTS), name


@pytest.fixture
def generator(tmp_path):
    """The folder of a small flow of the first two classes of ImageNet."""
    torch.manual_seed(0)
    model, nano = DiT(side=2, channels=48, width=16, depth=1, heads=2, classes=2), atoken.load("nano")
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    names, means = ("n01440764", "n01443537"), (nano.statistics.mean, nano.statistics.std)
    ClassToImagePipeline(model, names, "nano", nano.fingerprint, *means).save_pretrained(tmp_path / "g")
    return tmp_path / "g"


@pytest.fixture
def reference(tmp_path):
    """A folder of images of other sizes than samples have."""
    (tmp_path / "real").mkdir()
    for number, pixels in enumerate(images(3, 9, 96)):
        Image(pixels[: 60 + 4 * number]).save(tmp_path / "real" / f"{number}.png")
    return tmp_path / "real"


@pytest.fixture
def only_inception(monkeypatch):
    """The published network is a small one, and no other is at hand."""

    def found(name, *_, **__):
        if name == "inception":
            return PlainInception()
        raise atoken.AtokenError(f"{name} is not fetched.")

    monkeypatch.setattr(commands, "network_of", found)


def row_of(folder):
    (row,) = json.loads((folder / "result.json").read_text())["rows"]
    return row


def test_a_table_is_one_command(generator, reference, only_inception, tmp_path, capsys):
    words = ["--model", str(generator), "--reference", str(reference), "--items", "10", "-o", str(tmp_path / "out")]
    assert main(["table11", *words, "--set", "steps=2", "batch=4", "guidance=1.5", "--device", "cpu"]) == 1  # partial
    row = row_of(tmp_path / "out")
    assert (row["task"], row["status"], row["items"]["measured"]) == ("table11", "partial", 10)
    assert {"gfid", "sfid", "inception score", "precision", "recall"} <= row["numbers"].keys()
    assert row["skipped"] == {"efficientnet-lite0": "efficientnet-lite0 is not fetched."}
    for asked in (
        "solver euler", "num_inference_steps 2", "guidance_scale 1.5", "guidance_interval [0.0, 0.875]",
        f"shift {1 / 0.3}", "generator DiT",
    ):  # fmt: skip
        assert asked in row["identity"]["asked for"]
    record = row["protocol"]["metrics"]["plain"]
    assert record["reference size"] == record["samples size"] == "32x32"  # cut as ADM does
    assert (record["samples items"], row["protocol"]["crop"]) == ("10", "adm")
    with np.load(tmp_path / "out/samples/samples.npz") as file:
        assert len(file["arr_0"]) == 10
        random = file["arr_1"].tolist() != [0, 1] * 5
    assert random
    assert record["samples labels"] in ("equally many of each", "not equally many of each")
    capsys.readouterr()

    assert main(["table11", "--model", str(tmp_path / "out/samples"), *words[2:], "-o", str(tmp_path / "again")]) == 1
    again = row_of(tmp_path / "again")
    assert again["numbers"] == row["numbers"]
    assert again["identity"] == row["identity"]


def test_what_is_missing_is_said_before_anything_is_sampled(generator, reference, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert main(["table12", "--model", str(generator), "--data", str(tmp_path), "-o", str(out)]) == 1
    assert f"There is no {tmp_path}/imagenet-adm/VIRTUAL_imagenet256_labeled.npz" in row_of(out)["why"]
    assert not (out / "samples").exists()
    assert main(["table12", "--model", str(generator), "--reference", str(reference), "-o", str(out)]) == 1
    assert "table12 is of a MaskedAR" in row_of(out)["why"]
    assert not (out / "samples").exists()
    words = ["--model", str(reference), "--reference", str(reference), "-o", str(out)]
    assert main(["table11", *words, "--set", "steps=2"]) == 1
    assert "made already; leave --set out" in row_of(out)["why"]
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path / "empty"))
    assert main(["table11", *words]) == 1
    assert "Inception" in row_of(out)["why"]
    assert published.SAMPLES == row_of(out)["items"]["full"] == 50_000
