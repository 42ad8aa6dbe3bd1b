"""``atoken stats``: files, folders and generated data; what a model's folder holds; and that of the bundled models."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import atoken
from atoken.cli import main
from atoken.doctor import examine
from atoken.errors import CheckpointError
from atoken.presets import BUNDLED
from tests.cli.cases import film, image, says_one_sentence
from tests.model.sizes import small_model


@pytest.fixture
def folder(tmp_path):
    """Two images, a video of three tiles, and a file that is neither."""
    for seed in (0, 1):
        image(tmp_path / "media" / f"{seed}.png", 19, 35, seed=seed)
    film(tmp_path / "media" / "below" / "a.mp4", 37, fps=Fraction(24))
    (tmp_path / "media" / "broken.png").write_bytes(b"not an image")
    return tmp_path / "media"


def expected(pieces):
    latents = torch.cat([piece.latents for piece in pieces]).double()
    return latents.mean(0).tolist(), latents.std(0, unbiased=False).tolist(), len(latents)


def test_they_are_of_the_latents_of_the_files_in_a_folder(run, folder, tokenizer):
    code, out, err = run("stats", folder, "--json")
    assert code == 1
    assert "broken.png" in err
    found = json.loads(out)
    assert (found["data"], found["fingerprint"]) == (str(folder), tokenizer.fingerprint)
    images = [tokenizer.encode(folder / f"{seed}.png") for seed in (0, 1)]
    video = [tokenizer.encode(folder / "below" / "a.mp4")]
    for name, pieces in {"image": images, "video": video, "all": images + video}.items():
        mean, std, tokens = expected(pieces)
        actual = found["latents"][name]
        assert (actual["samples"], actual["tokens"]) == (len(pieces), tokens)
        np.testing.assert_allclose(actual["mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(actual["std"], std, rtol=1e-4, atol=1e-5)


def test_a_table_for_a_person(run, folder):
    code, out, _ = run("stats", folder / "0.png", folder / "1.png")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["channel", "all", "image"]
    assert [line.split()[0] for line in lines[1:]] == [*map(str, range(48)), "samples", "tokens"]
    assert lines[-2].split() == ["samples", "2", "2"]


def doctor_says(folder):
    """The doctor's line on statistics, without the checks after it."""
    findings = examine(atoken.load(folder, device="cpu"))
    found = next(finding for finding in findings if "tatistics of the latents" in finding.guarantee)
    return found.figure, found.passed


def test_a_model_folder_keeps_them_and_other_weights_are_refused(run, folder, tmp_path):
    (home := tmp_path / "model").mkdir()
    small_model().save_pretrained(home)
    assert atoken.load(home, device="cpu").statistics is None
    assert doctor_says(home) == ("none yet; atoken stats measures them", True)
    assert run("stats", folder / "0.png", "-o", home, model=home)[0] == 0
    kept = atoken.load(home, device="cpu").statistics
    assert (kept.samples, kept.tokens) == (1, 6)
    assert doctor_says(home) == ("over 6 tokens", True)
    tok = atoken.load(home, device="cpu")
    tok.save_pretrained(tmp_path / "copy")
    assert atoken.load(tmp_path / "copy", device="cpu").statistics == kept
    with torch.no_grad():
        tok.model.to_patch.weight.mul_(2)
    tok.save_pretrained(tmp_path / "trained")
    assert atoken.load(tmp_path / "trained", device="cpu").statistics is None
    small_model(seed=1).save_pretrained(home)
    with pytest.raises(CheckpointError, match="other weights"):
        _ = atoken.load(home, device="cpu").statistics
    figure, passed = doctor_says(home)
    assert not passed
    assert "other weights" in figure


def test_nothing_to_measure_is_one_sentence(run, folder, there):
    says_one_sentence(run("stats", folder / "broken.png", "-o", "latents.json"), "broken.png")
    assert not Path("latents.json").exists()
    says_one_sentence(run("stats", folder / "below" / "a.mp4", "-o", there / "no" / "such" / "x.json"), "Cannot write")


def measured(capsys, name, seed):
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    options = ["--tokens", "4096", "--seed", str(seed), "--model", name, "--device", "cpu", "--json"]
    assert main(["stats", "procedural", *options]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["nano", "nano-d"])
def test_what_comes_with_a_bundled_model_is_what_a_small_sample_finds(name, capsys):
    """Other samples of the same generator, 4,096 tokens of each modality or more.

    Tokens of one sample resemble each other, so that this many are worth some thirty independent ones: a mean is then
    off by 1 / sqrt(30) = 0.18 deviations, in the worst of 48 channels by three times that;
    a deviation by a quarter, since the values have heavy tails.
    """
    found = json.loads(measured(capsys, name, 12))
    stored = json.loads((BUNDLED / name / "latents.json").read_text())
    assert stored["fingerprint"] == found["fingerprint"]
    assert stored["data"] == "procedural, seed 11"
    assert list(stored["latents"]) == ["all", "image", "video", "asset"]
    mean, std, other_mean, other_std = (
        np.array(one["latents"]["all"][what]) for one in (stored, found) for what in ("mean", "std")
    )
    assert mean.shape == std.shape == (48,)
    off, ratio = np.abs(other_mean - mean) / std, np.abs(np.log(other_std / std))
    assert off.max() < 0.55
    assert np.median(off) < 0.18
    assert ratio.max() < np.log(1.6)
    assert np.median(ratio) < np.log(1.25)


def test_twice_is_the_same(capsys):
    assert measured(capsys, "nano", 13) == measured(capsys, "nano", 13)
