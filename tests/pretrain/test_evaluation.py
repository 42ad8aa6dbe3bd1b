"""The evaluation between training steps: what its numbers mean, and what its image grid shows."""

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from atoken.cameras import Cameras
from atoken.data.mixing import hashed
from atoken.data.synthetic.procedural import make_asset
from atoken.gaussian_decoder import RESOLUTION
from atoken.io import read_mesh
from atoken.metrics.pixels import psnr, psnr_of
from atoken.modalities.pixels import to_uint8
from atoken.modalities.views import render_views
from atoken.pretrain import crops, evaluation
from atoken.pretrain.curriculum import CURRICULA, TUNING
from atoken.pretrain.evaluation import HeldOut, evaluate, top_1
from atoken.pretrain.packing import stream
from atoken.tokenizer import Tokenizer
from tests.model.sizes import small_model
from tests.tokenizer.texts import text_sizes, words
from tests.tolerances import FP32

EXAMPLE = Path(__file__).parents[2] / "examples" / "tower.glb"
GAUSSIANS = {"width": 32, "layers": 2, "heads": 2, "mlp": 48}


@pytest.fixture(autouse=True)
def few_and_small_samples(monkeypatch):
    for name, value in {"IMAGES": 5, "VIDEOS": 2, "SIDE": 48, "FRAMES": 20, "VOXELS": 60}.items():
        monkeypatch.setattr(evaluation, name, value)


def texts_model():
    return small_model(text=text_sizes(96), gaussian_decoder=GAUSSIANS)


def test_psnr_is_the_mean_over_samples_of_what_the_tokenizer_reconstructs():
    model, held_out = texts_model(), HeldOut.of({"image", "video"})
    numbers, _ = evaluate(model, held_out, None)
    tokenizer = Tokenizer(model, "small")
    videos = [psnr(tokenizer.decode(tokenizer.encode(one.frames)).frames, one.frames) for one in held_out.videos]
    images = [psnr(tokenizer.decode(tokenizer.encode(one.frames[0])).pixels, one.frames[0]) for one in held_out.images]
    assert numbers == pytest.approx({"image/psnr": fmean(images), "video/psnr": fmean(videos)}, rel=1e-4)


def test_psnr_of_voxels_is_that_of_their_patches():
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    model, held_out = texts_model(), HeldOut.of({"crop"})
    numbers, grid = evaluate(model, held_out, words())
    expected = []
    for crop in held_out.crops:
        with torch.no_grad():
            prediction, target = (x.feats[:, :768].double() for x in (model(crop.tokens)[1], crop.tokens))
        error = ((prediction + 1) * 127.5).clamp(0, 255).round() - ((target + 1) * 127.5).round()
        expected.append(psnr_of(error.square().mean().item()))
    assert numbers == {"asset/psnr": pytest.approx(fmean(expected), rel=1e-4)}
    assert grid is None


def test_psnr_of_gaussians_is_that_of_views_of_whole_assets(monkeypatch):
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    monkeypatch.setattr(crops, "SIZES", (0.2, 0.3))  # of few voxels
    model, held_out = texts_model(), HeldOut.of({"surface"})
    numbers, grid = evaluate(model, held_out, None)
    cameras, expected = Cameras.turntable(evaluation.VIEWS), []
    for number, asset in enumerate(held_out.assets):
        assert asset.reach == RESOLUTION
        with torch.no_grad():
            (gaussians,) = model.gaussian_decoder(asset.tokens.with_feats(asset.tokens.feats[:, :768]))
            shown = to_uint8(gaussians.render(cameras, evaluation.SIDE) * 2 - 1)
        target = render_views(asset.mesh, cameras, evaluation.SIDE).rgb
        expected.append(psnr(shown, target))
        for view in range(evaluation.VIEWS):
            left = (number * evaluation.VIEWS + view) * evaluation.SIDE
            column = grid[:, left : left + evaluation.SIDE]
            np.testing.assert_array_equal(column[: evaluation.SIDE], target[view])
            np.testing.assert_array_equal(column[evaluation.SIDE + evaluation.GAP :][: evaluation.SIDE], shown[view])
    assert numbers == {"gaussians/psnr": pytest.approx(fmean(expected), rel=1e-4)}


