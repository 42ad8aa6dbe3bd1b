"""Measures of generators of figures and photographs, on small stores with an untrained generator."""

import json

import numpy as np
import pytest
import torch

import atoken
from atoken.cli import main as atoken_main
from atoken.io import Image
from eval import class_to_image
from eval.command import main
from eval.models.latent_gaussians import LatentGaussians
from eval.nearest import copying, nearest, write_page
from eval.prepare import Preparation
from eval.sources.classes import bare, halves
from eval.sources.entry import Entry, Prepared
from generation.command import main as generation_main
from generation.dit import DiT
from generation.pipelines.class_to_image import ClassToImagePipeline
from tests.eval.test_samples import HAT, MILK, SHOES, shard

pytest.importorskip("pyarrow", reason="the extra store is not installed")
NOTHING = Preparation()
SIDE = 32
COPIED = 1e-3  # a distance of equal images, but for rounding
PEAR = {"a_label": "a pear", "group": "pear", "a_group": "a pear", "shown": "pear"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two images of each class of figures."""
    path = tmp_path_factory.mktemp("figures") / "store"
    words = ["--items", "96", "--crop", str(SIDE), "--workers", "1", "-o", str(path)]
    assert atoken_main(["tokenize", "procedural:image/labelled", *words]) == 0
    return atoken.TokenStore(path)


@pytest.fixture(autouse=True)
def sampled_here(monkeypatch):
    """In this process, which is faster than one of its own."""

    def sampled(generator, folder, number, *, labels, options):
        command = ["sample", generator, "-n", str(number), "-o", str(folder), *options, "--labels", *labels]
        assert generation_main(command) == 0
        return folder / "samples.npz"

    monkeypatch.setattr(class_to_image, "samples_of", sampled)


def generator(store, folder):
    torch.manual_seed(0)
    model = DiT(side=SIDE // 16, channels=48, width=16, depth=1, heads=2, classes=len(store.labels))
    nano = atoken.load("nano")
    means = store.statistics.mean, store.statistics.std
    ClassToImagePipeline(model, store.labels, "nano", nano.fingerprint, *means).save_pretrained(folder)
    return str(folder)


def test_halves_have_the_same_classes_and_no_item_in_common():
    entries = [Entry(f"{number}", lambda: None, number % 3 if number < 9 else 3) for number in range(10)]
    first, second = halves(entries)
    assert [entry.key for entry in first] == ["0", "1", "2"]  # of three of each class the last is left out, and the one
    assert [entry.key for entry in second] == ["0", "1", "2"]
    assert [entry.label for entry in first] == [entry.label for entry in second]
    assert {id(one.media) for one in first}.isdisjoint(id(one.media) for one in second)


def test_names_of_classes_are_compared_without_articles():
    assert list(map(bare, ("a red ring", "an apple", "milk", "avocado"))) == ["red ring", "apple", "milk", "avocado"]


def test_draws_of_a_gaussian_have_the_mean_and_covariance_of_the_latents_of_the_label(store):
    gaussians, label = LatentGaussians(store, atoken.load("nano")), store.labels[5]
    latents = store.where(label=label).grids([0, 1], normalised=False)
    direction = (latents[1] - latents[0]) / 2  # of two items: deviations are along one direction
    draws = torch.stack([gaussians.drawn(label, number) for number in range(400)]) - latents.mean(0)
    along = (draws * direction).sum((1, 2, 3)) / direction.square().sum()
    assert (draws - along[:, None, None, None] * direction).abs().max() < 1e-4 * latents.abs().max()
    assert abs(along.mean()) < 4 * 2**0.5 / 400**0.5  # the deviation is sqrt(2), as the unbiased one of -1 and 1
    assert along.std() == pytest.approx(2**0.5, rel=0.15)
    assert torch.equal(gaussians.drawn(label, 7), gaussians.drawn(label, 7))
    assert gaussians.image(label, 7).pixels.shape == (SIDE, SIDE, 3)


def test_copies_are_found_and_new_images_are_not_copies(store, tmp_path):
    nano = atoken.load("nano")
    copies = Prepared([Entry(f"{row}", lambda row=row: nano.decode(store[row])) for row in (3, 50)], NOTHING)
    noise = [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8) for seed in range(4)]
    new = Prepared([Entry(f"{seed}", lambda seed=seed: Image(noise[seed])) for seed in range(4)], NOTHING)
    found, others = nearest(copies, store, nano), nearest(new, store, nano)
    assert found.by_latents.tolist() == [3, 50]
    assert found.distances.max() < others.distances.min()
    numbers = copying(found, others)
    assert numbers["nearer than new images"] == 1
    assert copying(others, others)["nearer than new images"] == 0
    assert numbers["distance to the nearest training image"] == pytest.approx(float(found.distances.mean()))
    write_page(tmp_path / "page.html", copies, ["a", "b"], found, store, nano)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 2
    assert f"({store.column('label')[3].as_py()})" in page


def test_figures_are_measured_and_what_it_was_not_trained_on_is_said(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path / "cache"))
    for split in ("train", "validation"):
        shard(tmp_path / "cache/photos" / split / "a.tar", SHOES, HAT, MILK)
    command = ["generator", generator(store, tmp_path / "model"), "--store", store.name, "-o", str(tmp_path / "out")]
    assert main([*command, "-n", "48", "--set", "steps=2", "interval=0,0.5"]) == 1
    assert "has no label 'pair of shoes'" in capsys.readouterr().err
    rows = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    assert [(row["task"], row["status"]) for row in rows] == [("class-figures", "complete")] * 4 + [
        ("class-figures-zero-shot", "complete")
    ] * 2 + [("class-figures-probe", "complete")] * 2
    name = rows[0]["model"]
    assert [row["model"] for row in rows] == [
        *(name, "other real images", "nano", "Gaussian of each class"),
        *[f"{name}, seen by nano", "real images, seen by nano"] * 2,
    ]
    assert "guidance_interval [0.0, 0.5]" in rows[0]["identity"]["asked for"]
    numbers = [{key: of["value"] for key, of in row["numbers"].items()} for row in rows]
    distances = [of["nano frechet"] for of in numbers[:4]]
    assert distances[0] == max(distances)  # an untrained one is worst
    assert distances[2] == min(distances)  # the same images through the tokenizer are nearest
    assert numbers[5]["zero-shot top-1"] > 0.08 > numbers[4]["zero-shot top-1"]
    assert numbers[7]["linear probe"] > 0.2 > numbers[6]["linear probe"]
    assert rows[7]["items"]["measured"] == 96 + 48  # learned from, and tested
    prints = [{of["fingerprint"] for of in row["numbers"].values() if of["metric"] == "nano frechet"} for row in rows]
    assert prints[0] == prints[1] == prints[2] == prints[3]


def test_photographs_are_classified_and_compared_with_what_it_was_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path / "cache"))
    records = [HAT | {"shown": "hat"}, SHOES | {"shown": "pair of shoes"}, MILK | {"shown": "milk"}, PEAR]
    for split, each in (("train", 6), ("test", 4)):
        shard(tmp_path / "cache/photos" / split / "a.tar", *records * each)
    data = tmp_path / "data.toml"
    data.write_text('[image.photos]\nshards = "fetched:photos/train"\nlabel = "{shown}"\n')
    words = ["--resize", str(SIDE), "--crop", str(SIDE), "--workers", "1", "-o", str(tmp_path / "store")]
    assert atoken_main(["tokenize", str(data), *words]) == 0
    made = generator(atoken.TokenStore(tmp_path / "store"), tmp_path / "model")
    command = ["generator", made, "--store", str(tmp_path / "store"), "--split", "test", "-o", str(tmp_path / "out")]
    assert main([*command, "--set", "steps=2"]) == 1
    assert "has no label 'red circle'" in capsys.readouterr().err
    rows = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"complete"}
    probed = 12 + 8  # learned from and tested
    assert [(row["task"].removeprefix("class-photos-test"), row["items"]["measured"]) for row in rows] == [
        *[("", 8)] * 4, *[("-clothes-probe", probed)] * 2, *[("-groceries-probe", probed)] * 2, ("-nearest", 16)
    ]  # fmt: skip
    assert rows[-1]["numbers"]["the same of held-out images"]["value"] < COPIED  # the shards have the same greys
    assert (tmp_path / "out/nearest.html").read_text().count("<img") == 16
