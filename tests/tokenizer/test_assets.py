"""3D assets through the tokenizer and the command line: a mesh in, tokens, Gaussians and images out."""

import functools
import json
from functools import partial

import numpy as np
import pytest
import torch

import atoken
from atoken.cameras import Cameras
from atoken.cli import main
from atoken.data.synthetic.procedural import make_asset
from atoken.doctor import assets
from atoken.errors import AtokenError, AtokenWarning, MediaError
from atoken.gaussians import Gaussians
from atoken.io.token_file import Tokens
from atoken.modalities import voxels
from atoken.modalities.views import render_views
from atoken.modalities.voxels import occupied, voxelize
from tests.folder_of_views import write_views
from tests.model.sizes import small_model
from tests.tokenizer.small import random_frames, small_tokenizer
from tests.tolerances import EXACT, FP32

trimesh = pytest.importorskip("trimesh", reason="the extra 3d is not installed")
pytest.importorskip("embreex", reason="the extra 3d is not installed")

DECODER = {"width": 48, "layers": 2, "heads": 4, "mlp": 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small model with a Gaussian decoder, its output layer not zero."""
    folder = tmp_path_factory.mktemp("models") / "small"
    model = small_model(gaussian_decoder=DECODER)
    with torch.no_grad():
        for parameter in model.gaussian_decoder.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(model):
    return atoken.load(model, device="cpu")


@functools.cache
def mesh():
    return make_asset(0, 4).mesh


@functools.cache
def views():
    return render_views(mesh(), 4, 64)


def assert_same(actual, expected, tolerance):
    for name in ("means", "scales", "quats", "opacities", "colors"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=tolerance, rtol=tolerance)


def test_tokens_lie_where_the_surface_is(tokenizer):
    tokens = tokenizer.encode(views())
    assert (tokens.modality, tokens.size, tokens.frames) == ("asset", (64, 64), 1)
    np.testing.assert_array_equal(tokens.coords[:, 1:].numpy(), occupied(views(), 64))
    assert not tokens.coords[:, 0].any()
    assert tokens.latents.shape == (len(tokens.coords), 48)


def test_a_mesh_is_encoded_from_its_sixteen_views(tokenizer):
    actual, expected = tokenizer.encode(mesh()), tokenizer.encode(render_views(mesh(), 16, 256))
    torch.testing.assert_close(actual.latents, expected.latents, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(actual.coords, expected.coords, atol=EXACT, rtol=EXACT)


def test_a_saved_asset_decodes_to_the_same_gaussians_near_its_voxels(tokenizer, tmp_path):
    tokens = tokenizer.encode(views())
    tokens.save(tmp_path / "a.atok")
    actual, expected = tokenizer.decode(tokens), tokenizer.decode(Tokens.load(tmp_path / "a.atok"))
    assert_same(actual, expected, EXACT)
    assert len(actual) == 32 * len(tokens.coords)
    centres = (tokens.coords[:, 1:] + 0.5) / 64 - 0.5
    assert (actual.means.unflatten(0, (-1, 32)) - centres[:, None]).abs().max() <= 0.75 / 64 + FP32


def test_alone_is_in_a_batch_of_all_kinds(tokenizer):
    media = [random_frames(20, 40), views(), random_frames(9, 17, 20), render_views(make_asset(0, 2).mesh, 2, 48)]
    together = tokenizer.encode_batch(media)
    assert [tokens.modality for tokens in together] == ["image", "asset", "video", "asset"]
    for one, tokens in zip(media, together, strict=True):
        torch.testing.assert_close(tokenizer.encode(one).latents, tokens.latents, atol=FP32, rtol=FP32)
    decoded = tokenizer.decode_batch(together)
    assert_same(tokenizer.decode(together[1]), decoded[1], FP32)
    np.testing.assert_array_equal(tokenizer.decode(together[0]).pixels, decoded[0].pixels)


def test_a_model_without_a_gaussian_decoder_encodes_and_says_why_it_cannot_decode():
    plain = small_tokenizer()
    tokens = plain.encode(views())
    assert plain.embed(tokens).norm() == pytest.approx(1, abs=FP32)
    with pytest.raises(AtokenError, match="no Gaussian decoder"):
        plain.decode(tokens)


def test_a_large_asset_is_refused_or_coarsened(tokenizer, monkeypatch):
    monkeypatch.setattr(voxels, "voxelize", partial(voxels.voxelize, max_tokens=1000))
    with pytest.raises(MediaError, match="over the limit of 1,000"):
        tokenizer.encode(views())
    with pytest.warns(AtokenWarning, match="at resolution"):
        tokens = tokenizer.encode(views(), coarsen=True)
    assert tokens.size[0] < 64
    assert len(tokens.coords) <= 1000
    gaussians = tokenizer.decode(tokens)
    centres = (tokens.coords[:, 1:] + 0.5) / tokens.size[0] - 0.5
    reach = 0.75 / tokens.size[0]
    assert (gaussians.means.unflatten(0, (-1, 32)) - centres[:, None]).abs().max() <= reach + FP32
    fine = tokenizer.decode(small_grid(tokenizer))
    assert gaussians.scales.median() / fine.scales.median() == pytest.approx(64 / tokens.size[0], rel=0.5)


def small_grid(tokenizer):
    """The same asset at 64 voxels a side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voxels, "voxelize", voxelize)
        return tokenizer.encode(views())


