"""The bundled models: small enough, the ones that were listed, and good on photographs that they never saw."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import atoken
import atoken.io
from atoken.cameras import Cameras
from atoken.data.synthetic.procedural import make_asset
from atoken.doctor import examine
from atoken.io import Image
from atoken.metrics.pixels import psnr
from atoken.modalities.views import render_views
from atoken.modalities.voxels import voxelize
from atoken.presets import BUNDLED
from eval.contract import Item
from eval.models.pca import PCA, random_patches
from eval.sources.synthetic import photographs
from scripts.make_before_after import GAP
from tests.tokenizer.assets import HELD_OUT_SEED, SIZE, baseline, score

NAMES = ["nano", "nano-d"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizers():
    return {name: atoken.load(name, device="cpu") for name in NAMES}


@pytest.fixture(scope="module")
def crops():
    """The middle 256 x 256 pixels of each photograph."""
    images = {entry.key.partition("/")[2]: entry.media().pixels for entry in photographs().entries}
    middles = {name: [side // 2 - 128 for side in pixels.shape[:2]] for name, pixels in images.items()}
    return {name: images[name][r : r + 256, c : c + 256] for name, (r, c) in middles.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_takes_at_most_20_mebibytes_and_is_the_listed_one(name, tokenizers):
    assert sum(path.stat().st_size for path in (BUNDLED / name).iterdir()) <= 20 << 20  # 4 of them 3D's
    listed = dict(line.split() for line in (BUNDLED / "fingerprints.txt").read_text().splitlines())
    assert listed[name] == tokenizers[name].fingerprint


def test_the_picture_of_the_readme_is_of_these_weights(tokenizers):
    """It says so, and its first image is beside what its tokens become, as near as JPEG keeps it."""
    with PIL.Image.open(ROOT / "docs" / "before-after.jpg") as picture:
        assert picture.info["comment"].decode() == f"nano {tokenizers['nano'].fingerprint}"
        shown = np.asarray(picture).astype(int)
    original = atoken.io.load_media(ROOT / "examples" / "leaves.png").pixels
    decoded = tokenizers["nano"].decode(tokenizers["nano"].encode(original)).pixels
    middle = (len(shown) + GAP) // 2
    for image, other, top in ((original, decoded, 0), (decoded, original, middle)):
        found = shown[top : top + 256, :256]
        assert np.abs(found - image).mean() < np.abs(found - other).mean() / 2


def test_nano_stands_near_or_above_the_pca_oracle_and_nano_d_near_nano(tokenizers, crops):
    items = [Item(name, Image(np.ascontiguousarray(pixels))) for name, pixels in crops.items()]
    oracle = PCA(random_patches(item.media.pixels[None] for item in items), "the crops", components=48)
    best = np.mean([psnr(output.prediction, output.target) for output in oracle.reconstruct(items)])
    continuous, discrete = (
        np.mean([psnr(t.decode(t.encode(pixels)).pixels, pixels) for pixels in crops.values()])
        for t in tokenizers.values()
    )
    assert continuous >= best - 0.8
    assert discrete >= continuous - 4.5


def test_nano_d_hands_out_eight_codes_a_token_and_decodes_from_them(tokenizers, crops):
    tokens = tokenizers["nano-d"].encode(crops["coffee"])
    assert tokens.codes.shape == (256, 8)
    assert tokens.codes.dtype == torch.int64
    assert len(tokens.codes.unique()) > 500


@pytest.fixture(scope="module")
def held_out():
    """Assets that no model has seen: the views to encode, views from other cameras, and the score of plain splats."""
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    meshes = [make_asset(HELD_OUT_SEED, index).mesh for index in (7, 14)]
    seen = [(render_views(mesh), render_views(mesh, Cameras.turntable(3), SIZE)) for mesh in meshes]
    return [(views, unseen, score(baseline(voxelize(views).tokens), unseen)) for views, unseen in seen]


@pytest.mark.parametrize("name", NAMES)
def test_gaussians_show_held_out_assets_better_than_untrained_splats(name, tokenizers, held_out):
    gains = []
    for views, unseen, plain in held_out:
        reconstructed = score(tokenizers[name].decode(tokenizers[name].encode(views)), unseen)
        gains.append(np.subtract(reconstructed, plain))
    assert (np.mean(gains, axis=0) > 0).all()  # inside the mask, IoU, whole images
    assert np.mean(gains, axis=0)[0] > 1


@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_finds_nothing(name, tokenizers):
    assert [finding.line() for finding in examine(tokenizers[name]) if not finding.passed] == []


def test_decode_takes_the_bundled_model_that_the_file_names(tmp_path, crops):
    from atoken.cli import main

    PIL.Image.fromarray(crops["coffee"]).save(tmp_path / "a.png")
    source, tokens = str(tmp_path / "a.png"), str(tmp_path / "a.atok")
    assert main(["encode", source, "-o", tokens, "--model", "nano-d"]) == 0
    assert main(["decode", tokens, "-o", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "b.png").exists()
    assert main(["decode", tokens, "-o", str(tmp_path / "c.png"), "--model", "nano"]) == 1
    assert not (tmp_path / "c.png").exists()
