"""Assets from images: a store with views, three trainings in turn, and the pipeline that they make."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import atoken
from atoken.cli import main as atoken_main
from atoken.errors import AtokenError
from atoken.gaussians import Gaussians
from generation import plan
from generation.command import main
from generation.pipelines.image_to_3d import ImageTo3DPipeline
from generation.training import training
from scripts import image_to_3d

pytest.importorskip("pyarrow", reason="the extra store is not installed")
pytest.importorskip("embreex", reason="the extra 3d is not installed")

SOURCE = "procedural:asset/labelled"
SETS = ["steps=2", "warmup=0", "tokens=1800", "micro_batches=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a store of assets, their views, and a run of two steps of each network."""
    folder = tmp_path_factory.mktemp("assets")
    words = ["--items", "6", "--voxels", "16", "--workers", "1"]
    assert atoken_main(["tokenize", SOURCE, "-o", str(folder / "store"), *words]) == 0
    store = ["--store", str(folder / "store")]
    assert main(["views", SOURCE, *store, "-o", str(folder / "views"), "-n", "2", "--size", "64"]) == 0
    run("structure-vae", folder)
    run("structure", folder, start="structure-vae")
    run("slat", folder, start="structure")
    return folder


def run(kind, folder, start=None, out=None):
    words = ["train", kind, "--store", str(folder / "store"), "-o", str(folder / (out or kind)), "--workers", "0"]
    words += ["--start", str(folder / start / "model"), "--views", str(folder / "views")] if start else []
    assert main([*words, "--set", *SETS]) == 0


@pytest.fixture(scope="module")
def pipeline(trained):
    found = ImageTo3DPipeline.from_pretrained(trained / "slat/model")
    found.set_progress_bar_config(disable=True)
    return solid(found)


def solid(found):
    """With a structure decoder that fills a cube, whatever its latents, and colours that differ with their noise."""
    torch.nn.init.zeros_(found.vae.decoder.out.weight)
    torch.nn.init.constant_(found.vae.decoder.out.bias, 1.0)
    return found