def test_the_doctor_looks_at_assets(tokenizer):
    finding = assets(tokenizer)
    assert finding is not None
    assert finding.passed, finding.line()
    assert assets(small_tokenizer()) is None


@pytest.fixture
def chair(tmp_path, monkeypatch):
    """A GLB of two coloured boxes, thin for speed, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    seat, back = trimesh.creation.box((0.3, 0.05, 0.05)), trimesh.creation.box((0.05, 1, 0.05))
    back.apply_translation((0.1, 0.5, 0))
    for part, colour in ((seat, (200, 40, 30, 255)), (back, (30, 60, 200, 255))):
        part.visual.vertex_colors = colour
    trimesh.Scene([seat, back]).export("chair.glb")
    return "chair.glb"


def test_reconstruct_does_to_a_mesh_what_it_does_to_a_photograph(model, chair, tmp_path, capsys):
    assert main(["reconstruct", chair, "--model", str(model), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["size"], row["bits_per_pixel"]) == ("64^3", None)
    assert row["tokens"] > 500
    assert np.isfinite([row["psnr"], row["ssim"]]).all()
    gaussians = Gaussians.load(tmp_path / "out" / "chair.glb.ply")
    assert len(gaussians) == 32 * row["tokens"]
    assert atoken.load_media(tmp_path / "out" / "chair.glb.compare.png").pixels.shape == (256, 512, 3)
    rgb = gaussians.render(Cameras.turntable(1), 32)
    assert rgb.shape == (1, 32, 32, 3)


def test_encode_info_and_decode_of_a_mesh(model, chair, tmp_path, capsys):
    options = ["--model", str(model)]
    assert main(["encode", chair, "-o", "a.atok", *options]) == 0
    assert main(["info", "a.atok", "--json"]) == 0
    assert main(["decode", "a.atok", "-o", "a.ply", *options]) == 0
    assert main(["decode", "a.atok", "-o", "a.png", *options]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.atok", "a.ply", "a.png", "chair.glb"]
    assert '"modality": "asset"' in capsys.readouterr().out
    assert main(["decode", "a.atok", "-o", "b.ply"]) == 1  # by nano, which did not make it


def test_a_folder_of_views_is_an_asset(tokenizer, tmp_path):
    seen = views()
    write_views(seen, tmp_path)
    tokens = tokenizer.encode(tmp_path)
    assert tokens.modality == "asset"
    assert len(tokens.coords) > 0.5 * len(tokenizer.encode(seen).coords)  # depth at pixel corners, not centres