def test_the_image_grid_shows_originals_above_reconstructions():
    model, held_out = texts_model(), HeldOut.of({"image", "video"})
    _, grid = evaluate(model, held_out, None)
    side, row = evaluation.SIDE, evaluation.SIDE + evaluation.GAP
    images = np.stack([one.frames for one in held_out.images])
    with torch.no_grad():
        reconstructed = evaluation.reconstructed(model, images)
    for column in range(evaluation.IMAGES):
        across = slice(column * side, (column + 1) * side)
        np.testing.assert_array_equal(grid[:side, across], images[column, 0])
        np.testing.assert_array_equal(grid[row : row + side, across], reconstructed[column, 0])
    middle = held_out.videos[1].frames[evaluation.FRAMES // 2]
    np.testing.assert_array_equal(grid[2 * row : 2 * row + side, side : 2 * side], middle)
    assert grid.shape == (4 * row, evaluation.IMAGES * side, 3)


def test_zero_shot_counts_as_a_plain_search_does():
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 60):
        texts = torch.randn(size, 3, generator=generator)
        images = texts + torch.randn(size, 3, generator=generator)
        hits = 0
        for index, image in enumerate(images.double().numpy()):
            cosines = [image @ text / np.linalg.norm(text) for text in texts.double().numpy()]
            hits += int(np.argmax(cosines)) == index
        assert top_1(images, texts) == pytest.approx(hits / size, abs=FP32)
        assert top_1(3 * texts, texts) == 1


def test_ties_and_what_is_not_finite_are_no_hits():
    same = torch.ones(4, 3)
    assert top_1(same, same) == 0
    images = torch.eye(4)
    images[2] = torch.nan
    assert top_1(images, torch.eye(4)) == 0.75
    assert top_1(torch.eye(4), images) == 0.75  # a text that is not finite is nearest to no image, and hides no other


def test_a_model_without_text_side_is_not_asked_for_texts():
    held_out = HeldOut.of({"image"})
    assert evaluate(small_model(), held_out, words())[0].keys() == {"image/psnr"}
    assert evaluate(texts_model(), held_out, words())[0].keys() == {"image/psnr", "image/zero-shot"}


def test_held_out_samples_are_the_same_each_time_and_of_no_stage():
    first, again = (HeldOut.of({"image", "video"}) for _ in range(2))
    for one, other in zip((*first.images, *first.videos), (*again.images, *again.videos), strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
    assert len({one.caption for one in first.images}) == evaluation.IMAGES
    assert evaluation.SEED not in trained_on()


def trained_on():
    """The seeds of all series that a stage trains on where no data is given: its own, and those of its tasks."""
    stages = [*(stage for stages in CURRICULA.values() for stage in stages.values()), *TUNING.values()]
    of_tasks = {
        hashed(0, stage.recipe.seed, stream(task, name)) for stage in stages for name, task in stage.tasks.items()
    }
    return {stage.recipe.seed for stage in stages} | of_tasks


def test_the_example_of_an_asset_is_of_no_stage():
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    from scripts.make_examples import MESH

    assert MESH[0] not in trained_on()
    assert 2 in trained_on()  # of whose crops an earlier example was one
    written, made = read_mesh(EXAMPLE), make_asset(*MESH).mesh
    assert len(written.faces) == len(made.faces)
    # Written by texture: compare the corners of faces in any order.
    written, made = (mesh.vertices[mesh.faces].reshape(-1, 9).astype(np.float64).round(4) for mesh in (written, made))
    np.testing.assert_allclose(np.sort(written, axis=0), np.sort(made, axis=0), atol=2e-4)


def test_zero_shot_works_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert top_1(torch.eye(3), torch.eye(3)) == 1
