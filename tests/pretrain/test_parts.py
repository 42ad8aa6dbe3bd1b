"""Parts of assets: voxels of a cube, nearest points in closed form, pieces of whole views; and the losses on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from atoken.cameras import Cameras
from atoken.gaussian_decoder import GAUSSIANS, RESOLUTION, to_gaussians
from atoken.gaussians import Gaussians
from atoken.metrics.pixels import similarity, ssim
from atoken.modalities.views import render_views
from atoken.modalities.voxels import voxelize
from atoken.pretrain import losses, parts
from atoken.pretrain.batches import batches
from atoken.pretrain.curriculum import NANO_1, NANO_TASKS
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.objective import Objective
from atoken.train.engine import PlainEngine
from tests.modalities.shapes import AXES, COLOURS, box
from tests.model.sizes import small_model
from tests.tolerances import EXACT, FP32

pytest.importorskip("embreex", reason="the extra 3d is not installed")
pytest.importorskip("scipy", reason="the extra train is not installed")

HALF = 0.25  # of the box


@pytest.fixture(scope="module")
def cube():
    """All of a small box with a colour on each face."""
    mesh = box(HALF)
    views = render_views(mesh)
    return parts.Part(mesh, views, voxelize(views).tokens, np.array([32, 32, 32]), RESOLUTION)


@pytest.fixture(scope="module")
def surface(cube):
    return parts.surface(cube)


def starting(cube):
    return to_gaussians(torch.zeros(len(cube.tokens.coords), 448), cube.tokens.coords[:, 1:])


@pytest.mark.parametrize("index", [0, 5])
def test_a_part_is_what_a_cube_holds_of_an_asset(index):
    cut, whole = parts.part(0, index, 500), parts.part(0, index, 10**6)
    assert 0 < len(cut.tokens.coords) <= 500 < len(whole.tokens.coords)
    inside = (whole.tokens.coords[:, 1:] - torch.from_numpy(cut.middle)).abs().amax(1) <= cut.reach
    assert torch.equal(cut.tokens.coords, whole.tokens.coords[inside])
    assert torch.equal(cut.tokens.feats, whole.tokens.feats[inside])
    larger = (whole.tokens.coords[:, 1:] - torch.from_numpy(cut.middle)).abs().amax(1) <= cut.reach + 1
    assert larger.sum() > 500
    assert np.abs(whole.mesh.vertices).max() <= 0.5


def test_a_part_is_a_function_of_its_arguments():
    first, again, other = parts.part(0, 2, 500), parts.part(0, 2, 500), parts.part(0, 3, 500)
    assert torch.equal(first.tokens.feats, again.tokens.feats)
    assert not np.array_equal(first.mesh.vertices, other.mesh.vertices)
    assert torch.equal(parts.images(first, 0, 2, 1).rgb, parts.images(again, 0, 2, 1).rgb)


def test_surface_points_lie_on_the_box_nearest_to_where_gaussians_start(cube, surface):
    points = surface.points.double()
    torch.testing.assert_close(points.abs().amax(1), torch.full((len(points),), HALF).double(), atol=FP32, rtol=0)
    starts = starting(cube).means.double()
    outside = (starts.abs() - HALF).clamp_min(0).norm(dim=1)
    depth = (HALF - starts.abs().amax(1)).clamp_min(0)
    distance = (points - starts).norm(dim=1)
    assert (distance >= outside + depth - FP32).all()
    # Some view has a pixel within half a voxel of every place of the surface; most have one much nearer.
    assert (distance - outside - depth).max() < 0.5 / RESOLUTION
    assert (distance - outside - depth).median() < 0.03 / RESOLUTION


def test_surface_colours_are_those_of_the_faces(surface):
    side = (surface.points @ AXES.T - HALF).abs() < FP32  # (M, 6)
    plain = side.sum(1) == 1  # not on an edge
    assert plain.float().mean() > 0.9
    expected = torch.from_numpy(COLOURS).float()[side[plain].float().argmax(1)] / 255
    assert torch.equal(surface.colors[plain], expected)


def test_voxels_count_that_have_all_their_neighbors_in_the_part():
    cut, whole = parts.part(0, 1, 600), parts.part(0, 1, 10**6)
    missing = {tuple(c) for c in whole.tokens.coords[:, 1:].tolist()} - {
        tuple(c) for c in cut.tokens.coords[:, 1:].tolist()
    }
    outside = torch.tensor(sorted(missing))
    counts = parts.surface(cut).counts.unflatten(0, (-1, GAUSSIANS))
    assert 0.2 < counts.float().mean() < 0.9
    assert parts.surface(whole).counts.all()
    for cell in cut.tokens.coords[counts.all(1), 1:]:
        assert (outside - cell).abs().amax(1).min() > parts.MARGIN


def test_within_is_what_a_gaussian_can_reach(cube, surface):
    centres = (cube.tokens.coords[:, 1:].float() + 0.5) / RESOLUTION - 0.5
    away = (surface.points.unflatten(0, (-1, GAUSSIANS)) - centres[:, None]).abs().amax(-1).flatten()
    assert torch.equal(surface.within, away < 0.75 / RESOLUTION)
    assert surface.within.float().mean() > 0.9


def test_images_are_pieces_of_whole_views(cube):
    seen = parts.images(cube, 0, 1, 3)
    assert seen.counts.all()
    plain = Cameras(seen.cameras.world_to_camera, Cameras.sphere(3).intrinsics)
    whole = np.pad(render_views(cube.mesh, plain, parts.VIEW).rgb, ((0, 0), (128, 128), (128, 128), (0, 0)))
    for view in range(3):
        corner = parts.VIEW * plain.intrinsics[view, :2, 2] - parts.WINDOW * seen.cameras.intrinsics[view, :2, 2]
        x, y = (int(edge) + 128 for edge in corner.round())
        piece = whole[view, y : y + parts.WINDOW, x : x + parts.WINDOW]
        same = np.rint(seen.rgb[view].numpy() * 255) == piece
        assert same.all(-1).mean() > 0.999  # a ray may pass an edge on the other side


def test_only_pixels_of_the_inner_part_count():
    cut = parts.part(0, 1, 600)
    seen = parts.images(cut, 0, 1, 4)
    shown = render_views(cut.mesh, seen.cameras, parts.WINDOW)
    for view in range(4):
        cells = np.floor((shown.points(view) + 0.5) * RESOLUTION)
        inner = np.abs(cells - cut.middle).max(1) <= cut.inner
        assert cut.inner == cut.reach - parts.MARGIN
        np.testing.assert_array_equal(seen.counts[view].numpy()[shown.mask[view]], inner)
        # Once more by walking along the rays in steps of an eighth of a voxel.
        origin, directions = seen.cameras.rays(view, parts.WINDOW, parts.WINDOW)
        walk = origin + np.arange(1.0, 3.0, 1 / 512)[:, None] * directions[~shown.mask[view]][:, None]
        away = np.abs((walk + 0.5) * RESOLUTION - (cut.middle + 0.5)).max(-1).min(-1) - (cut.inner + 0.5)
        counts = seen.counts[view].numpy()[~shown.mask[view]]
        assert counts[away < 0].all()
        assert not counts[away > 0.2].any()
    assert 0 < seen.counts.numpy()[shown.mask].mean() < 1
    assert 0 < seen.counts.numpy()[~shown.mask].mean() < 1


def test_losses_are_zero_at_the_surface(cube, surface):
    start = starting(cube)
    right = Gaussians(
        surface.points,
        torch.full_like(start.scales, losses.GRAIN / RESOLUTION),
        start.quats,
        surface.within.float(),
        surface.colors,
    )
    for term in (losses.place, losses.color, losses.size, losses.opacity):
        assert abs(float(term(losses.Placed(right, surface)))) < FP32
        assert float(term(losses.Placed(start, surface))) > 0.01


def test_place_color_and_opacity_in_closed_form(surface):
    count = len(surface.points)
    wrong = Gaussians(
        surface.points + torch.tensor([1.0, -2.0, 0.5]) / RESOLUTION,
        torch.full((count, 3), (losses.GRAIN + 0.25) / RESOLUTION),
        torch.tensor([1.0, 0, 0, 0]).expand(count, 4),
        torch.full((count,), 0.25),
        surface.colors + 0.125,
    )
    generator = torch.Generator().manual_seed(0)
    counts = torch.rand(count, generator=generator) < 0.7
    for field in ("means", "scales", "opacities", "colors"):  # what does not count may be anything
        getattr(wrong, field)[~counts] = 0.9
    step = losses.Placed(wrong, replace(surface, counts=counts))
    share = float(surface.within[counts].float().mean())
    assert float(losses.place(step)) == pytest.approx(3.5, abs=1e-4)
    assert float(losses.color(step)) == pytest.approx(0.125, abs=FP32)
    assert float(losses.size(step)) == pytest.approx(0.25, abs=FP32)
    expected = -share * np.log(0.25) - (1 - share) * np.log(0.75)
    assert float(losses.opacity(step)) == pytest.approx(expected, abs=FP32)


def test_image_losses_pass_over_what_does_not_count():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.rand(2, 2, 32, 32, 3, generator=generator)
    counts = torch.rand(2, 32, 32, generator=generator) < 0.7
    mask, alpha = torch.rand(2, 32, 32, generator=generator) < 0.5, torch.rand(2, 32, 32, generator=generator)
    seen = parts.Images(Cameras.sphere(2), theirs, mask, counts)
    step = losses.Drawn(ours, alpha, seen)
    expected = ((ours - theirs).abs() * counts[..., None]).sum() / ours.numel()
    torch.testing.assert_close(losses.image_l1(step), expected)
    wrong_sides = (alpha * ~mask + (1 - alpha) * mask) * counts
    torch.testing.assert_close(losses.silhouette(step), wrong_sides.mean())
    changed = losses.Drawn(torch.where(counts[..., None], ours, 7.0), torch.where(counts, alpha, 7.0), seen)
    right = losses.Drawn(torch.where(counts[..., None], theirs, 7.0), torch.where(counts, mask.float(), 7.0), seen)
    for term in (losses.image_l1, losses.dissimilarity, losses.silhouette):
        assert torch.equal(term(step), term(changed))
        assert term(right).item() == pytest.approx(0, abs=EXACT)


def test_dissimilarity_is_one_minus_ssim():
    ours, theirs = np.random.default_rng(0).integers(0, 256, (2, 1, 24, 20, 3), dtype=np.uint8)
    x, y = (torch.from_numpy(values).float() for values in (ours, theirs))
    everywhere = torch.ones(1, 24, 20, dtype=torch.bool)
    seen = parts.Images(Cameras.sphere(1), y / 255, everywhere, everywhere)
    step = losses.Drawn((x / 255).requires_grad_(), everywhere.float(), seen)
    loss = losses.dissimilarity(step)
    assert loss.item() == pytest.approx(1 - ssim(ours, theirs), abs=FP32)
    loss.backward()
    assert step.rgb.grad.abs().sum() > 0
    torch.testing.assert_close(similarity(x, y, 255), similarity(x / 255, y / 255, 1.0), atol=FP32, rtol=FP32)


def test_voxel_tokens_are_learned_like_the_others():
    tasks = {"part": replace(NANO_TASKS["part"], tokens=100)}
    stage = replace(NANO_1, tasks=tasks, mixture={"part": 1}, auxiliary=())
    (made,) = next(batches(stage, load_datasets("procedural", stage), 0, workers=0))
    assert (made.task, made.values, made.targets) == ("part", 768, None)
    assert not made.tokens.feats[:, 768:].any()
    assert made.tokens.coords[:, 3].any()
    assert PlainEngine(Objective(small_model(), tasks), stage, "cpu").train([made])["part/l1"] > 0