def asked(pipeline, image, seeds, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(image, generator=generators, num_inference_steps=2, **options).assets


def picture(shade=200):
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[10:30, 20:50] = shade, 30, 30, 255
    return pixels


def test_a_pipeline_has_what_was_trained_and_says_of_what(trained):
    store = atoken.TokenStore(trained / "store")
    assert store.options.voxels == 16
    assert {one.size for one in store.alike()[0]} == {(16, 16)}
    views = sorted((trained / "views" / store.column("key").to_pylist()[0]).glob("*.png"))
    assert [(path.name, Image.open(path).mode) for path in views] == [("000.png", "RGBA"), ("001.png", "RGBA")]
    first, second, third = (
        ImageTo3DPipeline.from_pretrained(trained / kind / "model") for kind in ("structure-vae", "structure", "slat")
    )
    assert (first.structure, first.slat, second.slat) == (None, None, None)
    assert third.config.fingerprint == store.fingerprint
    assert tuple(third.config.latents_std) == store.statistics.std
    assert third.vae.statistics.std != (1.0,) * third.vae.config.latents
    for part in ("vae", "structure", "slat"):
        stored = load_file(trained / f"slat/model/{part}/diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    for name, weight in first.vae.state_dict().items():
        assert torch.equal(weight, third.vae.state_dict()[name])
    rows = [json.loads(line) for line in (trained / "slat/log.jsonl").read_text().splitlines()]
    assert all(row["flops"] > 0 and np.isfinite(row["loss"]) for row in rows)
    with pytest.raises(AtokenError, match="not whole"):
        second(picture())


def test_an_asset_does_not_depend_on_others(pipeline):
    together = asked(pipeline, [picture(), picture(90)], [1, 2], output_type="latent")
    alone = asked(pipeline, picture(90), [2], output_type="latent")[0]
    assert torch.equal(together[1].coords, alone.coords)
    torch.testing.assert_close(together[1].feats, alone.feats, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0].feats, alone.feats, atol=1e-2)


def test_outputs_are_gaussians_or_tokens_of_the_tokenizer(pipeline, tmp_path):
    tokens = asked(pipeline, picture(), [3], output_type="tokens")[0]
    tokens.save(tmp_path / "thing.atok")
    assert atoken.Tokens.load(tmp_path / "thing.atok").size == (16, 16)
    gaussians = asked(pipeline, picture(), [3])[0]
    assert isinstance(gaussians, Gaussians)
    assert torch.equal(gaussians.means, pipeline.coder.decode(tokens).means)
    gaussians.save(tmp_path / "thing.ply")
    assert pipeline(picture(), num_inference_steps=1, return_dict=False, output_type="tokens")[0][0].modality == "asset"


def test_several_images_of_a_thing_and_callbacks(pipeline):
    seen = []

    def callback(_, number, sigma, given):
        seen.append((number, sigma, given["latents"].shape[1]))

    views = [[picture(), picture(90)]]
    for combine in ("stochastic", "average"):
        both = asked(pipeline, views, [3], combine=combine, output_type="latent", callback_on_step_end=callback)
        one = asked(pipeline, picture(), [3], output_type="latent")
        assert both[0].feats.shape == one[0].feats.shape
    assert [entry[2] for entry in seen] == [8, 8, 48, 48] * 2
    same = asked(pipeline, [[picture(), picture()]], [3], combine="average", output_type="latent")[0]
    torch.testing.assert_close(same.feats, one[0].feats, rtol=0, atol=1e-4)


def test_what_makes_no_sense_is_one_sentence(pipeline, trained, capsys):
    for image, options, said in (
        ([], {}, "at least one image"),
        ([[picture()], [picture(), picture()]], {}, "as many images"),
        (np.zeros((8, 8, 4), np.uint8), {}, "shows nothing"),
        (np.zeros((8, 8, 3), np.uint8), {}, "shows nothing"),
        (picture(), {"output_type": "mesh"}, "no output type mesh"),
        (picture(), {"combine": "sum"}, "not sum"),
    ):
        with pytest.raises(AtokenError, match=said):
            pipeline(image, num_inference_steps=1, **options)
    torch.nn.init.constant_(pipeline.vae.decoder.out.bias, -1.0)
    try:
        with pytest.raises(AtokenError, match="asset 0 came out empty"):
            pipeline(picture(), num_inference_steps=1)
    finally:
        solid(pipeline)
    words = ["--store", str(trained / "store"), "-o", str(trained / "none")]
    assert main(["train", "structure", *words]) == 1
    assert main(["train", "slat", *words]) == 1
    assert main(["train", "slat", *words, "--start", str(trained / "store")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "--start FOLDER" in lines[0]
    assert "--views FOLDER" in lines[1]


def test_a_run_that_is_repeated_is_the_same_and_a_plan_is_of_what_it_does(trained, monkeypatch):
    run("slat", trained, start="structure", out="again")
    first, second = (
        (trained / name / "model/slat/diffusion_pytorch_model.safetensors").read_bytes() for name in ("slat", "again")
    )
    assert first == second
    monkeypatch.setattr(plan, "MICRO_BATCHES", 4)
    store = atoken.TokenStore(trained / "store")
    for kind, start in (("structure-vae", None), ("structure", "structure-vae"), ("slat", "structure")):
        found = plan.plan(
            kind, "nano", store, training(kind, "nano", SETS), start and trained / start / "model", trained / "views"
        )
        rows = [json.loads(line) for line in (trained / kind / "log.jsonl").read_text().splitlines()]
        mean = sum(row["flops"] for row in rows) / len(rows)
        assert found.loads["latents"].flops == pytest.approx(mean, rel=0.02)
        assert found.activations > 0


def test_the_script_writes_what_the_suffix_says(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path / "model")
    Image.fromarray(picture()).save(tmp_path / "thing.png")
    for name, begins in (("out.ply", b"ply\n"), ("out.atok", b"ATOK")):
        words = [str(tmp_path / "thing.png"), "-o", str(tmp_path / name), "--model", str(tmp_path / "model")]
        monkeypatch.setattr("sys.argv", ["image_to_3d", *words, "--steps", "1", "--guidance", "1", "1"])
        image_to_3d.main()
        assert (tmp_path / name).read_bytes()[:4].upper() == begins.upper()
    for words, said in (
        (["-o", "x.obj"], "must end in .ply"),
        (["-o", "x.ply", "--model", "none"], "no pipeline in none"),
    ):
        monkeypatch.setattr("sys.argv", ["image_to_3d", str(tmp_path / "thing.png"), *words])
        with pytest.raises(SystemExit, match=said):
            image_to_3d.main()
